// The pack's texts of locales/ in the language that the page is set to, for its other scripts and for its nodes.
//
// Front ends take a pack's texts in by themselves, but some lose them again: 1.32.9, that of ComfyUI 0.3.75, loads
// every language but English after it has merged the packs' texts, and puts its own in their place. So the nodes get
// theirs here as well, by the ways that extensions have; where the front end has done it, it is the same text again.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

let locales = { en: {} } // of every pack, by language

function chosen() {
    return locales[app.extensionManager.setting.get("Comfy.Locale")] ?? locales.en
}

export function text(key) {
    return (chosen().dno ?? locales.en.dno)[key]
}

function textsOf(node) {
    return node?.startsWith("DNO") ? chosen().nodeDefs?.[node] : undefined
}

function translateCategory(category) {
    const names = chosen().nodeCategories ?? {}
    return category.split("/").map((name) => names[name] ?? name).join("/")
}

app.registerExtension({
    name: "dno.locales",
    async init() {
        locales = await (await api.fetchApi("/i18n")).json()
    },
    beforeRegisterNodeDef(nodeType, nodeData) {
        const texts = textsOf(nodeData.name)
        if (!texts) return
        nodeData.display_name = texts.display_name
        nodeData.description = texts.description
        nodeData.category = translateCategory(nodeData.category)
        nodeData.output_tooltips = Object.values(texts.outputs).map((output) => output.tooltip)
        for (const [name, [, options]] of Object.entries({ ...nodeData.input.required, ...nodeData.input.optional })) {
            if (texts.inputs[name]) options.tooltip = texts.inputs[name].tooltip
        }
    },
    nodeCreated(node) {
        const texts = textsOf(node.comfyClass)
        if (!texts) return
        for (const input of node.inputs) input.localized_name = texts.inputs[input.name]?.name ?? input.localized_name
        for (const widget of node.widgets ?? []) widget.label = texts.inputs[widget.name]?.name ?? widget.label
        node.outputs.forEach((output, i) => (output.localized_name = texts.outputs[i]?.name ?? output.localized_name))
    },
})
