"""Exact arithmetic stays exact whatever surrounds it, and random numbers are what their key says."""

import itertools

import numpy as np
import pytest
import torch
from comfyui_dno import core
from comfyui_dno.core.precision import mixed_seed, normal, outside_autocast, repeatable, wide
from comfyui_dno.core.scoring import exact
from tiny_models import sample_map

DTYPES = [torch.bfloat16, torch.float16]


def test_autocast_is_left_where_it_is_on_and_unknown_devices_are_let_be():
    a = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with outside_autocast("cpu"):
            assert (a @ a).dtype == torch.float32
        with outside_autocast("meta"):
            assert (a @ a).dtype == torch.bfloat16


def test_wide_is_float32_or_wider():
    expected = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float64: torch.float64}
    assert {dtype: wide(torch.ones(1, dtype=dtype)).dtype for dtype in expected} == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_autocast_around_it_changes_no_bit_of_a_probability(dtype):
    """At the size of Stable Diffusion with 50 steps, float16 once gave NaN: a block's sum of squares overflows."""
    z = torch.randn((1, 835584), generator=torch.Generator().manual_seed(0))
    expected = core.noise_probability(z), core.log_probabilities(z, k=4), core.log_probabilities(2 * z)
    with torch.autocast("cpu", dtype):
        found = core.noise_probability(z), core.log_probabilities(z, k=4), core.log_probabilities(2 * z)
    assert torch.equal(found[0], expected[0]) and (expected[0] > 0.01).all()
    assert all(torch.equal(*pair) for ours in (1, 2) for pair in zip(found[ours], expected[ours], strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("regularizer", [core.ProbabilityRegularizer(), core.NormRegularizer()])
def test_an_autocast_around_it_changes_no_bit_of_a_regulariser(regularizer, dtype):
    noise_map = sample_map()
    noise = core.Noise.randn((2, 3, 6, 6), 3, seed=0).map(lambda tensor: tensor * 1.5 + 0.2)
    expected, gradient = regularizer.gradient(noise_map, noise)
    with torch.autocast("cpu", dtype):
        found, inside = regularizer.gradient(noise_map, noise)
    assert torch.equal(found, expected) and torch.equal(inside.flat(), gradient.flat())
    assert (gradient.flat() != 0).any()


@pytest.mark.parametrize("solver", [core.GradientAscent(lr=0.001), core.ZeNO(2, beta=0.01), core.Search(2)])
def test_an_autocast_around_a_search_does_not_keep_noise_from_passing_the_floor(solver):
    schedule = core.Schedule(tuple(float(sigma) for sigma in range(51, 0, -1)))
    noise_map = core.SampleMap(
        lambda x, sigma: 0.3 * x, schedule, (1, 4, 64, 64), decode=lambda latent: latent[:, :3], keep_graphs=True
    )
    noise = noise_map.randn(0)
    with torch.autocast("cpu", torch.float16):
        result = core.optimize(noise_map, lambda i, p: i.mean(dim=(1, 2, 3)), noise, solver, iterations=1)
    assert result.history.warnings == [] and all(row["log_p"][0] > -4 for row in result.history.rows)


def test_keys_give_seeds_that_differ_in_what_generators_look_at():
    """PyTorch's CPU generator takes the lower 32 bits; the seeds that people type in are small."""
    seeds = [mixed_seed("direction", *key) for key in itertools.product(range(9), repeat=3)]
    assert len({seed % 2**32 for seed in seeds}) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    assert min(seed % 2**32 for seed in seeds) > 2**10


def test_a_candidate_is_no_runs_first_noise():
    """A search's first candidate was once the start of the run with seed 1,000,094."""
    noise_map = sample_map()
    drawn = core.Problem(noise_map, None).draw(0, noise_map.randn(0).flat(), seed=0)
    for seed in (1_000_094, 1_000_003, 91, 0, 1):
        assert not torch.equal(drawn[:, :108], noise_map.randn(seed).flat()[:, :108])


def test_normal_numbers_take_dtype_and_device_from_what_they_are_like_and_nothing_from_defaults():
    like = torch.zeros(3, dtype=torch.float32)
    expected = normal((4,), like, "a", 1)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(normal((4,), like, "a", 1), expected) and expected.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    assert not torch.equal(normal((4,), like, "a", 2), expected)
    assert normal((4,), like.double(), "a", 1).dtype == torch.float64


def test_the_backward_pass_of_a_float32_reward_is_not_rounded_by_an_autocast_around_it():
    images = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    weight = torch.randn((192, 64), generator=torch.Generator().manual_seed(1))

    def reward(pictures, prompts):
        with torch.autocast("cpu", enabled=False):
            return (pictures.flatten(1) @ weight).square().mean(dim=1)

    expected = exact(reward, images)[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(exact(reward, images)[1], expected)


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_random_numbers_of_every_kind_of_device_are_those_of_the_key_and_its_generator_is_left_as_found(
    monkeypatch, kind
):
    """A CPU generator stands for that of the device, which this machine need not have."""
    theirs = torch.Generator().manual_seed(3)
    if kind == "mps":
        monkeypatch.setattr(torch.mps, "_get_default_mps_generator", lambda: theirs)
    else:
        monkeypatch.setattr(getattr(torch, kind), "default_generators", (None, theirs))
        monkeypatch.setattr(getattr(torch, kind), "current_device", lambda: 1)

    def drawn(step):
        with repeatable(torch.device(kind), ("step", step)):
            return torch.cat([torch.rand(2), torch.rand(2, generator=theirs)])

    before = theirs.get_state()
    first, again, other = drawn(1), drawn(1), drawn(2)
    assert torch.equal(first, again) and not torch.isclose(first, other).any()
    assert torch.equal(theirs.get_state(), before)


def test_without_a_key_random_numbers_go_on():
    generators = torch.default_generator.get_state()
    with repeatable(torch.device("cpu"), None):
        torch.rand(2)
    assert not torch.equal(torch.default_generator.get_state(), generators)


def test_numpys_whole_numbers_are_the_seeds_that_pythons_are():
    assert mixed_seed("candidate", np.int64(3), (np.int32(4), "x")) == mixed_seed("candidate", 3, (4, "x"))
    assert mixed_seed("candidate", 3.0) != mixed_seed("candidate", 3)
