"""Numbers that are none are refused where they enter, whatever takes them."""

import math

import pytest
import torch
from comfyui_dno import core
from comfyui_dno.core.models.denoiser import Guided
from comfyui_dno.core.models.pipeline_families import StableDiffusion

SCHEDULE = core.Schedule([2.0, 1.0, 0.0])
POINT = torch.zeros(1, 1)


def sample_map(**settings):
    return core.SampleMap(lambda x, sigma: x, SCHEDULE, (1, 3, 4, 4), **settings)


NUMBERS = {
    "lr": core.GradientAscent,
    "clip": core.GradientAscent,
    "momentum": core.GradientAscent,
    "beta": core.Search,
    "tau": core.ZeNO,
    "scale": core.LGD,
    "mu": core.Hybrid1,
    "gamma": core.ProbabilityRegularizer,
    "weight": core.NormRegularizer,
    "eta": sample_map,
    "rerun_tolerance": sample_map,
    "cfg": lambda cfg: Guided(lambda *given: POINT, POINT, POINT, cfg),
}
OTHERS = [("beta", core.ZeNO), ("mu", core.Hybrid2), ("mu", core.ZerothOrder), ("cfg", lambda cfg: of_pipeline(cfg))]


def of_pipeline(cfg):
    return StableDiffusion(None, cfg)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name, taker", [*NUMBERS.items(), *OTHERS])
def test_a_number_that_is_not_finite_is_refused_by_its_name(name, taker, value):
    with pytest.raises(ValueError, match=rf"{name} is {value}|{name} {value}"):
        taker(**{name: value})


COUNTS = [
    ("candidates", core.Search), ("candidates", core.ZeNO), ("samples", core.LGD), ("q", core.Hybrid1),
    ("q", core.Hybrid2), ("q", core.ZerothOrder), ("k", core.ProbabilityRegularizer),
    ("permutations", core.ProbabilityRegularizer), ("most_rows", sample_map),
]  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, 2.5, -1])
@pytest.mark.parametrize("name, taker", COUNTS)
def test_a_count_that_is_not_whole_is_refused_by_its_name(name, taker, value):
    with pytest.raises(ValueError, match=rf"{name} (is )?{value}"):
        taker(**{name: value})


@pytest.mark.parametrize("limits", [{"iterations": math.nan}, {"iterations": 1.5}, {"seconds": math.nan}])
def test_limits_of_a_search_are_numbers(limits):
    noise_map = sample_map()
    with pytest.raises(ValueError, match="(iterations|seconds) is"):
        core.optimize(noise_map, lambda images, prompts: images.mean((1, 2, 3)), noise_map.randn(), **limits)


@pytest.mark.parametrize("sigmas", [[math.nan, 1, 0], [2, math.nan, 0], [2, 1, math.nan], [math.inf, 1, 0]])
def test_sigmas_are_finite(sigmas):
    with pytest.raises(ValueError, match="sigmas are"):
        core.Schedule(sigmas)
