"""The search inside a real ComfyUI: what it finds and leaves alone, its progress and interruption."""

import time

import pytest
import torch
from workflows import NoiseWorkflow, Workflow, error, flags, history_of, stock_picture, warnings_of


@pytest.mark.parametrize("family, dtype", [
    ("eps", "float32"), ("v", "float32"), ("flow", "float32"), ("eps", "bfloat16"), ("eps", "float16"),
])
def test_a_few_iterations_raise_the_reward_of_every_picture(comfy, family, dtype):
    graph = Workflow(family, dtype)
    solver = graph.node("DNOSolverGradient", lr=0.03, optimizer="adam", momentum=0.9, clip=0.0)
    ours = graph.dno(iterations=2, solver=solver[0], cfg=3.0)
    graph.node("DNOTestHistory", history=ours[3])
    history = history_of(comfy.run(graph))
    scores = torch.tensor([row["score"] for row in history["rows"]])
    assert scores.shape == (3, 2)
    assert (scores[-1] > scores[0]).all(), scores
    assert history["settings"]["seed"] == 3


def test_whatever_memory_keeps_the_picture_is_the_same(comfy):
    graph = Workflow()
    memories = "auto", "fast", "step", "low", "2 GiB"
    for memory in memories:
        graph.keep(memory, graph.dno(iterations=2, memory=memory)[0])
    graph.keep("an older workflow's", graph.dno(iterations=2, keep_graphs=True)[0])
    kept = comfy.run(graph).kept
    for name in kept:
        assert error(kept[name]["samples"], kept["step"]["samples"]) < 1e-4, name
    assert len(kept) == len(memories) + 1


def test_an_unknown_memory_is_said_before_sampling(comfy):
    graph = Workflow()
    graph.keep("latent", graph.dno(iterations=2, memory="much")[0])
    try:
        run = comfy.run(graph, may_fail=True)
    except ValueError as refused:  # by a ComfyUI that looks what is in an optional list itself, as 0.33 does
        assert "much" in str(refused)
    else:
        assert "much" in str(run.error) and not run.of_type("progress")


def test_inpainting_changes_only_the_masked_part_of_noise_and_picture(comfy):
    graph = Workflow()
    latent = graph.latent(batch=2, mask="half")
    # Large steps, so that the noise becomes improbable and the regularizer pulls at all of it that it is given.
    tools = {
        "solver": graph.node("DNOSolverGradient", lr=0.5, optimizer="adam", momentum=0.9, clip=0.0)[0],
        "regularizer": graph.node("DNOProbabilityRegularizer", gamma=1.0, k=2, permutations=10, apart=True)[0],
    }
    for iterations in (0, 3):
        ours = graph.dno(iterations=iterations, latent=latent, **tools)
        graph.keep(f"latent{iterations}", ours[0])
        graph.keep(f"noise{iterations}", ours[2])
    kept = comfy.run(graph).kept
    for name, key in (("latent", "samples"), ("noise", "initial"), ("noise", "injected")):
        before, after = kept[f"{name}0"][key], kept[f"{name}3"][key]
        assert torch.equal(before[..., :4], after[..., :4]), (name, key)
        assert not torch.equal(before[..., 4:], after[..., 4:]), (name, key)


def test_an_empty_mask_is_said_before_sampling(comfy):
    graph = Workflow()
    empty = graph.node("SolidMask", value=0.0, width=64, height=64)[0]
    latent = graph.node("SetLatentNoiseMask", samples=graph.latent(scale=1.0), mask=empty)[0]
    graph.keep("latent", graph.dno(iterations=2, latent=latent)[0])
    run = comfy.run(graph, may_fail=True)
    assert "the mask is empty" in run.error["exception_message"] and not run.of_type("progress")
    graph = Workflow()
    empty = graph.node("SolidMask", value=0.0, width=64, height=64)[0]
    latent = graph.latent(scale=1.0)
    masked = graph.node("SetLatentNoiseMask", samples=latent, mask=empty)[0]
    graph.keep("latent", graph.dno(iterations=0, latent=masked)[0])
    graph.keep("given", latent)
    kept = comfy.run(graph).kept
    assert error(kept["latent"]["samples"], kept["given"]["samples"]) < 1e-5


def test_of_several_masks_those_that_are_empty_are_named(comfy):
    graph = Workflow()
    masks = [graph.node("SolidMask", value=value, width=64, height=64)[0] for value in (1.0, 0.0)]
    images = [graph.node("MaskToImage", mask=mask)[0] for mask in masks]
    batch = graph.node("ImageBatch", image1=images[0], image2=images[1])[0]
    both = graph.node("ImageToMask", image=batch, channel="red")
    latent = graph.node("SetLatentNoiseMask", samples=graph.latent(batch=2), mask=both[0])[0]
    for key, iterations in (("before", 0), ("after", 2)):
        graph.keep(key, graph.dno(iterations=iterations, latent=latent)[2])
    kept = comfy.run(graph).kept
    changed = [not torch.equal(*pair) for pair in zip(kept["before"]["initial"], kept["after"]["initial"], strict=True)]
    assert changed == [True, False]
    assert "picture 1: its mask is empty" in comfy.log() and "picture 0: its mask is empty" not in comfy.log()


@pytest.mark.parametrize("part, changed", [
    ("initial", [True, *[False] * 5]), ("first", [False, True, True, *[False] * 3]),
    ("last", [False, *[False] * 3, True, True]), ("all", [True] * 6),
])
def test_a_part_of_the_noise_is_searched_alone(comfy, part, changed):
    graph = NoiseWorkflow()
    graph.keep("before", graph.dno()[2])
    graph.keep("after", graph.dno(iterations=1, solver=graph.gradient(), part=part, part_count=2)[2])
    before, after = (comfy.run(graph).kept[key] for key in ("before", "after"))
    found = [not torch.equal(before["initial"], after["initial"])]
    found += [not torch.equal(a, b) for a, b in zip(before["injected"], after["injected"], strict=True)]
    assert found == changed


def test_too_many_noises_for_a_part_are_refused(comfy):
    graph = NoiseWorkflow()
    graph.keep("latent", graph.dno(part="last", part_count=6)[0])
    assert "with K in 1 .. 5" in comfy.fail(graph)


def test_progress_counts_every_network_call(comfy):
    graph = Workflow(obstacle="slow")
    graph.keep("latent", graph.dno(iterations=3, steps=4)[0])
    run = comfy.run(graph)
    values = [(data["value"], data["max"]) for data in run.of_type("progress")]
    # Three iterations forward and backward and a last one forward, each pass with its decode; the best's steps again.
    assert {most for _, most in values} == {3 * 2 * (4 + 1) + (4 + 1) + 4}
    assert [value for value, _ in values] == sorted(value for value, _ in values)
    assert values[-1][0] == values[-1][1]
    # Newer front ends get at most ten messages a second.
    assert len({value for value, _ in values}) >= (30 if comfy.version <= (0, 3, 75) else 15)


def test_a_time_budget_ends_the_search_early_and_keeps_the_best(comfy):
    graph = Workflow(obstacle="slow")
    ours = graph.dno(iterations=1000, seconds=3.0)
    graph.node("DNOTestHistory", history=ours[3])
    start = time.monotonic()
    history = history_of(comfy.run(graph))
    assert time.monotonic() - start < 8
    assert "time budget" in history["stopped"] and 1 <= len(history["rows"]) < 10


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_an_interruption_takes_effect_within_one_network_call_and_leaves_no_trace(comfy, record_property, when):
    picture, before = stock_picture(comfy, 3), flags(comfy)
    graph = Workflow(obstacle="slow")
    graph.keep("latent", graph.dno(iterations=3, steps=6)[0])
    an_iteration = 2 * (6 + 1)
    moment = an_iteration + (3 if when == "forward" else 10)
    interrupted = []

    def interrupt(run, kind, data):
        if kind == "progress" and data["value"] >= moment and not interrupted:
            interrupted.extend([time.monotonic(), data["value"]])
            comfy.interrupt()

    run = comfy.run(graph, on_message=interrupt)
    latency = run.messages[-1][2] - interrupted[0]
    record_property("latency_ms", round(1000 * latency))
    assert run.ended == "execution_interrupted"
    assert run.of_type("progress")[-1]["value"] <= interrupted[1] + 2
    assert torch.equal(stock_picture(comfy, 4), picture)
    assert flags(comfy) == before


def test_the_stock_pictures_above_are_sampled_anew_each_time(comfy):
    pictures = [stock_picture(comfy, nonce) for nonce in (5, 5e6)]
    assert 0 < error(*pictures) < 1e-3


def test_a_search_without_gradients_is_diagnosed_with_a_patch_that_works_in_place(comfy):
    graph = Workflow(model_seed=9)
    model = graph.node("DNOTestObstacle", model=graph.model, kind="wide block")[0]
    graph.model = graph.node("FreeU_V2", model=model, b1=1.3, b2=1.4, s1=0.9, s2=0.2)[0]
    search = graph.node("DNOSolverSearch", method="zero-order", candidates=2, beta=0.1, seed=0)[0]
    ours = graph.dno(iterations=1, steps=3, solver=search, diagnose=True)
    told = graph.node("DNODiagnostics", history=ours[3])
    graph.keep("image", told[1])
    run = comfy.run(graph)
    assert warnings_of(run, ours) == []
    assert "picture 1: still improving" in run.outputs[told.id]["text"][0]


def test_a_floor_on_what_is_watched_decides_which_picture_is_the_best(comfy):
    graph = Workflow()
    solver = graph.node("DNOSolverGradient", lr=0.1, optimizer="adam", momentum=0.9, clip=0.0)[0]
    watched = graph.node("DNOContrastReward", negative=False)[0]
    ours = graph.dno(iterations=4, solver=solver, watch=watched, floors="start - 0")
    graph.node("DNOTestHistory", history=ours[3])
    run = comfy.run(graph)
    history = history_of(run)
    start, best = history["rows"][0]["watch/contrast"], history["best_row"]["watch/contrast"]
    assert all(b >= s for b, s in zip(best, start, strict=True))
    assert any(row["watch/contrast"][0] < start[0] for row in history["rows"])
    assert "Higher rewards did not pass the floor on contrast." in run.outputs[ours.id]["text"][0]


def test_a_search_stops_at_its_target(comfy):
    graph = Workflow()
    ours = graph.dno(iterations=50, target="-1000")
    graph.node("DNOTestHistory", history=ours[3])
    history = history_of(comfy.run(graph))
    assert history["stopped"] == "every picture reached the target score -1000.0" and len(history["rows"]) == 1


@pytest.mark.parametrize("settings, message", [
    ({"floors": "0.8"}, "the floor is '0.8' and nothing is watched"),
    ({"target": "high"}, "the target is 'high'; expected a number"),
])
def test_limits_that_mean_nothing_are_refused_before_anything_is_sampled(comfy, settings, message):
    graph = Workflow()
    graph.keep("latent", graph.dno(iterations=1, **settings)[0])
    assert message in comfy.fail(graph)
