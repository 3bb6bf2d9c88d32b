// Out of sight what only older workflows have, unless one of them has switched it on or linked it.

import { app } from "../../scripts/app.js"

function isLinked(node, widget) {
    return (node.inputs ?? []).some((input) => input.widget?.name === widget.name && input.link != null)
}

app.registerExtension({
    name: "dno.hidden",
    nodeCreated(node) {
        if (!node.comfyClass?.startsWith("DNO")) return
        const hidden = (node.widgets ?? []).filter((widget) => widget.options?.hidden)
        for (const widget of hidden) {
            // Asked each time: a saved workflow's values and links come when the node is there.
            const get = () => !widget.value && !isLinked(node, widget)
            const answer = { get, set() {}, configurable: true, enumerable: true } // without a setter, setting it throws
            Object.defineProperty(widget, "hidden", answer) // what classic nodes look at
            Object.defineProperty(widget.options, "hidden", answer) // and what Nodes 2.0 does
        }
        if (hidden.length) node.setSize([node.size[0], node.computeSize()[1]])
    },
})
