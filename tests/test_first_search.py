"""The newcomer's page names only what there is: nodes, their inputs, templates, pictures."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "first-search.md").read_text()
PICTURES = ROOT / "docs" / "first-search"
NODES = json.loads((ROOT / "tests" / "nodes" / "node_schemas.json").read_text()).values()
TEMPLATES = {file.stem for file in (ROOT / "example_workflows").glob("*.json")}
BUTTON = json.loads((ROOT / "locales" / "en" / "main.json").read_text())["dno"]["stop_and_keep"]
OF_COMFYUI = {"custom_nodes", "sampler_name"}
MOST_BYTES = 150_000


def unknown(page):
    """Return what a page has in bold or as code that no node, template, input or output is called."""
    titles = {node["display_name"] for node in NODES} | TEMPLATES | {BUTTON}
    slots = {slot[0] for node in NODES for slot in node["inputs"] + node["outputs"]} | OF_COMFYUI
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    bold = [text.rpartition(" > ")[2] for text in re.findall(r"\*\*(.+?)\*\*", prose)]
    code = re.findall(r"`(\w+)`", prose)
    return [text for text in bold if text not in titles] + [text for text in code if text not in slots]


def test_every_node_input_and_template_that_the_page_names_exists():
    assert unknown(PAGE) == []
    assert unknown("**DNO Sampler**, **99 None**, **DNO Smpler**, `vae`, `vea`") == ["99 None", "DNO Smpler", "vea"]


def test_the_page_shows_every_picture_that_was_made_for_it_and_each_is_small():
    shown = re.findall(r"\(first-search/(.+?)\)", PAGE)
    assert sorted(shown) == sorted(file.name for file in PICTURES.iterdir()) and len(shown) > 3
    assert max(file.stat().st_size for file in PICTURES.iterdir()) < MOST_BYTES
