"""Every model family that ComfyUI knows, as a tiny random model: what docs/models.md tells is so."""

import model_families
import pytest
from families import FAMILIES, NOT_TRIED, VERSION
from workflows import Workflow

USUAL = [
    "SDXL", "Stable Diffusion 3", "Flux dev", "Qwen-Image", "Wan 2.1", "Z-Image",
]  # fmt: skip
CLIP = "Stable Video Diffusion"
DETACHING = ["result half detached", "input half detached"]
"""Invented families: half of what they compute has no gradient."""


@pytest.fixture(scope="module")
def told():
    """What ComfyUI tells of itself, and the rows of the families that people use most."""
    return list(model_families.inside_comfyui(VERSION, *USUAL, CLIP))


@pytest.fixture(scope="module")
def version(told):
    return told[0]


@pytest.fixture(scope="module")
def usual(told):
    return {row["family"]: row for row in told[1:]}


def wrong(row):
    """Return what there is to say against a row; None where all is right."""
    return None if model_families.right(row) else (model_families.numbers(row), row["failed"])


def test_every_family_of_this_comfyui_is_tried_or_named_with_the_reason_why_not(version):
    tried = {family.model for family in FAMILIES}
    assert set(version["classes"]) <= tried | set(NOT_TRIED)
    assert not tried & set(NOT_TRIED)


def test_names_are_given_once():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


@pytest.mark.parametrize("name", USUAL)
def test_a_family_that_people_use_is_right_in_everything(usual, name):
    assert not wrong(usual[name])


def test_a_model_that_takes_a_batch_for_one_clip_is_sampled_as_ksampler_does_and_not_searched(usual):
    numbers, failed = model_families.numbers(usual[CLIP]), usual[CLIP]["failed"]
    assert not model_families.is_wrong("KSampler", numbers["KSampler"])
    assert set(failed) == {"gradient", "by blocks", "candidates", "replay"}
    assert all("the frames of one clip" in reason for reason in failed.values())


@pytest.mark.slow
def test_every_family_is_as_docs_models_md_says(version):
    expected = model_families.results_of(version["comfyui"])
    rows = {row["family"]: row for row in model_families.inside_comfyui(*version["families"])}
    assert {name for name, row in rows.items() if wrong(row)} == {n for n, row in expected.items() if wrong(row)}


@pytest.mark.parametrize("family", DETACHING)
def test_a_model_that_detaches_a_half_is_refused_by_solvers_that_need_its_gradient(comfy, family):
    graph = Workflow(family=family)
    graph.keep("latent", graph.dno(iterations=2)[0])
    found = comfy.fail(graph)
    assert "the gradient through this model is wrong" in found and "ZeNO" in found, found


def test_a_model_that_detaches_a_half_is_searched_without_gradients(comfy):
    graph = Workflow(family=DETACHING[0])
    solver = graph.node("DNOSolverSearch", method="zero-order", candidates=2, beta=0.1, seed=0)[0]
    graph.keep("latent", graph.dno(iterations=1, solver=solver)[0])
    assert comfy.run(graph).kept["latent"]["samples"].isfinite().all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_model_whose_gradient_is_right_is_searched_in_every_precision(comfy, dtype):
    graph = Workflow(dtype=dtype)
    graph.keep("latent", graph.dno(iterations=1)[0])
    assert comfy.run(graph).kept["latent"]["samples"].isfinite().all()
