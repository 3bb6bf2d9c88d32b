"""What the page shows of a search, on a server with its default settings."""

import json
import re

import numpy as np
import pytest
import torch
from comfy_server.browser import front_end
from PIL import Image
from workflows import Workflow, history_of


def pixels(picture):
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)


def texts_of(run):
    """Return (node, text) of each text that was written on a node, without the two spaces that end Markdown's lines."""
    return [(data["node"], data["text"].replace("  \n", "\n")) for data in run.of_type("text")]


def search(comfy, **settings):
    graph = Workflow()
    ours = graph.dno(**settings)
    graph.keep("image", ours[1])
    graph.node("DNOTestHistory", history=ours[3])
    return ours, comfy.run(graph)


def test_each_iteration_shows_the_best_picture_of_each_item(comfy):
    ours, run = search(comfy, iterations=3)
    # ComfyUI has scaled the sheet of 530 x 268 to 512 across.
    shown = [pixels(data["picture"].resize((530, 268))) for data in run.of_type("preview")]
    assert len(shown) == 4
    small = torch.nn.functional.interpolate(run.kept["image"]["tensor"].movedim(-1, 1), size=64, mode="area")
    for item, picture in enumerate(small):
        # Side by side on a sheet of tiles of 256, of JPEG quality 95: rescaled, so compared in the mean of 8 x 8 tiles.
        tile = shown[-1][6 : 6 + 256, 6 + item * 262 : 6 + item * 262 + 256].movedim(-1, 0)
        found, expected = (torch.nn.functional.adaptive_avg_pool2d(x, 8) for x in (tile, picture))
        assert (found - expected).abs().max() < 0.03


def test_the_text_says_iteration_reward_best_probability_and_what_is_watched(comfy):
    graph = Workflow()
    watched = graph.node("DNOContrastReward", negative=False)[0]
    one = graph.node("EmptyLatentImage", width=64, height=64, batch_size=1)[0]
    ours = graph.dno(iterations=2, watch=watched, latent=one)
    graph.node("DNOTestHistory", history=ours[3])
    run = comfy.run(graph)
    rows, texts = history_of(run)["rows"], [text for node, text in texts_of(run) if node == ours.id]
    assert texts[:2] == ["checking the model's gradient ..", "sampling the start .."]
    texts = texts[2:]
    assert len(texts) == 4  # three evaluations, and the end
    for row, text in zip(rows, texts, strict=False):
        iteration, *numbers = text.splitlines()
        assert re.fullmatch(rf"iteration {row['iteration']} of 2(, \d+ s left)?", iteration), iteration
        best = max(row["score"][0] for row in rows if row["iteration"] <= int(iteration.split()[1]))
        assert numbers[0] == f"best {best:.3g}" and re.fullmatch(rf"now {row['score'][0]:.3g}, P 0\.\d\d", numbers[1])
        assert numbers[2] == f"contrast {row['watch/contrast'][0]:.3g}"
    assert "left" in texts[1] and "left" not in texts[0] + texts[2]
    assert texts[3].splitlines() == [
        f"brightness {rows[0]['score'][0]:.3g} -> {max(row['score'][0] for row in rows):.3g}", "2 iterations done",
    ]  # fmt: skip
    assert run.outputs[ours.id]["text"] == [texts[3]]
    assert "DNO: 100%" in comfy.log() and numbers[0] in comfy.log()
    left = texts[1].splitlines()[0].partition(", ")[2]
    assert f", {left}, best " in comfy.log(), "the console gives the same time left as the node"
    assert "iteration/s" not in comfy.log()


@pytest.mark.parametrize("settings, said", [
    ({"iterations": 0}, r"brightness ([\d.]+), not searched\n0 iterations done"),
    ({"iterations": 1}, r"brightness ([\d.]+) -> [\d.]+\n1 iteration done"),
    ({"iterations": 5, "seconds": 0.001}, r"brightness ([\d.]+) -> \1\nThe search ended early, after 0 of 5 iterations:"
     " the time budget of 0.001 s is spent; nothing was searched, the picture is the start"),
])  # fmt: skip
def test_a_search_says_in_words_how_far_it_came(comfy, settings, said):
    graph = Workflow()
    one = graph.node("EmptyLatentImage", width=64, height=64, batch_size=1)[0]
    ours = graph.dno(latent=one, **settings)
    graph.keep("image", ours[1])
    (text,) = comfy.run(graph).outputs[ours.id]["text"]
    assert re.fullmatch(said, text), text


def test_a_fast_search_shows_each_trial_of_its_climb(comfy):
    """On the embedded model: a network that was never trained has no few steps that stand for all."""
    graph = Workflow()
    embedded = graph.node("DNOLoadEmbeddedModel")
    graph.model, graph.vae = embedded[0], embedded[2]
    graph.positive, graph.negative = (
        graph.node("CLIPTextEncode", text=text, clip=embedded[1])[0] for text in ("black cat", "")
    )
    fast = graph.node("DNOSolverFast", calls=45, coarse_steps=5, whitening=0.5)[0]
    one = graph.node("EmptyLatentImage", width=128, height=128, batch_size=1)[0]
    ours = graph.dno(iterations=1, solver=fast, steps=12, cfg=3.0, latent=one)
    graph.node("DNOTestHistory", history=ours[3])
    run = comfy.run(graph)
    texts = [text.splitlines() for node, text in texts_of(run) if node == ours.id]
    trials = [text for text in texts if text[0].startswith("trial")]
    assert [text[0] for text in trials] == [f"trial {trial} of 4, on 5 of 12 steps" for trial in range(5)]
    assert all(text[1].startswith("best ") and text[2].startswith("now ") for text in trials)
    assert len(run.of_type("preview")) == 5 + 2
    start, lifted = (row["score"][0] for row in history_of(run)["rows"])
    assert lifted > start and trials[-1][1] == f"best {lifted:.3g}", "the picture that was found is made with all steps"


@pytest.mark.parametrize("node", ["DNOSaveNoise", "DNONoiseProbability"])
def test_what_other_nodes_say_stands_on_them_too(comfy, node):
    graph = Workflow()
    inputs = {"filename_prefix": "dno/page"} if node == "DNOSaveNoise" else {"picture": 0}
    told = graph.node(node, noise=graph.dno()[2], **inputs)
    if node == "DNONoiseProbability":
        graph.keep("image", told[2])
    run = comfy.run(graph)
    assert (told.id, run.outputs[told.id]["text"][0]) in texts_of(run)


def test_a_saved_picture_says_what_it_scored(comfy):
    graph = Workflow()
    ours = graph.dno(iterations=1)
    saved = graph.node("SaveImage", images=ours[1], filename_prefix="scored")
    graph.node("DNOTestHistory", history=ours[3])
    run = comfy.run(graph, extra_pnginfo={"workflow": {}})
    file = run.outputs[saved.id]["images"][0]["filename"]
    found = json.loads(Image.open(comfy.folder / "output" / file).text["dno"])[ours.id]
    first, last = history_of(run)["rows"]
    assert found["reward"] == "brightness" and found["start"] == first["score"]
    assert found["best"] == [max(pair) for pair in zip(first["score"], last["score"], strict=True)]
    assert len(found["P"]) == 2 and all(0.01 < float(p) <= 1 for p in found["P"])


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_stop_and_keep_ends_a_search_within_one_network_call_with_its_best(comfy, when):
    graph = Workflow(obstacle="slow")
    ours = graph.dno(iterations=50, steps=6, seed=len(when))  # a workflow of its own: ComfyUI would keep the other's
    graph.keep("image", ours[1])
    graph.keep("noise", ours[2])
    graph.node("DNOTestHistory", history=ours[3])
    moment, asked = 2 * 14 + (3 if when == "forward" else 10), []

    def stop(run, kind, data):
        if kind == "progress" and data["value"] >= moment and not asked:
            asked.append(data["value"])
            assert comfy.post("/dno/stop", {"node": "no such node"}) == {"stopped": False}
            assert comfy.post("/dno/stop", {"node": ours.id if when == "forward" else "any"}) == {"stopped": True}

    run = comfy.run(graph, on_message=stop)
    history = history_of(run)
    calls = [data["value"] for data in run.of_type("progress") if data["value"] < data["max"]]
    assert run.ended == "execution_success" and calls[-1] <= asked[0] + 2
    told = [text for node, text in texts_of(run) if node == ours.id]
    assert re.match(r"stopping \.\.\nbest [-\d. ]+\nnow ", told[-2]), "at once, above the numbers that there are"
    assert history["stopped"] == "stopped by hand" and "stopped by hand" in run.outputs[ours.id]["text"][0]
    assert [best >= first for best, first in zip(history["best"], history["rows"][0]["score"], strict=True)]
    assert comfy.post("/dno/stop", {"node": ours.id}) == {"stopped": False}


HALTED = "app.extensionManager.command.execute('Comfy.Interrupt')"
NODES_2 = "(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
SIDE_BY_SIDE = """(ids) => {
    ids.forEach((id, place) => ((app.rootGraph ?? app.graph).getNodeById(id).pos = [place * 420, 0]))
    app.canvas.ds.scale = 0.9
    app.canvas.ds.offset = [100, 150]
    app.canvas.setDirty(true, true)
}"""
STANDS_WHOLE = """(text) => {
    const words = (written) => written.split(/\\s+/).filter(Boolean).join(" ")
    const shown = [...document.querySelectorAll(".dom-widget")].find((one) => words(one.innerText) === words(text))
    const bottom = (element) => element.getBoundingClientRect().bottom
    return shown && bottom(shown.querySelector("span")) <= bottom(shown) + 0.5
}"""
"""Whether a text stands on a classic node, with room for all of it, but for rounding to half a pixel."""
STANDS_IN_NODES_2 = """([id, text]) => {
    const shown = document.querySelector(`[data-node-id="${id}"]`)?.innerText
    return shown && text.split("\\n").every((line) => shown.includes(line.replace(/^\\d+\\. /, "")))
}"""
"""Whether a node of Nodes 2.0 says a text, as Markdown: the numbers before its lines are those of a list."""


@pytest.fixture(scope="module")
def page(comfy):
    """The front end, opened once."""
    with front_end(comfy) as page:
        yield page


@pytest.mark.parametrize("on", [False, True])
def test_in_a_browser_a_widget_of_older_workflows_is_out_of_sight_unless_it_is_on_and_keeps_its_value(comfy, page, on):
    graph = Workflow()
    ours = graph.dno(iterations=1, steps=3, keep_graphs=on)
    page.evaluate("prompt => app.loadApiJson(prompt, 'dno')", graph.prompt)
    saved = page.evaluate("(app.rootGraph ?? app.graph).serialize()")
    page.evaluate("graph => app.loadGraphData(graph)", saved)
    node = f"(app.rootGraph ?? app.graph).getNodeById({ours.id})"
    hidden = page.evaluate(f"{node}.widgets.filter(w => !{node}.isWidgetVisible(w)).map(w => w.name)")
    assert hidden == ([] if on else ["keep_graphs"])
    names = page.evaluate(f"{node}.widgets.map(w => w.name)")
    values = page.evaluate(f"{node}.serialize().widgets_values")
    assert values[names.index("keep_graphs")] is on and values[names.index("part")] == "all"
    assert page.evaluate("app.graphToPrompt().then(p => p.output)")[str(ours.id)]["inputs"]["keep_graphs"] is on


def test_in_a_browser_the_running_node_shows_picture_text_and_a_button_to_stop(comfy, page):
    graph = Workflow(obstacle="slow")
    ours = graph.dno(iterations=200, steps=4)
    saved = graph.node("PreviewImage", images=ours[1])
    page.evaluate("prompt => app.loadApiJson(prompt, 'dno')", graph.prompt)
    node = f"(app.rootGraph ?? app.graph).getNodeById({ours.id})"
    widgets = page.evaluate(f"{node}.widgets.map(w => w.name)")
    values = page.evaluate(f"{node}.serialize().widgets_values")
    assert widgets[-1] == "stop and keep the best" and len(values) == len(widgets) - 1
    page.evaluate("app.queuePrompt(0)")
    page.wait_for_function(f"{node}.imgs?.length || document.body.innerText.includes('iteration 2 of 200')")
    page.wait_for_function("document.body.innerText.includes('iteration 2 of 200')")
    page.screenshot(path=comfy.folder / "running.png")
    page.evaluate(f"{node}.widgets.find(w => w.name == 'stop and keep the best').callback()")
    page.wait_for_function("document.body.innerText.includes('stopped by hand')")
    page.wait_for_function(f"(app.nodeOutputs ?? {{}})['{saved.id}']?.images?.length")
    page.screenshot(path=comfy.folder / "stopped.png")
    page.evaluate(f"{node}.widgets.find(w => w.name == 'seed').value = 7")
    page.evaluate("app.queuePrompt(0)")
    page.wait_for_function("document.body.innerText.includes('iteration 1 of 200')")
    page.evaluate(HALTED)
    page.wait_for_function("!app.ui.lastQueueSize")
    *_, last = comfy.get("/history").values()
    kinds = [kind for kind, _ in last["status"]["messages"]]
    assert "execution_interrupted" in kinds and "execution_success" not in kinds


def test_in_a_browser_the_texts_of_reports_stand_whole_on_their_nodes(page):
    graph = Workflow()
    watched = graph.node("DNOContrastReward", negative=False)[0]
    one = graph.node("EmptyLatentImage", width=64, height=64, batch_size=1)[0]  # what is said of several is scrolled
    ours = graph.dno(iterations=2, steps=3, watch=watched, diagnose=True, latent=one)
    told = [
        graph.node("DNOReport", history=ours[3], picture=-1),
        graph.node("DNODiagnostics", history=ours[3]),
        graph.node("DNOScoreImages", images=ours[1], reward=watched),
        graph.node("DNONoiseProbability", noise=ours[2], picture=0),
    ]
    for node, picture in zip(told, (0, 1, 2, 2), strict=True):
        graph.node("PreviewImage", images=node[picture])
    nodes = [int(node.id) for node in told]
    page.evaluate("prompt => app.loadApiJson(prompt, 'dno')", graph.prompt)
    page.evaluate(SIDE_BY_SIDE, nodes)
    page.evaluate("app.queuePrompt(0)")
    page.wait_for_function("(ids) => ids.every((id) => app.nodeOutputs?.[id]?.text)", arg=nodes)
    texts = page.evaluate("(ids) => ids.map((id) => app.nodeOutputs[id].text[0])", nodes)
    for text in texts:
        page.wait_for_function(STANDS_WHOLE, arg=text, timeout=20_000)
    page.evaluate(NODES_2, True)
    for named in zip(nodes, texts, strict=True):
        page.wait_for_function(STANDS_IN_NODES_2, arg=list(named), timeout=20_000)
    page.evaluate(NODES_2, False)
