"""The search inside a real ComfyUI: gradients, what it leaves behind, progress, interruption."""

import time

import pytest
import torch
from workflows import Workflow, error, flags, history_of, notes_of, stock_picture

MODELS = [("eps", "float32"), ("v", "float32"), ("flow", "float32")]


@pytest.mark.parametrize("family, dtype", [*MODELS, ("eps", "bfloat16"), ("eps", "float16")])
def test_a_few_iterations_raise_the_reward_of_every_picture(comfy, family, dtype):
    graph = Workflow(family, dtype)
    solver = graph.node("DNOSolverGradient", lr=0.03, optimizer="adam", momentum=0.9, clip=0.0)
    ours = graph.dno(iterations=4, solver=solver[0], cfg=3.0)
    graph.node("DNOTestHistory", history=ours[3])
    history = history_of(comfy.run(graph))
    scores = torch.tensor([row["score"] for row in history["rows"]])
    assert scores.shape == (5, 2)
    assert (scores[-1] > scores[0]).all(), scores
    assert history["settings"]["seed"] == 3


@pytest.mark.parametrize("family, dtype", MODELS)
def test_the_gradient_is_the_directional_difference(comfy, family, dtype):
    graph = Workflow(family, dtype)
    graph.witnessed("gradient", cfg=3.0)
    errors = notes_of(comfy.run(graph))["gradient_error"]
    assert max(errors) < 0.02, errors


@pytest.mark.parametrize("mask", ["none", "half", "soft"])
def test_the_gradient_is_right_in_img2img_and_inpainting(comfy, mask):
    graph = Workflow()
    graph.witnessed("gradient", cfg=3.0, denoise=0.6, latent=graph.latent(batch=2, mask=mask))
    errors = notes_of(comfy.run(graph))["gradient_error"]
    assert max(errors) < 0.02, errors


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


def test_candidates_flattened_into_one_batch_equal_each_alone(comfy):
    graph = Workflow()
    graph.witnessed("candidates", denoise=0.6, latent=graph.latent(batch=2, mask="soft"))
    assert notes_of(comfy.run(graph))["candidates_error"] < 1e-5


def test_another_packs_detaching_attention_does_not_falsify_the_gradient(comfy):
    noises = []
    for obstacle in (None, "detaching attention"):
        graph = Workflow(obstacle=obstacle)
        graph.keep("noise", graph.dno(iterations=2)[2])
        noises.append(comfy.run(graph).kept["noise"]["initial"])
    assert torch.equal(*noises)


def test_the_gradient_is_right_with_a_lora_and_the_model_without_it_is_unharmed(comfy):
    before = stock_picture(comfy, 1)
    graph = Workflow(obstacle="lora")
    graph.witnessed("gradient storage", cfg=3.0)
    assert max(notes_of(comfy.run(graph))["gradient_error"]) < 0.02
    assert torch.equal(stock_picture(comfy, 2), before)


def test_weights_are_not_copied(comfy):
    graph = Workflow(model_seed=1)
    graph.witnessed("storage")
    notes = notes_of(comfy.run(graph))
    assert notes == {"same_storage": True, "inference_weights": 0, "trainable_weights": 0}


def test_inside_gradients_are_on_and_afterwards_every_flag_is_as_before(comfy):
    before = flags(comfy)
    graph = Workflow()
    graph.witnessed("flags")
    inside = notes_of(comfy.run(graph))["flags"]
    assert before["inference"] and not before["grad"] and not before["in_training"]
    assert inside["grad"] and not inside["inference"] and inside["in_training"] is not False
    assert before["kernels"] is None or before["kernels"] != inside["kernels"]
    assert flags(comfy) == before


def test_flags_are_as_before_after_an_exception_too(comfy):
    before = flags(comfy)
    graph = Workflow()
    graph.reward = graph.node("DNOTestReward", kind="raises")[0]
    graph.dno(iterations=2)
    graph.keep("latent", [str(len(graph.prompt)), 0])
    assert "a bug in a reward" in comfy.fail(graph)
    assert flags(comfy) == before


def test_progress_counts_every_network_call_and_each_iteration_shows_a_preview(comfy):
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
    assert len(run.of_type("preview")) == 4


@pytest.mark.parametrize("kind, calls", [("network", 3), ("fails", 1)])
def test_previews_need_no_graph_and_one_that_fails_ends_no_search(comfy, kind, calls):
    graph = Workflow(model_seed=70 + calls)
    watched = graph.node("DNOTestPreviewer", model=graph.model, kind=kind)
    graph.model = watched[0]
    ours = graph.dno(iterations=2)
    graph.node("DNOTestNotes", witness=watched[1], after=ours[0])
    graph.node("DNOTestHistory", history=ours[3])
    run = comfy.run(graph)
    assert history_of(run)["stopped"] == "2 iterations done"
    assert notes_of(run) == {"calls": calls, "graphs": 0}
    assert ("RuntimeError: a bug in a previewer" in comfy.log()) or kind != "fails"


def test_an_interruption_that_a_preview_notices_ends_the_search(comfy):
    graph = Workflow()
    graph.model = graph.node("DNOTestPreviewer", model=graph.model, kind="interrupted")[0]
    graph.keep("latent", graph.dno(iterations=1)[0])
    assert comfy.run(graph, may_fail=True).ended == "execution_interrupted"


def test_a_preview_of_a_latent_that_is_not_finite_ends_no_search(comfy):
    graph = Workflow(model_seed=75)
    broken = graph.node("DNOTestObstacle", model=graph.model, kind="nan")[0]
    watched = graph.node("DNOTestPreviewer", model=broken, kind="nan")
    graph.model = watched[0]
    graph.keep("latent", graph.dno(iterations=0)[0])
    found = comfy.fail(graph)
    assert "picture" in found and "not finite" in found, found


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


def test_kept_graphs_give_the_same_picture(comfy):
    graph = Workflow()
    for key, keep_graphs in (("re-run", False), ("kept", True)):
        graph.keep(key, graph.dno(iterations=2, keep_graphs=keep_graphs)[0])
    kept = comfy.run(graph).kept
    assert error(kept["kept"]["samples"], kept["re-run"]["samples"]) < 1e-4


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
