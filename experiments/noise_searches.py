"""What the experiments on gradient-free search share: generators, rewards, searches, and how searches are compared.

A search is kept as a curve: after each iteration how often the reward was asked, how many seconds of the processor were
used, and the best score so far of a noise that passes the floor on P. Two searches are then compared at equal
evaluations or at equal seconds, whichever ended later.
"""

import statistics
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.nn import functional as F

from .. import core, rewards
from .drawing import logarithmic, panels

IN_ONE_CALL = 16
TERRAIN = {"terrain_diffusion": "adaptive-terrain-diffusion==0.4.2"}
"""Module and package of `terrain`."""
FACES = {"gan_face_generate": "gan_face_generate==1.1.1"}
"""Module and package of `faces`."""


def random_network():
    """Return a generator that costs next to nothing: pictures (3, 64, 64) of 4096 numbers, by three random layers."""
    generator = torch.Generator().manual_seed(7)
    shapes = (16, 4, 5, 5), (16, 16, 5, 5), (3, 16, 5, 5)
    first, second, last = (torch.randn(s, generator=generator) / (s[1] * 25) ** 0.5 for s in shapes)

    def pictures(noise):
        x = F.interpolate(noise, scale_factor=2, mode="bilinear", align_corners=False)
        for weight in (first, second):
            x = 2 * torch.conv2d(x, weight, padding=2).tanh()
        return torch.conv2d(x, last, padding=2).sigmoid()

    return core.generator_map(pictures, (4, 32, 32), most_rows=IN_ONE_CALL)


def embedded(steps, eta=0.5, prompt="black dog", cfg=2.0):
    """Return the embedded model in a few steps; one, or eta 0, makes a deterministic generator of x_T."""
    return core.load_embedded(prompt, steps=steps, eta=eta, cfg=cfg, most_rows=IN_ONE_CALL, keep_graphs=True)


def terrain():
    """Return the one-step consistency model of height maps (128 x 128) in adaptive-terrain-diffusion, nobody's here."""
    network, sigma = _terrain_network(), 80.0

    def heights(noise):
        level = noise.new_full((len(noise),), sigma)
        (denoised,) = network(sigma * noise, level, torch.full_like(level, 0.5))[:1]
        return ((denoised + 1) / 2).expand(-1, 3, -1, -1)

    return core.generator_map(heights, (1, 128, 128), most_rows=4)


@cache
def _terrain_network():
    folder = find_spec("terrain_diffusion").submodule_search_locations[0]
    return rewards.OnnxTower(Path(folder) / "weights/terrain_consistency_unet_difficulty100.onnx").module


def faces():
    """Return the DCGAN of faces (64 x 64, of 100 numbers) in gan_face_generate, nobody's here."""
    generator = _face_generator()
    return core.generator_map(lambda noise: (generator(noise) + 1) / 2, (100, 1, 1), most_rows=IN_ONE_CALL)


@cache
def _face_generator():
    from gan_face_generate.models import Generator

    generator = Generator(ngpu=0, nc=3, nz=100, ngf=64)
    path = Path(find_spec("gan_face_generate").submodule_search_locations[0]) / "weights.tar"
    generator.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["netG_state_dict"])
    return generator.eval().requires_grad_(False)


class Detector:
    """How many of the 8 x 8 tiles of a picture are brighter on average than a threshold: 0 .. 64, a step function."""

    name, differentiable = "detector", False

    def __init__(self, threshold):
        self.threshold = threshold

    def __call__(self, images, prompts=None):
        return (F.adaptive_avg_pool2d(images.mean(dim=1), 8) > self.threshold).flatten(1).sum(dim=1).float()


class Passable:
    """How many of the 16 x 16 tiles of a height map are nowhere steeper than a threshold: 0 .. 256."""

    name, differentiable = "passable tiles", False

    def __call__(self, images, prompts=None):
        heights = F.pad(images[:, :1], (0, 1, 0, 1), mode="replicate")
        down, across = heights.diff(dim=2)[..., :-1], heights.diff(dim=3)[:, :, :-1]
        steepest = F.adaptive_max_pool2d(torch.maximum(down.abs(), across.abs()), 16)
        return (steepest < 0.008).flatten(1).sum(dim=1).float()


class Counted:
    """A reward that counts the pictures that it was asked about."""

    def __init__(self, reward):
        self.reward, self.count = reward, 0
        self.name, self.differentiable = reward.name, getattr(reward, "differentiable", True)

    def __call__(self, images, prompts=None):
        self.count += len(images)
        return self.reward(images, prompts)


def arms(evaluations, seed):
    """Return name -> (solver, iterations): the searches that make about so many evaluations.

    ZeNO has one more for its last look. Hybrid-2 goes back through the generator and asks for 5 in an iteration; Trust
    takes the reward's own gradient and asks for 2.
    """
    rounds = max((evaluations - 1) // IN_ONE_CALL, 1)
    return {
        "ZeNO": (core.ZeNO(IN_ONE_CALL, seed=seed, schedule="geometric"), rounds),
        "best of N": (core.Search.best_of_n(IN_ONE_CALL, seed=seed), rounds),
        "pCN": (core.Search.pcn(seed=seed), IN_ONE_CALL * rounds),
        "DNO, Hybrid-2": (core.GradientAscent.ou(core.Hybrid2(q=4, mu=0.1, seed=seed)), max(evaluations // 5, 1)),
        "DNO, Trust": (core.TrustAscent(), max(evaluations // 2, 1)),
    }


def search(sample_map, reward, arm, evaluations, seed):
    """Run one search from a seed's noise.

    Returns:
        its curve {"evaluations": [..], "processor seconds": [..], "best": [..]}, and "start", the first noise's score;
        and the core.Result.
    """
    counted, started = Counted(reward), time.process_time()
    curve = {"evaluations": [], "processor seconds": [], "best": []}

    def note(evaluation, best):
        curve["evaluations"].append(counted.count)
        curve["processor seconds"].append(round(time.process_time() - started, 3))
        curve["best"].append(round(best.scores.item(), 4))

    solver, iterations = arms(evaluations, seed)[arm]
    result = core.optimize(
        sample_map, counted, sample_map.randn(seed), solver, iterations=iterations, callback=note
    ).whole()
    return curve | {"start": round(result.history.column("score")[0], 4)}, result


def small(images, side=64):
    """Return the first of some pictures as uint8 (3, side, side), for a report."""
    return (255 * F.interpolate(images[:1].clamp(0, 1), size=(side, side), mode="area"))[0].round().to(torch.uint8)


def best_at(result, unit, most):
    """Return the best score that a search had found within `most` of a unit, "evaluations" or "processor seconds".

    Example:
        >>> best_at({"processor seconds": [1, 2, 3], "best": [0.1, 0.5, 0.6]}, "processor seconds", 2.5)
        0.5
    """
    within = [best for spent, best in zip(result[unit], result["best"], strict=True) if spent <= most]
    return within[-1] if within else result["best"][0]


def chosen(results, **case):
    """Return seed -> result of the results whose case has these values."""
    return {
        result["case"]["seed"]: result
        for result in results
        if all(result["case"][key] == value for key, value in case.items())
    }


def leads(results, unit, first="ZeNO", second="best of N", **case):
    """Return, one a seed, how far one arm's best is above another's when both have spent what the cheaper one did."""
    ours, theirs = (chosen(results, arm=arm, **case) for arm in (first, second))
    found = []
    for seed in sorted(ours.keys() & theirs.keys()):
        most = min(ours[seed][unit][-1], theirs[seed][unit][-1])
        found.append(best_at(ours[seed], unit, most) - best_at(theirs[seed], unit, most))
    return found


def draw_panels(results, by, values, names):
    """Return a Figure with a panel for each value of the cases' `by`: the arms' mean gains by seconds."""
    figure, (row,) = panels(1, len(values))
    for axes, value in zip(row, values, strict=True):
        draw_curves(axes, [result for result in results if result["case"][by] == value], "processor seconds", names)
        axes.set_title(value)
    return figure


def draw_curves(axes, results, unit, names):
    """Draw each arm's mean gain over the seeds by what it has spent, on a logarithmic axis.

    Args:
        axes: of matplotlib.
        results: of one panel.
        unit: "evaluations" or "processor seconds".
        names: of the arms.
    """
    for index, arm in enumerate(names):
        found = list(chosen(results, arm=arm).values())
        if found:
            # Up to where the shortest has come.
            last = min(len(each["best"]) for each in found)
            spent = [statistics.fmean(each[unit][place] for each in found) for place in range(last)]
            gain = [statistics.fmean(each["best"][place] - each["start"] for each in found) for place in range(last)]
            axes.plot(spent, gain, color=f"C{index}", label=arm)
    logarithmic(axes)
    axes.set(xlabel=unit, ylabel="gain of the best")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8)
