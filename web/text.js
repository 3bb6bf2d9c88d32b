// Room for the texts on the pack's nodes: classic nodes give a text the height of two lines, whatever stands in it.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const TEXT = "$$node-text-preview" // as ComfyUI calls the widget of a running node's text
const NARROW = ["DNODiagnostics", "DNONoiseProbability", "DNOReport"] // than a line of what they say
const WIDTH = 360
const LINE = 16, EDGE = 42, LETTER = 7.5, SIDES = 52 // pixels: of a line, around all, of a digit, left and right
const MOST = 210 // beyond that a text scrolls

function height(text, width) {
    const across = Math.max((width - SIDES) / LETTER, 1)
    const lines = text.split("\n").map((line) => Math.max(Math.ceil(line.trim().length / across), 1))
    return Math.min(EDGE + LINE * lines.reduce((sum, one) => sum + one, 0), MOST)
}

const bare = (text) => text.replace(/\s/g, "")

// The front end breaks the lines of these texts anywhere. Its elements name no node, so this one's is known by its text.
function breakAtWords(text) {
    for (const element of document.querySelectorAll(".break-all")) {
        if (bare(element.textContent) === bare(text)) element.style.wordBreak = "break-word"
    }
}

app.registerExtension({
    name: "dno.text",
    nodeCreated(node) {
        if (NARROW.includes(node.comfyClass)) node.setSize([Math.max(node.size[0], WIDTH), node.size[1]])
    },
    setup() {
        api.addEventListener("progress_text", ({ detail: { nodeId, text } }) => {
            // The ids of nodes inside subgraphs have those of the subgraphs before them.
            const node = app.canvas.graph.getNodeById(String(nodeId).split(":").pop())
            const shown = node?.comfyClass?.startsWith("DNO") && node.widgets.find((widget) => widget.name === TEXT)
            if (!shown) return
            shown.options.getMinHeight = () => height(text, node.size[0])
            setTimeout(() => breakAtWords(text), 100) // when it is drawn
        })
    },
})
