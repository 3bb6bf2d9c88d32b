"""The workflow templates: their sources in the server, the templates themselves in a real browser."""

import itertools
import json
from pathlib import Path

import pytest
from comfy_server.browser import front_end
from comfy_server.make_template import TEMPLATES, TITLE, names, source
from comfy_server.make_tiny_rewards import write_missing
from comfy_server.server import PACK
from comfy_server.thumbnail import SIDE
from PIL import Image

NODES = json.loads(Path(__file__).with_name("node_schemas.json").read_text())
SMALL = {"steps": 4, "iterations": 2, "candidates": 2, "q": 2, "samples": 2}
SHOWN = ("SaveImage", "PreviewImage")


def template(name):
    return json.loads((TEMPLATES / f"{name}.json").read_text())


def small(name):
    """Return a template's prompt with settings that take seconds."""
    prompt = source(name)["prompt"]
    for node in prompt.values():
        node["inputs"].update({key: value for key, value in SMALL.items() if type(node["inputs"].get(key)) is int})
    return prompt


def links_of(prompt):
    return [value for node in prompt.values() for value in node["inputs"].values() if isinstance(value, list)]


@pytest.fixture(scope="module")
def comfy_with_files(comfy):
    """The server, with a tiny file for each reward node."""
    write_missing(comfy.folder / "models" / "reward_models")
    return comfy


@pytest.mark.parametrize("name", names())
def test_the_source_runs_and_makes_its_pictures(comfy_with_files, name):
    comfy = comfy_with_files
    prompt = small(name)
    if "needs" in source(name):
        comfy.run(small(source(name)["needs"]))
    run = comfy.run(prompt)
    shown = {key for key, node in prompt.items() if node["class_type"] in SHOWN}
    assert {key for key, output in run.outputs.items() if output.get("images")} == shown
    for key in shown:
        (file, *_) = run.outputs[key]["images"]
        picture = Image.open(comfy.folder / file["type"] / file["subfolder"] / file["filename"])
        assert prompt[key]["class_type"] == "PreviewImage" or picture.size == (128, 128)


def test_every_template_has_a_source_and_a_picture():
    assert sorted(file.name for file in TEMPLATES.iterdir()) == sorted(
        f"{name}{suffix}" for name in names() for suffix in (".jpg", ".json")
    )
    for name in names():
        assert Image.open(TEMPLATES / f"{name}.jpg").size == (SIDE, SIDE), name


def test_every_node_of_the_pack_is_shown_in_a_template():
    assert set(NODES) <= {node["type"] for name in names() for node in template(name)["nodes"]}


@pytest.mark.parametrize("name", names())
def test_nodes_do_not_overlap_and_links_go_to_the_right(name):
    nodes = {node["id"]: (*node["pos"], *node["size"]) for node in template(name)["nodes"]}
    for (x, y, width, height), (x2, y2, width2, height2) in itertools.combinations(nodes.values(), 2):
        assert x + width <= x2 or x2 + width2 <= x or y + height <= y2 - TITLE or y2 + height2 <= y - TITLE
    for _, start, _, end, *_ in template(name)["links"]:
        assert nodes[start][0] + nodes[start][2] < nodes[end][0]


def test_in_a_browser_every_template_loads_and_asks_for_its_source(comfy):
    assert {pack: sorted(listed) for pack, listed in comfy.get("/workflow_templates").items()} == {PACK.name: names()}
    with front_end(comfy) as page:
        known = set(page.evaluate("Object.keys(LiteGraph.registered_node_types)"))
        for name in names():
            given = comfy.get(f"/api/workflow_templates/{PACK.name}/{name}.json")
            page.evaluate("async (template) => { await app.loadGraphData(template) }", given)
            nodes = page.evaluate("(app.rootGraph ?? app.graph)._nodes.map((n) => [n.type, n.widgets_values])")
            prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
            assert {kind for kind, _ in nodes} <= known, name
            assert ["MarkdownNote", [source(name)["note"]]] in nodes, name
            asked = {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in prompt.items()}
            assert asked == source(name)["prompt"], name
