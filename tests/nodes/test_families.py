"""Every model family that ComfyUI knows, as a tiny random model: what docs/models.md tells is so."""

import model_families
import pytest
from families import FAMILIES, NOT_TRIED

USUAL = [
    "Stable Diffusion 1.5", "SDXL", "Stable Diffusion 3", "Flux dev", "Qwen-Image", "Wan 2.1", "Hunyuan Video",
    "Z-Image", "HiDream I1",
]  # fmt: skip


@pytest.fixture(scope="module")
def version():
    """What ComfyUI tells of itself."""
    (told,) = model_families.inside_comfyui()
    return told


@pytest.fixture(scope="module")
def usual():
    """The rows of the families that people use most, by name."""
    return {row["family"]: row for row in model_families.inside_comfyui(*USUAL)}


def wrong(row):
    """Return what of a row is missing or wrong; nothing where all is right."""
    numbers = model_families.numbers(row)
    found = {name: value for name, value in numbers.items() if model_families.is_wrong(name, value)}
    return found or row["failed"] or (None if model_families.right(row) else numbers)


def test_every_family_of_this_comfyui_is_tried_or_named_with_the_reason_why_not(version):
    tried = {family.model for family in FAMILIES}
    assert set(version["classes"]) <= tried | set(NOT_TRIED)
    assert not tried & set(NOT_TRIED)


def test_names_are_given_once():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


@pytest.mark.parametrize("name", USUAL)
def test_a_family_that_people_use_is_right_in_everything(usual, name):
    assert not wrong(usual[name])


@pytest.mark.slow
def test_every_family_is_as_docs_models_md_says(version):
    expected = model_families.results_of(version["comfyui"])
    rows = {row["family"]: row for row in model_families.inside_comfyui(*version["families"])}
    assert {name for name, row in rows.items() if wrong(row)} == {n for n, row in expected.items() if wrong(row)}
