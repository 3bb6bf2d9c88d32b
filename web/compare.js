// Start and best under one slider on DNO Report: by the widget of ComfyUI's own node Compare Images, where it has that
// node and draws nodes as Nodes 2.0. Elsewhere the node shows them side by side.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const addresses = (files) => files.map((file) => api.apiURL(`/view?${new URLSearchParams(file)}`))

app.registerExtension({
    name: "dno.compare",
    nodeCreated(node) {
        if (node.comfyClass !== "DNOReport" || !LiteGraph.registered_node_types.ImageCompare) return
        const slider = node.addWidget("imagecompare", "start and best", "", () => {}, { serialize: false })
        slider.serialize = false // saved workflows know widgets by position: this one is none of theirs
        // Classic nodes have no slider: there it takes no room, and the picture of both is shown.
        slider.drawWidget = () => {}
        slider.computeSize = () => [0, -4] // no height, and not the gap to the next widget
        node.hideOutputImages = true // in Nodes 2.0, which has the slider
        const executed = node.onExecuted
        node.onExecuted = function (shown) {
            executed?.call(this, shown)
            slider.value = {
                beforeImages: addresses(shown.a_images), beforeAlt: "start",
                afterImages: addresses(shown.b_images), afterAlt: "best",
            }
            slider.callback(slider.value)
        }
    },
})
