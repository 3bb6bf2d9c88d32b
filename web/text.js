// Room for the texts on the pack's nodes: classic nodes give a text the height of two lines, whatever stands in it.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const TEXT = "$$node-text-preview" // as ComfyUI calls the widget of a running node's text
const LINE = 16, EDGE = 26, LETTER = 6.5, SIDES = 52 // pixels: of a line, around all, of a letter, left and right

function height(text, width) {
    const across = Math.max((width - SIDES) / LETTER, 1)
    const lines = text.split("\n").map((line) => Math.max(Math.ceil(line.trim().length / across), 1))
    return EDGE + LINE * lines.reduce((sum, one) => sum + one, 0)
}

app.registerExtension({
    name: "dno.text",
    setup() {
        api.addEventListener("progress_text", ({ detail: { nodeId, text } }) => {
            // The ids of nodes inside subgraphs have those of the subgraphs before them.
            const node = app.canvas.graph.getNodeById(String(nodeId).split(":").pop())
            const shown = node?.comfyClass?.startsWith("DNO") && node.widgets.find((widget) => widget.name === TEXT)
            if (shown) shown.options.getMinHeight = () => height(text, node.size[0])
        })
    },
})
