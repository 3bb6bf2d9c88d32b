"""The loop: evaluate, record, keep the best, update, until the budget is used up or something says stop."""

import logging
import math
import time
from dataclasses import dataclass

import torch

from .estimators import name_of
from .history import History
from .noise import Noise
from .problem import Best, NotFiniteError, Problem
from .regularizer import P_SUSPICIOUS
from .solvers import GradientAscent

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What `optimize` returns: everything of the best so far, per picture.

    Attributes:
        noise: the Noise that samples to it.
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
):
    """Search the sampling noise for pictures of higher reward (Eq. (7); with a regulariser Eq. (12)).

    N iterations are N updates and N + 1 evaluations, the last forward-only; 0 iterations sample once. Ctrl-C, a spent
    budget or a reward that turns non-finite (of one picture is enough) end the run, and the best so far is returned.

    Args:
        sample_map: the SampleMap.
        reward: (images, prompts) -> scores (B,), higher is better.
        noise: the Noise to start from, e.g. sample_map.randn(seed).
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

    Returns:
        Result: .noise .images .latent .history, each picture's best so far.

    Raises:
        ValueError: bad arguments, or the reward or its gradient is not finite at the very first evaluation.
    """
    if iterations < 0:
        raise ValueError(f"iterations is {iterations}; expected 0 or more")
    best = Best(floor=_log(floor))
    problem = Problem(sample_map, reward, regularizer, tuple(watch), iterations, best)
    solver = (solver or GradientAscent()).fresh()
    history = History(reward=name_of(reward))
    try:
        if check_gradient:
            history.settings["gradient_error"] = problem.check_gradient(noise).tolist()
            problem.started = time.perf_counter()
        for iteration in range(iterations + 1):
            problem.iteration = iteration
            if iteration < iterations:
                noise, evaluation = solver.step(problem, noise)
            else:
                evaluation = problem.evaluate(noise)
            history.record(evaluation)
            if callback is not None:
                callback(evaluation, best)
            history.stopped = _reason_to_stop(history, best, seconds, target, stop_probability)
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
        history.stopped = str(error)
    log.info("stopped after %d evaluations: %s", len(history.rows), history.stopped)
    # An iteration that was interrupted may have found the best and has no row.
    history.best = best.iterations.clamp(max=len(history.rows) - 1).tolist()
    return Result(best.noise, best.images, best.latent, history)


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
