"""What is measured of a family: the nodes against ComfyUI's own samplers, and the gradient against differences.

Each measure takes a `Twin` and returns a number, 0 at best, or several by name; what it raises is the reason why the
family has none.
"""

from dataclasses import dataclass, replace

import comfy.samplers
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from comfy_server.test_nodes.stock import DNOTestStockSampler
from comfyui_dno import core, rewards
from comfyui_dno.core.problem import Best
from comfyui_dno.nodes import noise as noise_nodes
from comfyui_dno.nodes import sampler as sampler_nodes
from comfyui_dno.nodes import search as search_nodes

import nodes as stock

from . import build

SEED, STEPS, CFG, SCHEDULER = 3, 3, 2.0, "simple"
BATCH = 2
RATE = 0.05
CANDIDATES = 3
DIFFERENCES = (1e-2, 1e-3, 1e-4)


@dataclass
class Twin:
    """A family's tiny model with all that a sampler node takes."""

    family: object

    def __post_init__(self):
        self.model, self.vae = build.model(self.family), build.vae(self.family)
        self.positive, self.negative = (build.conditioning(self.family, seed) for seed in (5, 6))
        self.latent = build.latent(self.family, BATCH)

    def search(self, **settings):
        """Return the latent, the noise and the history of a DNO Sampler."""
        found = sampler_nodes.DNOSampler.execute(
            self.model, SEED, STEPS, CFG, SCHEDULER, self.positive, self.negative, self.latent, 1.0, self.vae,
            rewards.Brightness(), **{"eta": 1.0, "iterations": 0, **settings},
        )  # fmt: skip
        latent, _, noise, history, *_ = found.args
        return latent["samples"], noise, history

    def guider(self):
        """Return the stock guider of this model and these prompts."""
        guider = comfy.samplers.CFGGuider(self.model)
        guider.set_conds(self.positive, self.negative)
        guider.set_cfg(CFG)
        return guider


def difference(found, expected):
    """Return the largest difference, in parts of the largest number."""
    return float((found - expected).abs().max() / expected.abs().max())


def to_ksampler(twin):
    """Return how far 0 iterations at eta 0 are from KSampler's euler."""
    latent, _, _ = twin.search(eta=0.0)
    inputs = (twin.positive, twin.negative, twin.latent)
    (expected,) = stock.common_ksampler(twin.model, SEED, STEPS, CFG, "euler", SCHEDULER, *inputs)
    return difference(latent, expected["samples"])


def to_ancestral(twin):
    """Return how far 0 iterations at eta 1 are from euler_ancestral, given the same noises."""
    latent, noise, _ = twin.search()
    inputs = (twin.positive, twin.negative, twin.latent, 1.0, 1.0, noise)
    (expected,) = DNOTestStockSampler().sample(twin.model, SEED, STEPS, CFG, "euler_ancestral", SCHEDULER, *inputs)
    return difference(latent, expected["samples"])


class CheckedAscent(core.Solver):
    """Adam, after a comparison of the first gradient with differences.

    Attributes:
        along: error of the slope along the gradient, relative, of the batch's worst picture.
        random: likewise along a random direction that is turned towards the gradient.
    """

    def __init__(self):
        self.ascent, self.along, self.random = core.GradientAscent(lr=RATE), None, None

    def fresh(self, checkpoint=None):
        self.ascent = self.ascent.fresh(checkpoint)
        return self

    def step(self, problem, noise):
        if self.along is None:
            self.along = least(lambda step: slope_error(problem, noise, step))
            self.random = least(lambda step: problem.check_gradient(noise, step))
        return self.ascent.step(problem, noise)


def least(error):
    """Return the worst picture's error(step) at each picture's best of several steps.

    A long step sees curvature and a short one rounding; a wrong gradient is wrong at all of them.
    """
    return float(torch.stack([error(step) for step in DIFFERENCES]).min(dim=0).values.max())


def slope_error(problem, noise, step):
    """Return the relative error of the slope along the gradient, (B,)."""
    alone = replace(problem, best=Best(floor=float("-inf")), ended={}, warnings=[])
    _, gradient = alone.gradient(noise)
    flat = gradient.flat()
    direction = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-30) * flat.shape[1] ** 0.5  # as long as noise is
    ends = [alone.evaluate(noise.with_flat(noise.flat() + sign * step * direction)).scores for sign in (1, -1)]
    expected, found = (ends[0] - ends[1]) / (2 * step), (flat * direction).sum(dim=1)
    return (found - expected).abs() / expected.abs().clamp(min=1e-12)


def gradient_and_climb(twin):
    """Return the errors of the gradient, and by how much three iterations raise the worst picture's reward."""
    solver = CheckedAscent()
    _, _, history = twin.search(iterations=3, solver=solver)
    first, last = (torch.tensor(row["score"]) for row in (history.rows[0], history.rows[-1]))
    return {"along": solver.along, "random": solver.random, "rise": float((last - first).min())}


class FirstGradient(core.Solver):
    """Takes one gradient and moves nothing.

    Attributes:
        gradient: of the noise that the search starts with, (B, n).
        blocks: of the network, those that went back by themselves.
        left_whole: names of the classes of those that could not.
    """

    def __init__(self):
        self.gradient, self.blocks, self.left_whole = None, None, None

    def step(self, problem, noise):
        evaluation, gradient = problem.gradient(noise)
        known = problem.sample_map.blocks.all
        self.gradient, self.blocks = gradient.flat(), sum(block.copied is not None for block in known)
        self.left_whole = sorted({block.name for block in known if block.whole})
        return noise, evaluation


def by_blocks(twin):
    """Return how far the gradient that is made block by block is from the one of whole steps, and by which blocks."""
    plain, low = FirstGradient(), FirstGradient()
    twin.search(iterations=1, solver=plain, memory="step")
    twin.search(iterations=1, solver=low, memory="low")
    off = difference(low.gradient, plain.gradient)
    return {"off": off, "blocks": low.blocks, "left whole": low.left_whole}


def batched(twin):
    """Return how far a search that samples candidates together is from one that samples them one at a time."""
    together = twin.search(iterations=1, solver=core.Search(CANDIDATES))
    most, search_nodes.MOST_PICTURES = search_nodes.MOST_PICTURES, 1
    try:
        alone = twin.search(iterations=1, solver=core.Search(CANDIDATES))
    finally:
        search_nodes.MOST_PICTURES = most
    return difference(together[0], alone[0])


def replayed(twin):
    """Return how far SamplerCustomAdvanced, given the noise by DNO Replay Noise, is from the search's latent."""
    latent, noise, _ = twin.search(iterations=1, solver=core.Search(1))
    first, sampler, sigmas = noise_nodes.DNOReplayNoise.execute(noise).args
    node = SamplerCustomAdvanced()
    run = getattr(node, "execute", None) or node.sample
    replay = run(first, twin.guider(), sampler, sigmas, twin.latent)
    return difference(getattr(replay, "args", replay)[0]["samples"], latent)


MEASURES = {
    "KSampler": to_ksampler, "ancestral": to_ancestral, "gradient": gradient_and_climb, "by blocks": by_blocks,
    "candidates": batched, "replay": replayed,
}  # fmt: skip


def measure(family):
    """Return a family's row: a number or several by each measure's name, and what each failed measure raised."""
    row = {"failed": {}}
    twin = Twin(family)
    for name, measured in MEASURES.items():
        try:
            row[name] = measured(twin)
        except Exception as error:  # whatever a model raises is the result
            row["failed"][name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return row
