"""The quickstart template: in the server, and in a real browser."""

import json
import time

from comfy_server.browser import front_end
from comfy_server.make_template import TEMPLATE, TWIN
from comfy_server.server import PACK
from PIL import Image
from test_nodes_schema import NODES


def test_the_templates_twin_runs_and_makes_its_pictures(comfy):
    twin = json.loads(TWIN.read_text())
    twin["9"]["inputs"].update(steps=4, iterations=2)
    run = comfy.run(twin)
    assert {node for node, output in run.outputs.items() if output.get("images")} == {"10", "12", "14"}
    (saved,) = run.outputs["10"]["images"]
    assert Image.open(comfy.folder / "output" / saved["filename"]).size == (128, 128)


def test_the_template_is_listed_with_a_picture_and_shows_every_node():
    assert TEMPLATE.with_suffix(".jpg").is_file()
    assert Image.open(TEMPLATE.with_suffix(".jpg")).width >= 400
    assert set(NODES) <= {node["type"] for node in json.loads(TEMPLATE.read_text())["nodes"]}


def test_in_a_browser_the_template_loads_and_asks_for_its_twin(comfy):
    assert comfy.get("/workflow_templates") == {PACK.name: [TEMPLATE.stem]}
    template = comfy.get(f"/api/workflow_templates/{PACK.name}/{TEMPLATE.stem}.json")
    start = time.monotonic()
    with front_end(comfy) as page:
        page.evaluate("async (template) => { await app.loadGraphData(template) }", template)
        types = page.evaluate("(app.rootGraph ?? app.graph)._nodes.map(node => node.type)")
        known = page.evaluate("Object.keys(LiteGraph.registered_node_types)")
        prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert set(types) <= set(known) and set(NODES) <= set(types)
    asked = {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in prompt.items()}
    assert asked == json.loads(TWIN.read_text())
    assert time.monotonic() - start < 100
