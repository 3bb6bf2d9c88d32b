"""Write example_workflows/NAME.json and .jpg anew from templates/NAME.json.

    cd tests/support; python -m comfy_server.make_template NAME ..  or all; --json-only after a change of nodes alone

The front end turns the API-format workflow into its own format, the server runs it, and a picture of the run becomes
the template's. Make a template anew when a node in it, the embedded model or a setting has changed. A source holds

    note      Markdown that the template shows beside the nodes
    before    [node, output] of the picture, or of the batch of them, that the run starts from
    after     the same of what it makes; the two become the template's picture, see `thumbnail`
    needs     name of a template that must have been run before, where there is one
    prompt    the workflow in API format, with every widget

and a new file in templates/ is all that a new template needs: nodes are laid out in columns, each to the right of
those it takes its inputs from.
"""

import argparse
import json
import tempfile
from pathlib import Path

from PIL import Image

from comfy_server import ComfyServer, find_comfyui
from comfy_server.browser import front_end
from comfy_server.make_tiny_rewards import write_missing
from comfy_server.thumbnail import thumbnail

SOURCES = Path(__file__).parent / "templates"
TEMPLATES = Path(__file__).parents[3] / "example_workflows"
IN_FRONT_END = """async ([prompt, text]) => {
    await app.loadApiJson(prompt, "dno")
    const note = LiteGraph.createNode("MarkdownNote")
    app.graph.add(note)
    note.widgets[0].value = text
    return app.graph.serialize()
}"""
WIDTH, TITLE, GAP = 320, 30, 40
NOTE, PICTURE = [660, 120], [500, 320]


def names():
    """Return the names of all templates."""
    return sorted(path.stem for path in SOURCES.glob("*.json"))


def source(name):
    """Return a template's source: {"note": .., "picture": .., "prompt": ..}."""
    return json.loads((SOURCES / f"{name}.json").read_text())


def to_ui_format(page, note, prompt):
    """Return the workflow in the front end's format, laid out, with its note and fixed seeds."""
    graph = page.evaluate(IN_FRONT_END, [prompt, note])
    lay_out(graph["nodes"], prompt)
    for node in graph["nodes"]:
        node["widgets_values"] = ["fixed" if v == "randomize" else v for v in node.get("widgets_values") or []]
    return without_nones({key: graph[key] for key in graph if key not in ("id", "revision", "extra")})


def lay_out(nodes, prompt):
    """Set every node's place and size: columns by distance from the sources, top down by id; the note above all."""
    columns = {}
    for node in sorted(nodes, key=lambda node: node["id"]):
        if node["type"] == "MarkdownNote":
            node.update(pos=[0, -NOTE[1] - TITLE - GAP], size=NOTE)
        else:
            columns.setdefault(column_of(str(node["id"]), prompt), []).append(node)
    x = 0
    for _, column in sorted(columns.items()):
        y = 0
        for node in column:
            width, height = PICTURE if node["type"] in ("PreviewImage", "SaveImage") else node["size"]
            node.update(pos=[x, y], size=[max(round(width), WIDTH), round(height)])
            y += node["size"][1] + TITLE + GAP
        x += max(node["size"][0] for node in column) + GAP


def column_of(node_id, prompt):
    """Return the number of nodes on the longest way from a source to this node."""
    links = [value for value in prompt[node_id]["inputs"].values() if isinstance(value, list)]
    return max((1 + column_of(link[0], prompt) for link in links), default=0)


def without_nones(value):
    """Drop the front end's many null entries, but for links, where null says "not connected"."""
    if isinstance(value, dict):
        return {k: without_nones(v) for k, v in value.items() if v is not None or k == "link"}
    return [without_nones(item) for item in value] if isinstance(value, list) else value


def pictures_of(server, source):
    """Run a template's workflow and return two lists of pictures, what it starts from and what it makes."""
    shown = {key: {"class_type": "PreviewImage", "inputs": {"images": source[key]}} for key in ("before", "after")}
    run = server.run({**source["prompt"], **shown}, timeout=3600)
    return [[opened(server, file) for file in run.outputs[key]["images"]] for key in shown]


def opened(server, file):
    """Return a picture that a node of the server shows."""
    return Image.open(server.folder / file["type"] / file["subfolder"] / file["filename"]).convert("RGB")


def main():
    parser = argparse.ArgumentParser(description="Write workflow templates anew from their sources.")
    parser.add_argument("names", nargs="+", choices=[*names(), "all"])
    parser.add_argument("--json-only", action="store_true", help="keep the pictures, which take a run each")
    arguments = parser.parse_args()
    chosen = names() if "all" in arguments.names else arguments.names
    with tempfile.TemporaryDirectory() as folder:
        write_missing(Path(folder) / "models" / "reward_models")
        server = ComfyServer(find_comfyui(), Path(folder))
        try:
            with front_end(server) as page:
                for name in chosen:
                    made = to_ui_format(page, source(name)["note"], source(name)["prompt"])
                    (TEMPLATES / f"{name}.json").write_text(json.dumps(made, indent=1) + "\n")
            for name in chosen if not arguments.json_only else ():
                if "needs" in source(name):
                    server.run(source(source(name)["needs"])["prompt"], timeout=3600)
                thumbnail(*pictures_of(server, source(name))).save(TEMPLATES / f"{name}.jpg", quality=90)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
