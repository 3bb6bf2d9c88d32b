"""The workflow templates: their sources in the server, the templates themselves in a real browser."""

import itertools
import json
from pathlib import Path
from urllib.parse import quote

import pytest
from comfy_server.browser import front_end
from comfy_server.make_template import TEMPLATES, TITLE, names, source
from comfy_server.make_tiny_rewards import write_missing
from comfy_server.server import PACK
from comfy_server.thumbnail import SIDE
from PIL import Image

NODES = json.loads(Path(__file__).with_name("node_schemas.json").read_text())
MOST = {"steps": 3, "iterations": 1, "candidates": 2, "q": 2, "samples": 2, "calibrate_on": 2}
SHOWN = ("SaveImage", "PreviewImage", "DNOReport", "DNOAsk")
LOADERS = {"CheckpointLoaderSimple": (0, 1, 2), "UNETLoader": (0,), "CLIPLoader": (1,), "VAELoader": (2,)}
"""Outputs of the stock loaders, as numbers of the outputs of the twin that stands in for all of them."""
REAL = [name for name in names() if "twin" in source(name)]
LEAST_ZOOM = 0.6


def template(name):
    return json.loads((TEMPLATES / f"{name}.json").read_text())


def small(name):
    """Return a template's prompt with settings that take seconds."""
    prompt = source(name)["prompt"]
    for node in prompt.values():
        given = {key: value for key, value in node["inputs"].items() if key in MOST and type(value) is int}
        node["inputs"].update({key: min(value, MOST[key]) for key, value in given.items()})
    return twin(prompt, source(name)["twin"]) if name in REAL else prompt


def twin(prompt, family):
    """Return a prompt whose loaders are one tiny model of the family, and its pictures of 64 x 64."""
    loaders = {key: LOADERS[node["class_type"]] for key, node in prompt.items() if node["class_type"] in LOADERS}
    made = {key: node for key, node in prompt.items() if key not in loaders}
    for node in made.values():
        node["inputs"].update({side: 64 for side in ("width", "height") if side in node["inputs"]})
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in loaders:
                node["inputs"][name] = ["twin", loaders[value[0]][value[1]]]
    return {**made, "twin": {"class_type": "DNOTestTwin", "inputs": {"family": family}}}


def overlapping(rectangles):
    """Return the pairs of names of those of {name: (x, y, width, height)} that share a part of the page."""
    pairs = itertools.combinations(rectangles.items(), 2)
    return [(one, other) for (one, first), (other, second) in pairs if share(first, second)]


def share(first, second):
    (x, y, width, height), (x2, y2, width2, height2) = first, second
    return x < x2 + width2 and x2 < x + width and y < y2 + height2 and y2 < y + height


@pytest.fixture(scope="module")
def comfy_with_files(comfy):
    """The server, with a tiny file for each reward node."""
    write_missing(comfy.folder / "models" / "reward_models")
    return comfy


@pytest.mark.parametrize("name", names())
def test_the_source_runs_and_makes_its_pictures(request, name):
    server = {None: "comfy_with_files", "pyiqa": "comfy_with_pyiqa"}[source(name).get("package")]
    comfy, prompt = request.getfixturevalue(server), small(name)
    if "needs" in source(name):
        comfy.run(small(source(name)["needs"]))
    run = comfy.run(prompt)
    shown = {key for key, node in prompt.items() if node["class_type"] in SHOWN}
    assert {key for key, output in run.outputs.items() if output.get("images")} == shown
    for key in shown:
        (file, *_) = run.outputs[key]["images"]
        picture = Image.open(comfy.folder / file["type"] / file["subfolder"] / file["filename"])
        side = 64 if name in REAL else 128
        assert prompt[key]["class_type"] != "SaveImage" or picture.size == (side, side)


def test_every_template_has_a_source_and_a_picture():
    assert sorted(file.name for file in TEMPLATES.iterdir()) == sorted(
        f"{name}{suffix}" for name in names() for suffix in (".jpg", ".json")
    )
    assert names()[0] == "01 Quickstart"
    numbers = [name.split()[0] for name in names()]
    assert sorted(set(numbers)) == numbers
    for name in names():
        assert Image.open(TEMPLATES / f"{name}.jpg").size == (SIDE, SIDE), name


def test_every_node_of_the_pack_is_shown_in_a_template():
    assert set(NODES) <= {node["type"] for name in names() for node in template(name)["nodes"]}


@pytest.mark.parametrize("name", names())
def test_every_node_stands_in_a_group_and_links_go_to_the_right(name):
    made = template(name)
    nodes = {node["id"]: (*node["pos"], *node["size"]) for node in made["nodes"] if node["type"] != "MarkdownNote"}
    assert not overlapping({group["title"]: group["bounding"] for group in made["groups"]})
    for x, y, width, height in nodes.values():
        assert any(
            left < x and x + width < left + wide and top < y - TITLE and y + height < top + high
            for left, top, wide, high in (group["bounding"] for group in made["groups"])
        )
    for _, start, _, end, *_ in made["links"]:
        assert nodes[start][0] + nodes[start][2] < nodes[end][0]


@pytest.mark.parametrize("name", names())
def test_prompts_have_titles_and_the_note_says_what_to_change_first(name):
    prompts = [node for node in template(name)["nodes"] if node["type"] == "CLIPTextEncode"]
    assert sorted(node["title"] for node in prompts) == ["Negative prompt", "Positive prompt"]
    lines = source(name)["note"]
    assert any(line.startswith("**Change first:**") for line in lines)


@pytest.mark.parametrize("name", names())
def test_the_prompt_is_typed_once(name):
    """The model reads it and a reward judges by it: a node of its own gives it to both."""
    typed = [
        value
        for node in source(name)["prompt"].values()
        for key, value in node["inputs"].items()
        if key in ("text", "prompt", "value") and value and isinstance(value, str)
    ]
    assert len(typed) == len(set(typed)), typed


@pytest.mark.parametrize("name", REAL)
def test_a_template_of_real_checkpoints_carries_the_address_of_every_file_or_its_note_says_where_it_is(name):
    note = "\n".join(source(name)["note"])
    for node in template(name)["nodes"]:
        files = [value for value in node["widgets_values"] if str(value).endswith((".safetensors", ".pt"))]
        said = [file for file in files if f"models/reward_models go `{file}`" in note or f"and `{file}`" in note]
        assert [model["name"] for model in node["properties"].get("models", [])] == [x for x in files if x not in said]


@pytest.mark.parametrize("name", [name for name in names() if "models" in source(name)])
def test_addresses_are_those_of_the_files_that_nodes_ask_for_or_the_note_says_what_to_rename(name):
    """As in ComfyUI's own templates: a model counts as missing by the name in the node's widget and its folder."""
    note = "\n".join(source(name)["note"])
    for node in template(name)["nodes"]:
        for model in node["properties"].get("models", []):
            assert model["name"] in node["widgets_values"] and model["url"].startswith("https://huggingface.co/")
            repository, upstream = model["url"].split("/")[4], model["url"].rpartition("/")[2]
            renamed = all(f"`{file}`" in note for file in (upstream, model["name"])) and repository in note
            assert upstream == model["name"] or renamed, model
            assert model["directory"] in ("checkpoints", "diffusion_models", "text_encoders", "vae", "reward_models")


NODES_2 = "(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
DRAWN = """async () => {
    const look = () => {
        const scale = app.canvas.ds.scale
        const drawn = [...document.querySelectorAll("[data-node-id]")].map((node) => {
            const {x, y, width, height} = node.getBoundingClientRect()
            return [node.dataset.nodeId, [x, y, width, height].map((pixels) => pixels / scale)]
        })
        return [scale, Object.fromEntries(drawn)]
    }
    let seen = [], same = 0
    while (same < 3) {
        await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve, 50)))
        const now = look()
        same = JSON.stringify(now) == JSON.stringify(seen) ? same + 1 : 0
        seen = now
    }
    return seen
}"""
"""The zoom of the page, and {id: [x, y, width, height]} of the nodes that Nodes 2.0 draws, their titles included.

Looks until four frames in turn show the same: a page lays its nodes out step by step."""


@pytest.fixture(scope="module")
def page(comfy):
    """The front end, opened once; the last test here switches it to Nodes 2.0."""
    with front_end(comfy) as page:
        yield page


def test_in_a_browser_templates_open_large_enough_to_read_and_no_node_covers_another(page):
    covered, small = {}, {}
    for name in names():
        page.evaluate("async (template) => { await app.loadGraphData(template) }", template(name))
        zoom, _ = page.evaluate(DRAWN)
        nodes = page.evaluate("(app.rootGraph ?? app.graph)._nodes.map((n) => [n.id, [...n.pos, ...n.size]])")
        covered[name] = overlapping({key: (x, y - TITLE, w, h + TITLE) for key, (x, y, w, h) in nodes})
        small[name] = zoom if zoom < LEAST_ZOOM else None
    assert {name: pairs for name, pairs in covered.items() if pairs} == {}
    assert {name: zoom for name, zoom in small.items() if zoom} == {}


def test_in_a_browser_every_template_loads_and_asks_for_its_source(comfy, page):
    (listed,) = comfy.get("/workflow_templates").values()
    assert sorted(listed) == names()
    known = set(page.evaluate("Object.keys(LiteGraph.registered_node_types)"))
    for name in names():
        given = comfy.get(f"/api/workflow_templates/{PACK.name}/{quote(name)}.json")
        page.evaluate("async (template) => { await app.loadGraphData(template) }", given)
        nodes = page.evaluate("(app.rootGraph ?? app.graph)._nodes.map((n) => [n.type, n.widgets_values])")
        prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
        assert {kind for kind, _ in nodes} <= known, name
        assert ["MarkdownNote", ["\n".join(source(name)["note"])]] in nodes, name
        asked = {key: (node["class_type"], node["inputs"]) for key, node in prompt.items()}
        expected = {key: (node["class_type"], node["inputs"]) for key, node in source(name)["prompt"].items()}
        assert asked == expected, name


def test_in_a_browser_no_node_of_nodes_2_covers_another(page):
    """Each template is opened in classic nodes, and the page switched then: front end 1.32.9 puts the nodes of what is
    opened in Nodes 2.0 elsewhere than its groups.
    """
    covered = {}
    for name in names():
        page.evaluate(NODES_2, False)
        page.evaluate("async (template) => { await app.loadGraphData(template) }", template(name))
        page.evaluate(NODES_2, True)
        _, drawn = page.evaluate(DRAWN)
        assert set(drawn) == {str(node["id"]) for node in template(name)["nodes"]}, name
        covered[name] = overlapping(drawn)
    page.evaluate(NODES_2, False)
    assert {name: pairs for name, pairs in covered.items() if pairs} == {}
