"""Write example_workflows/NAME.json and .jpg anew from templates/NAME.json.

    cd tests/support; python -m comfy_server.make_template NAME ..  or all; --json-only after a change of nodes alone

The front end turns the API-format workflow into its own format, the server runs it, and start and best become the
template's picture. Make a template anew when a node in it, the embedded model or a setting has changed. ComfyUI lists
templates by their files' names, so a name is a number, by which they are sorted, and a title. A source holds

    note      lines of Markdown that the template shows first; note_height, where it takes less room than others
    history   [node, output] of the search whose start and best become the template's picture, see `thumbnail`;
    before    or [node, output] of the picture, or of the batch of them, that the run starts from,
    after     and the same of what it makes;
    card      or, of a template whose files are too large to run here, lines of text in place of a picture
    twin      of such a template, the family in `families` whose tiny model stands in for its files
    models    of such a template, the files that its nodes name, by node: the page offers those that are missing
    needs     name of a template that must have been run before, where there is one
    package   of such a template, one of Python that ComfyUI does not have: this program needs it, and tests have a
              stand-in for it
    layout    columns of the page, each a list of groups from top down, each with columns of nodes from top down
    prompt    the workflow in API format, with every widget, and in `_meta` the titles of nodes
"""

import argparse
import json
import tempfile
from pathlib import Path

from PIL import Image

from comfy_server import ComfyServer, find_comfyui
from comfy_server.browser import front_end
from comfy_server.make_tiny_rewards import write_missing
from comfy_server.thumbnail import card, thumbnail

SOURCES = Path(__file__).parent / "templates"
TEMPLATES = Path(__file__).parents[3] / "example_workflows"
SAMPLERS = ("DNOSampler", "DNOSamplerAdvanced", "DNOSearchSampler")
IN_FRONT_END = """async ([prompt, text]) => {
    await app.loadApiJson(prompt, "dno")
    const note = LiteGraph.createNode("MarkdownNote")
    app.graph.add(note)
    note.widgets[0].value = text
    return app.graph.serialize()
}"""
WIDTH, TITLE = 300, 30
"""Of a node, and the height of what its title stands in, above it."""
GAP, EDGE, HEADING = 25, 12, 45
"""Between nodes and groups; between a group's edge and its nodes; and the height of its heading."""
HIGHER, MORE = 1.2, 30
"""Nodes with widgets are up to so many times as high, and more, in the front end's Nodes 2.0 as classic ones are."""
TEXT, PICTURE, REPORT, NOTE = 110, (350, 265), (350, 400), 180
"""Height of a prompt, sizes of a picture and of a report with both pictures, height of the note."""
SAID = {"DNOAsk": 420, "DNOScoreImages": 70, "DNODiagnostics": 50, "DNONoiseProbability": 30}
"""Height that a node takes besides once it has run, for a text of many lines or its pictures."""
WIDE, SPARE = 400, 35
"""Width that the front end gives to nodes with a text among their widgets, and what it makes them too high."""
COLORS = {
    "note": {"color": "#432", "bgcolor": "#653"},
    "Prompt": {"color": "#232", "bgcolor": "#353"},
    "Positive prompt": {"color": "#232", "bgcolor": "#353"},
    "Negative prompt": {"color": "#322", "bgcolor": "#533"},
    "sampler": {"color": "#223", "bgcolor": "#335"},
}
"""ComfyUI's own pairs of colours, by title, or for every sampler of the pack."""
GROUP_COLORS = ("#3f789e", "#b58b2a", "#8A8", "#88A", "#a1309b")


def names():
    """Return the names of all templates."""
    return sorted(path.stem for path in SOURCES.glob("*.json"))


def source(name):
    """Return a template's source, as the page above has it."""
    return json.loads((SOURCES / f"{name}.json").read_text())


def to_ui_format(page, source):
    """Return the workflow in the front end's format, laid out, with its note and fixed seeds."""
    graph = page.evaluate(IN_FRONT_END, [source["prompt"], "\n".join(source["note"])])
    graph["groups"] = lay_out(graph["nodes"], source["layout"], source.get("note_height", NOTE))
    for node in graph["nodes"]:
        node["widgets_values"] = ["fixed" if v == "randomize" else v for v in node.get("widgets_values") or []]
        node.update(COLORS.get(node.get("title"), COLORS["sampler"] if node["type"] in SAMPLERS else {}))
        if str(node["id"]) in source.get("models", {}):
            node["properties"]["models"] = source["models"][str(node["id"])]
    return without_nones({key: graph[key] for key in graph if key not in ("id", "revision", "extra")})


def lay_out(nodes, layout, note_height=NOTE):
    """Set every node's place and size, the note above all columns but the first, and return the groups."""
    by_id = {str(node["id"]): node for node in nodes}
    groups, x = [], 0
    for number, column in enumerate(layout):
        y = note_height + GAP if number else -TITLE
        for group in column:
            columns = [[by_id[key] for key in keys] for keys in group["columns"]]
            width, height = place(columns, x + EDGE, y + HEADING + TITLE)
            box = [x, y, width + 2 * EDGE, height + HEADING + TITLE + EDGE]
            groups.append({"title": group["title"], "bounding": box, "color": GROUP_COLORS[len(groups)]})
            y += box[3] + GAP
        x += max(group["bounding"][2] for group in groups[-len(column) :]) + GAP
    (note,) = [node for node in nodes if node["type"] == "MarkdownNote"]
    left = groups[len(layout[0])]["bounding"][0]
    note.update(title="Start here", pos=[left, 0], size=[x - GAP - left, note_height], **COLORS["note"])
    return groups


def place(columns, x, y):
    """Place columns of nodes beside one another, from a corner; return the width and the height that they take."""
    left, lowest = x, y
    for column in columns:
        top = y
        for node in column:
            node.update(pos=[left, top], size=list(size_of(node)))
            lowest = max(lowest, top + room_for(node))
            top += room_for(node) + TITLE + GAP
        left += max(node["size"][0] for node in column) + GAP
    return left - GAP - x, lowest - y


def room_for(node):
    """Return the height that a node takes in either style of the front end, with what it says when it has run."""
    height = node["size"][1]
    fixed = height in (TEXT, PICTURE[1], REPORT[1])
    return height if fixed else round(HIGHER * height) + MORE + SAID.get(node["type"], 0)


def size_of(node):
    """Return a node's width and height: a picture's, a prompt's, or what the front end found it to need."""
    if node["type"] in ("PreviewImage", "SaveImage"):
        return PICTURE
    if node["type"] == "DNOReport":
        return REPORT
    if node["type"] in ("CLIPTextEncode", "PrimitiveStringMultiline"):
        return WIDTH, TEXT
    if node["size"][0] == WIDE:
        return WIDTH, round(node["size"][1]) - SPARE
    return WIDTH, round(node["size"][1])


def without_nones(value):
    """Drop the front end's many null entries, but for links, where null says "not connected"."""
    if isinstance(value, dict):
        return {k: without_nones(v) for k, v in value.items() if v is not None or k == "link"}
    return [without_nones(item) for item in value] if isinstance(value, list) else value


def picture_of(server, source):
    """Return a template's picture: its card, or what its workflow starts from and makes."""
    if "card" in source:
        return card(source["card"])
    prompt = dict(source["prompt"])
    before, after = source.get("before"), source.get("after")
    if "history" in source:
        prompt["record"] = {"class_type": "DNOReport", "inputs": {"history": source["history"], "picture": 0}}
        before, after = ["record", 2], ["record", 3]
    for key, images in (("before", before), ("after", after)):
        prompt[key] = {"class_type": "PreviewImage", "inputs": {"images": images}}
    run = server.run(prompt, timeout=3600)
    return thumbnail(*([opened(server, file) for file in run.outputs[key]["images"]] for key in ("before", "after")))


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
                    made = to_ui_format(page, source(name))
                    (TEMPLATES / f"{name}.json").write_text(json.dumps(made, indent=1) + "\n")
            for name in chosen if not arguments.json_only else ():
                if "needs" in source(name):
                    server.run(source(source(name)["needs"])["prompt"], timeout=3600)
                picture_of(server, source(name)).save(TEMPLATES / f"{name}.jpg", quality=90)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
