"""ComfyUI's sampling as a map inside a real ComfyUI: its gradients, its candidates, and what it leaves behind."""

import pytest
import torch
from workflows import Workflow, flags, notes_of, stock_picture


@pytest.mark.parametrize("family", ["eps", "v", "flow"])
def test_the_gradient_is_the_directional_difference(comfy, family):
    graph = Workflow(family)
    graph.witnessed("gradient", cfg=3.0)
    errors = notes_of(comfy.run(graph))["gradient_error"]
    assert max(errors) < 0.02, errors


@pytest.mark.parametrize("mask", ["none", "half", "soft"])
def test_the_gradient_is_right_in_img2img_and_inpainting(comfy, mask):
    graph = Workflow()
    graph.witnessed("gradient", cfg=3.0, denoise=0.6, latent=graph.latent(batch=2, mask=mask))
    errors = notes_of(comfy.run(graph))["gradient_error"]
    assert max(errors) < 0.02, errors


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


def test_a_model_that_is_loaded_beside_keeps_its_own_tensors(comfy):
    """Another pack may train it, or keep them elsewhere as well."""
    graph = Workflow(model_seed=41)
    other = graph.node("DNOTestModel", family="eps", seed=42, dtype="float32", vae_channels=4)[0]
    loaded = graph.node("KSampler", **{**graph.sampling(), "model": other}, sampler_name="euler")[0]
    witness = graph.node("DNOTestWitness", model=other, checks="storage", differentiates=True)[0]
    after = graph.dno(iterations=1, solver=witness, latent=loaded)[0]
    graph.node("DNOTestNotes", witness=witness, after=after)
    assert notes_of(comfy.run(graph))["inference_weights"] > 0


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
