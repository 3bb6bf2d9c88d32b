"""The pack in other languages: nothing is missing, nothing is left over, and the page shows it."""

import json
import re

import pytest
from comfy_server.browser import front_end
from comfy_server.make_locales import LOCALES, english, ours

TRANSLATED = sorted(folder.name for folder in LOCALES.iterdir() if folder.name != "en")
FILES = ("main.json", "nodeDefs.json")
CHINESE = re.compile("[\u4e00-\u9fff]")
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def texts_of(locale, file):
    """Return {path: text} of one file of a language."""
    return dict(leaves(json.loads((LOCALES / locale / file).read_text(encoding="utf-8"))))


def leaves(tree, path=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def test_english_is_what_the_schemas_say(comfy):
    written = json.loads((LOCALES / "en" / "nodeDefs.json").read_text())
    assert written == english(ours(comfy)), "run: cd tests/support; python -m comfy_server.make_locales"


def test_english_names_the_packs_own_categories_and_types_of_links(comfy):
    nodes = ours(comfy).values()
    main = json.loads((LOCALES / "en" / "main.json").read_text())
    # The others are ComfyUI's own, and translated there.
    assert set(main["nodeCategories"]) == {part for info in nodes for part in info["category"].split("/")} - {
        "sampling", "dno", "noise",
    }  # fmt: skip
    assert set(main["dataTypes"]) == {kind for info in nodes for kind in info["output"] if str(kind).startswith("DNO_")}
    # So that the page in English stays as it is without this file.
    assert all(key == text for kind in ("nodeCategories", "dataTypes") for key, text in main[kind].items())


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("locale", TRANSLATED)
def test_a_language_has_every_text_of_english_and_no_other(locale, file):
    expected, found = set(texts_of("en", file)), set(texts_of(locale, file))
    assert expected - found == set(), "not translated"
    assert found - expected == set(), "these belong to no node, input or output"


@pytest.mark.parametrize("locale", TRANSLATED)
def test_a_translation_has_the_numbers_of_the_english_text(locale):
    """A default, a bound or a file's version that has changed in English must change in every language."""
    translated = texts_of(locale, "nodeDefs.json")
    for path, text in texts_of("en", "nodeDefs.json").items():
        assert sorted(NUMBER.findall(translated[path])) == sorted(NUMBER.findall(text)), path


def test_titles_and_tooltips_are_chinese():
    """Names of inputs may be symbols, such as cfg."""
    for path, text in texts_of("zh", "nodeDefs.json").items():
        assert path[-1] == "name" or CHINESE.search(text), path


@pytest.mark.parametrize("locale", ["en", *TRANSLATED])
def test_no_text_has_a_character_that_the_front_ends_translation_reads_as_its_own(locale):
    """In vue-i18n's messages a bar parts plurals, an at sign is a link and braces are a place to fill in."""
    for file in FILES:
        assert not [text for text in texts_of(locale, file).values() if set(text) & set("|@{}")]


SHOWN = """(names) => names.map((name) => {
    const node = LiteGraph.createNode(name)
    const widgets = (node.widgets ?? []).map((widget) => [widget.name, widget.label])
    const sockets = node.inputs.map((input) => [input.name, input.localized_name])
    const outputs = node.outputs.map((output) => output.localized_name)
    const {inputs, description} = node.constructor.nodeData
    const tooltips = Object.values(inputs).map((input) => [input.name, input.tooltip])
    return [name, node.title, description, ...[widgets, sockets, tooltips].map(Object.fromEntries), outputs]
})"""
"""Each node's title, description, labels of widgets and sockets, tooltips and outputs, as the page has them."""
CATEGORY = "LiteGraph.registered_node_types.DNOSolverTilt.category"


@pytest.mark.parametrize("locale", [pytest.param("en", marks=pytest.mark.slow), "zh"])
def test_in_a_browser_every_node_shows_the_language_that_is_chosen(comfy, locale):
    nodes, main = ours(comfy), json.loads((LOCALES / locale / "main.json").read_text(encoding="utf-8"))
    # English is compared with the schemas themselves: a file that says the same must not change the page.
    expected = english(nodes)
    if locale != "en":
        expected = json.loads((LOCALES / locale / "nodeDefs.json").read_text(encoding="utf-8"))
    with front_end(comfy, locale) as page:
        shown = page.evaluate(SHOWN, list(nodes))
        category = page.evaluate(CATEGORY)
    assert len(shown) == len(nodes) > 40
    for name, title, description, widgets, sockets, tooltips, outputs in shown:
        inputs = {key: texts["name"] for key, texts in expected[name]["inputs"].items()}
        own = {key: label for key, label in widgets.items() if key in inputs}
        assert title == expected[name]["display_name"] and description == expected[name]["description"]
        assert tooltips == {key: texts["tooltip"] for key, texts in expected[name]["inputs"].items()}
        assert {**sockets, **own} == {**inputs, **own} == inputs, name
        assert outputs == [texts["name"] for texts in expected[name]["outputs"].values()], name
        assert (main["dno"]["stop_and_keep"] in widgets) == ("Sampler" in name)
    assert category.split("/")[-1] == main["nodeCategories"]["solvers"]
