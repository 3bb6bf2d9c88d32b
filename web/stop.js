// A button on the sampler nodes that ends a running search with the best it has: the workflow goes on from there.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const SAMPLERS = ["DNOSampler", "DNOSamplerAdvanced"]

app.registerExtension({
    name: "dno.stop",
    nodeCreated(node) {
        if (!SAMPLERS.includes(node.comfyClass)) return
        const stop = () => api.fetchApi("/dno/stop", {
            method: "POST",
            headers: { "Content-Type": "application/json" },
            body: JSON.stringify({ node: String(node.id) }),
        })
        const button = node.addWidget("button", "stop_and_keep", null, stop, { serialize: false })
        button.label = "stop and keep the best"
        button.serialize = false // saved workflows know widgets by position: this one is none of theirs
        button.tooltip = "Ends the search within one network call and goes on with the best so far; Cancel discards it."
    },
})
