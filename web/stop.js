// A button on the nodes that search, to end a running search with the best it has: the workflow goes on from there.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

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
        const told = { severity: "info", summary: "DNO", detail: "No search runs here.", life: 3000 }
        app.extensionManager?.toast?.add(told)
    }
}

app.registerExtension({
    name: "dno.stop",
    nodeCreated(node) {
        if (![...SAMPLERS, ANY].includes(node.comfyClass)) return
        // Nodes 2.0 of older front ends write a button's name on it, not its label.
        const button = node.addWidget("button", "stop and keep the best", null, () => stop(node), { serialize: false })
        button.serialize = false // saved workflows know widgets by position: this one is none of theirs
        button.tooltip = "Ends the search within one network call and goes on with the best so far; Cancel discards it."
    },
})
