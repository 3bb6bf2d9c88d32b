"""The loop: evaluate, record, keep the best, update, until the budget is used up or something says stop."""

import contextlib
import logging
import math
import time
from dataclasses import dataclass, replace

import torch

from .diagnostics import diagnose as diagnosis_of
from .history import EARLIER, History
from .noise import Checkpoint, Noise
from .problem import Best, Problem
from .regularizer import P_SUSPICIOUS, NormRegularizer
from .scoring import NotFiniteError, name_of
from .solvers import GradientAscent

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What `optimize` returns: everything of the best so far, per picture.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise = sample_map.randn(seed=0)
        >>> result = core.optimize(sample_map, rewards.Brightness(), noise, iterations=2)
        >>> torch.allclose(sample_map.sample(result.noise), result.images)
        True
        >>> result.history.stopped
        '2 iterations done'

    Attributes:
        noise: the Noise that samples to it, with the settings that replay it and a checkpoint to go on from.
        images: (B, 3, H, W), not clamped.
        latent: (B, C, H, W).
        history: the History, `history.stopped` says why it ended.
    """

    noise: Noise
    images: torch.Tensor
    latent: torch.Tensor
    history: History


def optimize(
    sample_map,
    reward,
    noise,
    solver=None,
    regularizer=None,
    iterations=50,
    seconds=None,
    watch=(),
    callback=None,
    target=None,
    stop_probability=None,
    floor=P_SUSPICIOUS,
    check_gradient=False,
    diagnose=False,
):
    """Search the sampling noise for pictures of higher reward (Eq. (7); with a regulariser Eq. (12)).

    N iterations are N updates and N + 1 evaluations, the last forward-only; 0 iterations sample once. Ctrl-C, a spent
    budget or a reward that turns non-finite (of one picture is enough) end the run, and the best so far is returned.

    A noise that an earlier run returned goes on where that run ended, when the solver is of the same name: its last
    noise, its optimiser's moments and its count of iterations. Another solver starts at the best noise.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise = sample_map.randn(seed=0)
        >>> result = optimize(sample_map, rewards.Brightness(), noise, core.GradientAscent(lr=0.1), iterations=4)
        >>> rewards.Brightness()(result.images) > rewards.Brightness()(sample_map.sample(noise))
        tensor([True])

    Args:
        sample_map: the SampleMap.
        reward: (images, prompts) -> scores (B,), higher is better.
        noise: the Noise to start from, e.g. sample_map.randn(seed), or an earlier Result's.
        solver: default GradientAscent().
        regularizer: a ProbabilityRegularizer, or None for the plain Eq. (7).
        iterations: N >= 0.
        seconds: time budget; no iteration is begun that would probably outlast it.
        watch: rewards that are recorded and never optimised.
        callback: called as callback(evaluation, best) after every evaluation; raise from it to interrupt.
        target: stop when every picture's best score has reached it.
        stop_probability: stop when P(z) of every picture is below it.
        floor: least P, of the whole z and of x_T alone, of a noise that may become the best; 0 admits all.
        check_gradient: first compare the gradient with a directional difference and record the error.
        diagnose: at the end find out why the best stopped improving (`diagnostics`): about ten more gradients, which
            the time budget does not cover.

    Returns:
        Result: .noise .images .latent .history, each picture's best so far.

    Raises:
        ValueError: bad arguments, a noise that was made for another map, or the reward or its gradient is not finite
            at the very first evaluation.
    """
    if iterations < 0:
        raise ValueError(f"iterations is {iterations}; expected 0 or more")
    sample_map.check_settings(noise)
    given = noise
    solver, noise, first = _started(solver or GradientAscent(), given)
    if regularizer is not None and not getattr(solver, "regularized", True):
        log.warning("%s does not use the regularizer", name_of(solver))
        regularizer = None
    best = Best(floor=_log(floor))
    problem = Problem(sample_map, reward, regularizer, tuple(watch), iterations, best)
    done = first  # updates behind `noise`, for the checkpoint
    history = History(reward=name_of(reward))
    if isinstance(getattr(reward, "part_settings", None), dict):
        history.settings["parts"] = reward.part_settings
    try:
        if check_gradient:
            history.settings["gradient_error"] = problem.check_gradient(noise).tolist()
            problem.started = time.perf_counter()
        if first > 0 and not torch.equal(given.flat(), noise.flat()):
            problem.iteration = EARLIER
            problem.evaluate(given)
        for iteration in range(first, first + iterations + 1):
            problem.iteration = iteration
            if iteration < first + iterations:
                noise, evaluation = solver.step(problem, noise)
                done = iteration + 1
            else:
                evaluation = problem.evaluate(noise)
            history.record(evaluation)
            if callback is not None:
                callback(evaluation, best)
            left = seconds if done > iteration else None  # nothing is cut short after the last evaluation
            history.stopped = _reason_to_stop(history, best, left, target, stop_probability)
            if history.stopped:
                break
        history.stopped = history.stopped or f"{iterations} iterations done"
    except KeyboardInterrupt:
        if not history.rows:
            raise
        history.stopped = "interrupted"
    except NotFiniteError as error:
        if not history.rows:
            raise
        history.stopped, done = str(error), None
    log.info("stopped after %d evaluations: %s", len(history.rows), history.stopped)
    history.conclude(best, problem)
    if diagnose and history.stopped != "interrupted":
        with contextlib.suppress(KeyboardInterrupt):
            history.diagnosis = diagnosis_of(problem, best.noise)
    checkpoint = None  # where the reward or its gradient broke, nobody can go on
    if done is not None:
        checkpoint = Checkpoint(replace(noise, settings={}), name_of(solver), done, _memory(solver))
    settings = {**given.settings, **sample_map.settings}
    found = replace(best.noise, settings=settings, kept=given.kept, checkpoint=checkpoint)
    return Result(found, best.images, best.latent, history)


def reno(sample_map, reward, noise, iterations=50, seconds=None, watch=(), callback=None):
    """Optimise x_T alone with ReNO's settings (Eyring et al. 2024); meant for one-step and few-step models.

    Nesterov SGD at learning rate 5 with gradients clipped to 0.1, and the norm's log density with weight 0.01.

    Args and Returns:
        as `optimize`.
    """
    return optimize(
        replace(sample_map, part="initial"), reward, noise, GradientAscent.reno(), NormRegularizer(), iterations,
        seconds, watch, callback,
    )  # fmt: skip


def stages(sample_map, solver, iterations):
    """Return how often `sample_map.on_step` is called by `optimize`, for progress bars: network calls and decodes."""
    each = solver.stages(sample_map) if hasattr(solver, "stages") else 2 * sample_map.stages
    return iterations * each + sample_map.stages


def _started(solver, noise):
    """Return the solver ready to run, the noise of its first iteration, and that iteration's number."""
    checkpoint = noise.checkpoint
    if checkpoint is None or checkpoint.solver != name_of(solver):
        return solver.fresh(), replace(noise, checkpoint=None), 0
    return solver.fresh(checkpoint), replace(checkpoint.noise, settings=noise.settings), checkpoint.iteration


def _memory(solver):
    return solver.memory() if hasattr(solver, "memory") else {}


def _reason_to_stop(history, best, seconds, target, stop_probability):
    rows = history.rows
    if target is not None and bool((best.scores >= target).all()):
        return f"every picture reached the target score {target}"
    if stop_probability is not None and all(value < _log(stop_probability) for value in rows[-1]["log_p"]):
        return f"P(z) fell below {stop_probability}"
    if seconds is not None:
        last = rows[-1]["seconds"] - (rows[-2]["seconds"] if len(rows) > 1 else 0.0)
        if rows[-1]["seconds"] + last > seconds:
            return f"the time budget of {seconds} s is spent"
    return ""


def _log(value):
    return math.log(value) if value > 0 else -math.inf
