// Out of sight what only older workflows have: front ends of classic nodes show a widget although its input hides it.

import { app } from "../../scripts/app.js"

app.registerExtension({
    name: "dno.hidden",
    nodeCreated(node) {
        if (!node.comfyClass?.startsWith("DNO")) return
        const hidden = (node.widgets ?? []).filter((widget) => widget.options?.hidden)
        for (const widget of hidden) widget.hidden = true
        if (hidden.length) node.setSize([node.size[0], node.computeSize()[1]])
    },
})
