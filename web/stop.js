// A button on the nodes that search, to end a running search with the best it has: the workflow goes on from there.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { text } from "./locales.js"

const SAMPLERS = ["DNOSampler", "DNOSamplerAdvanced"]
const ANY = "DNOSearchSampler" // searches while another node samples, so its button is for whatever runs

async function stop(node) {
    const wanted = node.comfyClass === ANY ? "any" : String(node.id)
    const answer = await api.fetchApi("/dno/stop", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ node: wanted }),
    })
    const { stopped } = await answer.json()
    if (!stopped) {
        const told = { severity: "info", summary: "DNO", detail: text("no_search"), life: 3000 }
        app.extensionManager?.toast?.add(told)
    }
}

app.registerExtension({
    name: "dno.stop",
    nodeCreated(node) {
        if (![...SAMPLERS, ANY].includes(node.comfyClass)) return
        // Named by its text, not labelled with it: Nodes 2.0 of older front ends write a button's name on it.
        const button = node.addWidget("button", text("stop_and_keep"), null, () => stop(node), { serialize: false })
        button.serialize = false // saved workflows know widgets by position: this one is none of theirs
        button.tooltip = text("stop_and_keep_tooltip")
    },
})
