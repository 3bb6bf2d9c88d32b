"""What is measured of one use: against stock samplers, differences, and candidates that are sampled alone."""

import contextlib
import logging
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from comfyui_dno import core
from comfyui_dno.nodes import noise as noise_nodes
from comfyui_dno.nodes import sampler
from comfyui_dno.nodes import search as search_module

from .setting import NotInThisVersion, stock

PACK = "comfyui_dno"
ROOT = Path(__file__).resolve().parents[3]
"""The checkout, whatever its folder is called."""
RISE = 2e-5
"""What the score changes by in a difference: above the rounding of the network, below what bends a random one's."""


class Brightness:
    """The mean of the pixels, summed in float64 so that differences are not lost in the sum."""

    name = "brightness"

    def __call__(self, images, prompts):
        return images.double().mean(dim=(1, 2, 3))


@dataclass
class Tried:
    """How one attempt ended.

    Attributes:
        values: what was measured, by name.
        error: the message that the user reads, its line breaks gone; '' where nothing was raised.
        own: whether this pack raised it, and not PyTorch or another node.
        calls, stages: calls of the network until then, and stages of this pack's sampling runs.
        warnings: of the history and the log.
    """

    values: dict = field(default_factory=dict)
    error: str = ""
    own: bool = False
    calls: int = 0
    stages: int = 0
    warnings: list = field(default_factory=list)


class Slopes:
    """A solver that compares the gradient with differences of the score, and leaves the noise as it is."""

    differentiates = True

    def __init__(self):
        self.along, self.across = [], []

    def fresh(self, checkpoint=None):
        return self

    def step(self, problem, noise):
        evaluation, gradient = problem.gradient(noise)
        flat = gradient.flat().double()
        size = flat.norm(dim=1, keepdim=True)
        random = torch.randn(flat.shape, generator=torch.Generator().manual_seed(7), dtype=flat.dtype)
        random = torch.where(flat == 0, 0, random)  # what a mask keeps is not searched
        random = random / random.norm(dim=1, keepdim=True)
        self.along = self._error(problem, noise, flat, flat / size, 1.0)
        self.across = self._error(problem, noise, flat, random, flat.shape[1] ** 0.5)
        return noise, evaluation

    def _error(self, problem, noise, gradient, direction, gentleness):
        """Return |difference - gradient . direction| of each picture, in units of a typical slope.

        Args:
            gentleness: how much less than along the gradient the score rises in this direction. The step is longer by
                its root: rounding weighs less by that, and what bends the slope more.
        """
        size = gradient.norm(dim=1, keepdim=True)
        reach, typical = RISE * gentleness**0.5 / size, size / gentleness
        ends = [noise.flat().double() + end * reach * direction for end in (1, -1)]
        high, low = (problem.evaluate(noise.with_flat(end.float())).scores.double() for end in ends)
        slope = (high - low)[:, None] / (2 * reach)
        return ((slope - (gradient * direction).sum(1, keepdim=True)).abs() / typical)[:, 0].tolist()


def measured(use):
    """Return what is measured of a use, each part's `Tried` as a dict; or the name of the node that ComfyUI lacks."""
    without = use.start()
    try:
        setting = use.change(without)
    except NotInThisVersion as missing:
        return {"missing": str(missing)}
    parts = {"stock": tried(setting, lambda: effect(use, setting))}
    parts["start"] = tried(setting, lambda: parity(setting))
    parts["gradient"] = tried(setting, lambda: slopes(setting))
    parts["climb"] = tried(setting, lambda: climb(setting))
    parts["search"] = tried(setting, lambda: searched(setting))
    limits = {"rounding": use.rounding, "slope": use.slope, "idle": use.idle}
    return {**limits, **{name: asdict(part) for name, part in parts.items()}}


def tried(setting, measure):
    """Run a measurement and note how it ended."""
    found = Tried()
    with counted(setting.network, found), noted(found):
        try:
            found.values = measure()
        except Exception as error:  # whatever a use brings up is what is to be reported
            where = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
            found.own = where.is_relative_to(ROOT) and not where.is_relative_to(ROOT / "tests")
            found.error = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return found


@contextlib.contextmanager
def counted(network, found):
    """Count the network's calls, and the stages of sampling runs: a model that is only asked begins none."""

    def count(*_):
        found.calls += 1

    def report(*stage):
        found.stages += 1
        return told(*stage)

    hook, told = network.register_forward_pre_hook(count), core.SampleMap.report
    core.SampleMap.report = report
    try:
        yield
    finally:
        hook.remove()
        core.SampleMap.report = told


@contextlib.contextmanager
def noted(found):
    """Note what this pack warns of in the log."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.warnings.append(record.getMessage())
    log = logging.getLogger(PACK)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def effect(use, setting):
    """Sample with and without the use by stock nodes alone."""
    latent, without = sampled(setting, "euler"), sampled(use.start(), "euler")
    return {"effect": error(latent, without)} if latent.shape == without.shape else {}


def parity(setting):
    """Compare 0 iterations with the stock samplers."""
    values = {"euler": error(ours(setting, eta=0.0)[0], sampled(setting, "euler"))}
    latent, noise = ours(setting, eta=1.0)[:2]
    return {**values, "replay": error(replayed(setting, noise), latent)}


def slopes(setting):
    """Compare the gradient with differences, along itself and along a random direction."""
    solver = Slopes()
    ours(setting, iterations=1, solver=solver)
    return {"along": max(solver.along), "across": max(solver.across)}


def climb(setting):
    """Climb for three iterations of Adam."""
    return gain(setting, core.GradientAscent(lr=0.03), iterations=3)[1]


def searched(setting):
    """Search with three candidates an iteration, in one call of the model and one at a time."""
    solver = core.Search(candidates=3)
    latent, values = gain(setting, solver, iterations=1)
    with one_candidate_a_call():
        values["singles"] = error(ours(setting, iterations=1, solver=solver)[0], latent)
    return values


def gain(setting, solver, iterations):
    """Search, sample the found noise by the stock nodes, and return the latent and what was measured."""
    latent, noise, history = ours(setting, iterations=iterations, solver=solver)
    if history.warnings:
        logging.getLogger(PACK).warning("%s", " ".join(history.warnings))
    start, best = history.rows[0]["score"], history.best_row["score"]
    gained = min(b - a for a, b in zip(start, best, strict=True))
    return latent, {"gain": gained, "replay": error(replayed(setting, noise), latent)}


@contextlib.contextmanager
def one_candidate_a_call():
    most, search_module.MOST_PICTURES = search_module.MOST_PICTURES, 1
    try:
        yield
    finally:
        search_module.MOST_PICTURES = most


def ours(setting, eta=1.0, iterations=0, solver=None):
    """Return a DNO Sampler's latent, noise and history."""
    search = {"vae": setting.vae, "reward": Brightness(), "eta": eta, "iterations": iterations, "solver": solver}
    if setting.is_custom:
        found = sampler.DNOSamplerAdvanced.execute(**setting.custom, **search)
    else:
        found = sampler.DNOSampler.execute(**setting.simple, **search)
    latent, _, noise, history = found.args[:4]
    return latent["samples"], noise, history


def sampled(setting, sampler_name):
    """Return the latent of KSampler, or of SamplerCustomAdvanced."""
    if not setting.is_custom:
        return stock("KSampler", **setting.simple, sampler_name=sampler_name)["samples"]
    chosen = stock("KSamplerSelect", sampler_name=sampler_name)
    return stock("SamplerCustomAdvanced", **setting.custom, sampler=chosen)[0]["samples"]


def replayed(setting, noise):
    """Sample a noise with the stock SamplerCustomAdvanced."""
    first, chosen, _ = noise_nodes.DNOReplayNoise.execute(noise).args
    return stock("SamplerCustomAdvanced", **{**setting.custom, "noise": first}, sampler=chosen)[0]["samples"]


def error(found, expected):
    """Return the largest difference, relative to the largest expected value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()
