"""What saved workflows and users rely on: ids, inputs in order, tooltips, help pages."""

import json
from pathlib import Path

import pytest
from comfy_server.server import PACK

SNAPSHOT = Path(__file__).with_name("node_schemas.json")
NODES = sorted(json.loads(SNAPSHOT.read_text()))


def schema_of(info):
    """The part of a node's /object_info that a saved workflow depends on, without what ComfyUI itself fills in."""
    inputs = []
    for group in ("required", "optional"):
        for name, (kind, *options) in info["input"].get(group, {}).items():
            options = dict(options[0]) if options else {}
            kept = {key: options[key] for key in ("default", "min", "max", "step", "round") if key in options}
            inputs.append([name, group, "COMBO" if isinstance(kind, list) else kind, kept])
    outputs = [list(pair) for pair in zip(info["output_name"], info["output"], strict=True)]
    return {"display_name": info["display_name"], "inputs": inputs, "outputs": outputs}


def ours(comfy):
    everything = comfy.get("/object_info")
    return {name: info for name, info in everything.items() if name.startswith("DNO") and "Test" not in name}


def test_the_schemas_are_those_of_the_snapshot(comfy, tmp_path):
    found = {name: schema_of(info) for name, info in sorted(ours(comfy).items())}
    file = tmp_path / SNAPSHOT.name
    file.write_text(json.dumps(found, indent=1) + "\n")
    expected = json.loads(SNAPSHOT.read_text())
    assert found == expected, (
        "the nodes' schemas have changed. Saved workflows store widgets by position: only append, never reorder, rename"
        f" or remove. If that is what you did, copy {file} to {SNAPSHOT}"
    )


def test_ids_categories_and_titles_follow_the_packs_rules(comfy):
    for name, info in ours(comfy).items():
        assert info["category"].split("/")[:2] == ["sampling", "dno"] and info["description"]
        assert all(word[0].isupper() or word[0] == "(" for word in info["display_name"].split()), name
        # Beside ComfyUI's own nodes for noises and pictures a plain "Save Noise" would not say whose it is.
        assert info["display_name"].startswith("DNO ") or "Reward" in info["display_name"], name


def test_every_input_and_output_has_a_tooltip(comfy):
    for name, info in ours(comfy).items():
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        bare = [key for key, (_, *options) in inputs.items() if not (options and options[0].get("tooltip"))]
        assert not bare, (name, bare)
        assert all(info["output_tooltips"]) and len(info["output_tooltips"]) == len(info["output"]), name


def test_float_widgets_say_how_they_round(comfy):
    # The front end rounds to the step where nothing is said: a learning rate of 0.05 would show as 0.1.
    for name, info in ours(comfy).items():
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        for key, (kind, *options) in inputs.items():
            assert kind != "FLOAT" or options[0].get("step") and options[0].get("round"), (name, key)


@pytest.mark.parametrize("node", NODES)
def test_every_node_has_a_help_page_that_names_its_inputs_and_outputs(comfy, node):
    page = comfy.get(f"/extensions/{PACK.name}/docs/{node}.md").decode()
    info = comfy.get(f"/object_info/{node}")[node]
    names = [*info["input"].get("required", {}), *info["input"].get("optional", {}), *info["output_name"]]
    assert page.startswith(f"# {info['display_name']}\n")
    assert not [name for name in names if name not in page]


def test_the_sampler_has_ksamplers_inputs_in_ksamplers_order(comfy):
    stock = list(comfy.get("/object_info/KSampler")["KSampler"]["input"]["required"])
    stock.remove("sampler_name")
    assert list(comfy.get("/object_info/DNOSampler")["DNOSampler"]["input"]["required"])[: len(stock)] == stock
