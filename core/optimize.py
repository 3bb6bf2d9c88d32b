"""The loop: evaluate, record, keep the best, update, until the budget is used up or something says stop."""

import contextlib
import logging
import math
import time
from dataclasses import dataclass, replace

import torch

from .belief import waits_for_a_map
from .checks import check_whole
from .diagnostics import diagnose as diagnosis_of
from .floors import check_floors, watched_names
from .history import EARLIER, History
from .limits import INTERRUPTED, STOPPED, Limits, Stopped, log_of
from .memory import is_out_of_memory
from .noise import Checkpoint, Noise
from .picture_regularizer import parted, refuse_without_gradient
from .problem import Best, Problem
from .regularizer import P_SUSPICIOUS, NormRegularizer, layouts_of_a_search
from .scoring import (
    LostGradientError,
    NotFiniteError,
    RewardError,
    judges_latents,
    name_of,
    remarks,
    require_differentiable,
    why_failed,
)
from .solvers import Fast, GradientAscent, default_solver
from .words import counted, first_line

log = logging.getLogger(__name__)

BROKEN_DEVICE = "CUDA error", "HIP error"
"""In the message of an error after which nothing on the device can be used."""


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
        failure: the error that ended it, out of memory or a reward's; None where there was none.
    """

    noise: Noise
    images: torch.Tensor
    latent: torch.Tensor
    history: History
    failure: Exception | None = None

    def whole(self):
        """Return itself, for studies: half a search is none.

        Raises:
            KeyboardInterrupt: it was interrupted.
            RuntimeError or FileNotFoundError: its `failure`.
        """
        if self.history.stopped == INTERRUPTED:
            raise KeyboardInterrupt
        if self.failure is not None:
            raise self.failure
        return self


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
    stop=None,
    floors=None,
    stop_below=None,
    preview=None,
):
    """Search the sampling noise for pictures of higher reward (Eq. (7); with a regulariser Eq. (12)).

    N iterations are N updates and N + 1 evaluations, the last forward-only; 0 iterations sample once. Ctrl-C, a spent
    budget, memory that runs out, a reward that fails in the middle, or rewards of all pictures that turn non-finite end
    the run, and the best so far is returned; `Result.whole` raises where that is not wanted. A picture whose reward
    alone turns non-finite stays at its best, and the others go on.

    At the end the best noise is sampled once more and compared with the latent that is returned, so that
    `history.warnings` can tell when a model keeps a state or draws random numbers of its own; 0 iterations skip that.

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
        noise: the Noise to start from, e.g. sample_map.randn(seed), or an earlier Result's. An x_T of zeros is no
            noise: it stays as it is, and the injected noises alone are searched.
        solver: default `solvers.default_solver`.
        regularizer: a ProbabilityRegularizer, a PictureRegularizer (with or without one of the noise beside it), or
            None for the plain Eq. (7).
        iterations: N >= 0.
        seconds: time budget; no iteration is begun that, with what follows the last one, would probably outlast it.
        watch: rewards that are recorded and never optimised.
        callback: called as callback(evaluation, best) after every evaluation; raise from it to interrupt.
        target: stop when every picture's best score has reached it.
        stop_probability: stop when P(z) of every picture is below it.
        floor: least P, of the whole z and of x_T alone, of a noise that may become the best; 0 admits all.
        check_gradient: first compare the gradient with a directional difference and record the error.
        diagnose: at the end find out why the best stopped improving (`diagnostics`): about ten more gradients, which
            the time budget does not cover.
        stop: asked before every network call; once it returns True and a noise has been evaluated, the search ends at
            once and the best so far is returned, neither checked nor diagnosed.
        floors: watched reward's name -> the least score of a picture that may become the best: a number, or Drop(d)
            for no more than d below the first evaluation of this very call. Without, P alone decides what is
            admissible, and P does not see every picture that a reward has ruined. `history.held` tells which held.
        stop_below: watched reward's name -> a number; stop when every picture's score is below it.
        preview: called as preview(stage, evaluation, best) by a solver with long iterations, between evaluations: a
            sentence, and what it has so far, which need not be of this map's shapes.

    Returns:
        Result: .noise .images .latent .history, each picture's best so far.

    Raises:
        ValueError: bad arguments, a floor on what is not watched, a noise that was made for another map, a regulariser
            of the picture with a solver that climbs no gradient through the model, or the reward or its gradient is not
            finite at the very first evaluation.
    """
    check_whole(0, iterations=iterations)
    limits = Limits(seconds, target, stop_probability, dict(stop_below or {}))
    if math.isnan(floor):
        raise ValueError(f"floor is {floor}; expected a probability")
    sample_map.check_settings(noise)
    given = sample_map.here(noise)
    solver, noise, first = _started(solver or default_solver(), given)
    best = Best(log_of(floor), dict(floors or {}))
    if judges_latents(reward):
        raise ValueError(
            f"{name_of(reward)} judges latents and not their pictures, so it cannot be what is optimised; expected it"
            " to be watched"
        )
    watch = tuple(each.of(sample_map, noise) if waits_for_a_map(each) else each for each in watch)
    if iterations > 0:
        refuse_without_gradient(solver, regularizer)
    regularizer, of_picture = parted(regularizer)
    picture = of_picture and of_picture.of(sample_map, noise)
    problem = Problem(sample_map, reward, regularizer, watch, iterations, best, limits, preview, picture=picture)
    names = watched_names(reward, problem.watch)
    check_floors(best.floors, names)
    check_floors(limits.below, names, "limit")
    if iterations > 0 and getattr(solver, "needs_gradient", False):
        require_differentiable(reward)
    if regularizer is not None and not getattr(solver, "regularized", True):
        problem.warn(f"{name_of(solver)} does not use the regularizer")
        problem.regularizer = None
    history = History(reward=name_of(reward), warnings=problem.warnings, iterations=iterations)
    if isinstance(getattr(reward, "part_settings", None), dict):
        history.settings["parts"] = reward.part_settings
    earlier = given if first > 0 and not torch.equal(given.flat(), noise.flat()) else None
    with layouts_of_a_search(), _without_zeros(problem, noise), _stoppable(problem, stop):
        if check_gradient:
            history.settings["gradient_error"] = problem.check_gradient(noise).tolist()
            problem.started = time.perf_counter()
        noise, done = _iterate(problem, solver, noise, first, earlier, history, callback)
        log.info("stopped after %d evaluations: %s", len(history.rows), history.stopped)
        if iterations > 0:
            estimator = getattr(solver, "estimator", None)
            _unless_it_breaks(problem, "the look for slopes", _warn_of_silence, problem, history, estimator)
        _conclude(problem, history, floor, diagnose)
    checkpoint = None  # where scores or gradients are not finite any more, nobody can go on
    if done is not None:
        checkpoint = Checkpoint(replace(noise, settings={}), name_of(solver), done, _memory(solver))
    settings = {**given.settings, **sample_map.settings}
    found = replace(best.noise, settings=settings, kept=given.kept, checkpoint=checkpoint)
    return Result(found, best.images, best.latent, history, problem.failure)


def _iterate(problem, solver, noise, first, earlier, history, callback):
    """Run the iterations, and end them where something breaks after the first is recorded.

    So does a reward, watched or not, that fails once more than the start is known. Memory that runs out ends them as
    soon as one noise is evaluated: candidates may need more than the start does.

    Args:
        problem, solver, noise: of the run; the solver is fresh.
        first: number of updates that an earlier search made.
        earlier: the best Noise of that search, to be evaluated first; or None.
        history: is written, with the reason why the run ended.
        callback: as `optimize` takes it.

    Returns:
        noise, done: the next iteration's noise, and the number of updates that made it; `done` alone is None where all
            pictures turned non-finite.
    """
    done, last = first, first + problem.iterations
    try:
        if earlier is not None:
            problem.iteration = EARLIER
            problem.evaluate(earlier)
        clock = Clock(problem, solver)
        for iteration in range(first, last + 1):
            problem.iteration = iteration
            if iteration < last:
                noise, evaluation = solver.step(problem, noise)
                noise, done = problem.held(noise), iteration + 1
            else:
                evaluation = solver.evaluate(problem, noise) if hasattr(solver, "evaluate") else problem.evaluate(noise)
            _record(history, evaluation, problem, callback)
            history.stopped = problem.limits.reached(problem.best, evaluation)
            if iteration < last:  # nothing is cut short after the last evaluation
                history.stopped = history.stopped or clock.spent()
            if history.stopped:
                if getattr(solver, "knows", None) and solver.knows(noise):  # what it has found is worth a row
                    problem.iteration = done
                    _record(history, solver.evaluate(problem, noise), problem, callback)
                return noise, done
        history.stopped = f"{counted(problem.iterations, 'iteration')} done"
    except KeyboardInterrupt:
        if problem.latest is None:
            raise
        if not history.rows:
            history.record(problem.latest)
        history.stopped = INTERRUPTED
    except Stopped:
        if not history.rows:
            history.record(problem.latest)
        history.stopped = STOPPED
    except NotFiniteError as error:
        if not history.rows:
            raise
        history.stopped, done = str(error), None
    except (RewardError, FileNotFoundError) as error:
        if any(name in str(error) for name in BROKEN_DEVICE) or not (history.rows or _has_found(problem, error)):
            raise
        log.exception("a reward failed: the search ends with what it has found")
        if not history.rows:
            history.record(problem.latest)
        problem.fail(error)
        history.stopped = f"{why_failed(error)}, at iteration {problem.iteration}"
    except RuntimeError as error:
        if problem.latest is None or not is_out_of_memory(error):
            raise
        if not history.rows:
            history.record(problem.latest)
        problem.fail(error)
        history.stopped = f"out of memory at iteration {problem.iteration}: {first_line(error)}"
    return noise, done


def _has_found(problem, error):
    """Whether there is more than the start to keep, before an iteration is over: candidates that were scored."""
    if problem.latest is None or isinstance(error, LostGradientError):
        return False
    return bool((problem.best.scores > problem.latest.scores).any())


def _record(history, evaluation, problem, callback):
    history.record(evaluation)
    if callback is not None:
        callback(evaluation, problem.best)


def _conclude(problem, history, floor, diagnose):
    """Record the best, and what the user should know of the run that is over."""
    if problem.sample_map.plan.tile is not None:
        problem.warn(
            f"the decoder's gradient was taken in tiles of {problem.sample_map.plan.tile} latents, for want of memory:"
            " near the whole picture's, not the same. A smaller picture, or more memory, needs no tiles"
        )
    best = problem.best
    if len(problem.ended) < len(best.scores):  # else it is why the run stopped
        for item, reason in problem.ended.items():
            problem.warn(f"picture {item} ended before the others and stayed at its best: {reason}")
    if problem.iterations > 0:
        _warn_of_the_floor(problem, floor)
    history.conclude(best, problem)
    for judge in (problem.reward, *problem.watch):
        for sentence in _unless_it_breaks(problem, f"what {name_of(judge)} remarks", remarks, judge, best.images) or ():
            problem.warn(sentence)
    if history.stopped in (INTERRUPTED, STOPPED):
        return
    if problem.iterations > 0:
        _unless_it_breaks(problem, "the check of the best noise", verify, problem)
    if diagnose:
        history.diagnosis = _unless_it_breaks(problem, "the diagnosis", diagnosis_of, problem, best.noise)


@contextlib.contextmanager
def _stoppable(problem, stop):
    """Let the map's `on_step` end the run as well once stop() says so, where there is a stop and something to keep.

    The map itself is told, and not a copy: that would have a `Plan` of its own, which nobody else could reach.
    """
    sample_map, on_step = problem.sample_map, problem.sample_map.on_step

    def told(phase, index, total):
        if on_step is not None:
            on_step(phase, index, total)
        if problem.latest is not None and not problem.finishing and stop():
            raise Stopped(STOPPED)

    sample_map.on_step = on_step if stop is None else told
    try:
        yield
    finally:
        sample_map.on_step = on_step


def verify(problem):
    """Sample the best noise once more and warn where the latent is not the one that was found.

    A model that is a function of its arguments gives it again, up to the rounding of another batch size.
    """
    best, sample_map = problem.best, problem.sample_map
    error = (sample_map.latent(best.noise) - best.latent).flatten(1).norm(dim=1)
    error = error / best.latent.flatten(1).norm(dim=1).clamp(min=1e-12)
    for item, value in enumerate(error.tolist()):
        broke = item in problem.ended and math.isnan(value)
        if not broke and not value <= sample_map.rerun_tolerance:
            problem.warn(
                f"picture {item}: its noise, sampled once more, gives another latent ({value:.1%} off). The model keeps"
                " a state between calls or draws random numbers of its own, so the noise will not replay to this"
                " picture. Likely patches: step caches (EasyCache, LazyCache, TeaCache), token merging, HyperTile"
            )


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


def fast(sample_map, reward, noise, calls=100, seconds=None, watch=(), floors=None, callback=None):
    """Find a picture of many steps on a few of them, and make it with all: `Fast`, one iteration, graphs kept.

    Example:
        >>> sample_map = core.load_embedded("black cat", steps=12)
        >>> noise = sample_map.randn(seed=0)
        >>> result = fast(sample_map, rewards.Brightness(), noise, calls=30)
        >>> rewards.Brightness()(result.images) > rewards.Brightness()(sample_map.sample(noise))
        tensor([True])

    Args:
        calls: most network calls of the climb; beside it the map's steps are run twice, and once more as a check.
        sample_map, reward, noise, seconds, watch, floors, callback: as `optimize` takes them.

    Returns:
        Result, as `optimize`.
    """
    return optimize(
        replace(sample_map, keep_graphs=True), reward, noise, Fast(calls), iterations=1, seconds=seconds, watch=watch,
        callback=callback, floors=floors,
    )  # fmt: skip


def stages(sample_map, solver, iterations):
    """Return how often `sample_map.on_step` is called by `optimize`, for progress bars: network calls and decodes."""
    again = sample_map.network_calls if iterations else 0
    return _stages_of_steps(solver, sample_map, iterations) + sample_map.stages + again


def _stages_of_steps(solver, sample_map, iterations):
    if hasattr(solver, "stages_of_steps"):
        return solver.stages_of_steps(sample_map, iterations)
    return iterations * _stages_of_a_step(solver, sample_map)


def _stages_of_a_step(solver, sample_map):
    return solver.stages(sample_map) if hasattr(solver, "stages") else 2 * sample_map.stages


class Clock:
    """Tells when the next iteration would outlast the time budget, going by the one before.

    Args:
        problem: knows when the run began, and its time budget.
        solver: knows how long an iteration is beside what follows the last one, the check of the best noise.
    """

    def __init__(self, problem, solver):
        sample_map = problem.sample_map
        self.problem, self.before = problem, time.perf_counter()
        self.share = 1 + sample_map.network_calls / max(_stages_of_a_step(solver, sample_map), 1)

    def spent(self):
        """Return why the run must end after the iteration that is over now, or ''."""
        now = time.perf_counter()
        last, self.before = now - self.before, now
        return self.problem.limits.outlasted(self.problem.started, last * self.share)


def _started(solver, noise):
    """Return the solver ready to run, the noise of its first iteration, and that iteration's number."""
    checkpoint = noise.checkpoint
    if checkpoint is None or checkpoint.solver != name_of(solver):
        return solver.fresh(), replace(noise, checkpoint=None), 0
    return solver.fresh(checkpoint), replace(checkpoint.noise, settings=noise.settings), checkpoint.iteration


def _memory(solver):
    return solver.memory() if hasattr(solver, "memory") else {}


@contextlib.contextmanager
def _without_zeros(problem, noise):
    """Search the injected noises alone where x_T is zeros, as in the later part of a split schedule.

    Zeros are no noise. To judge them would find them improbable, and to move them would add what does not belong there.
    As in `_stoppable` the map itself is told.
    """
    sample_map, part = problem.sample_map, problem.sample_map.part
    if problem.iterations == 0 or part not in ("all", "initial") or noise.initial.any():
        yield
        return
    if part == "initial" or len(noise.injected) == 0:
        why, instead = "no step injects noise", "eta > 0"
        if part == "initial":
            why, instead = "part is 'initial'", "part 'all', which then leaves x_T out"
        raise ValueError(
            f"x_T is all zeros and {why}, so there is no noise to search; expected noise to start from (add_noise"
            f" enabled, or RandomNoise in place of DisableNoise), or {instead}"
        )
    problem.warn("x_T is all zeros, which is no noise: the injected noises alone are searched")
    sample_map.part = "injected"
    try:
        yield
    finally:
        sample_map.part = part


def _warn_of_silence(problem, history, estimator):
    """Warn of the pictures whose reward had no slope to climb in half of the iterations or more."""
    rows = [row["gradient_norm"] for row in history.rows if row.get("gradient_norm") is not None]
    if not rows:
        return
    searched = problem.sample_map.active_entries(problem.best.noise).any(dim=1)
    for item, norms in enumerate(zip(*rows, strict=True)):
        silent = sum(norm == 0 for norm in norms)
        if not searched[item] or item in problem.ended or 2 * silent < len(norms):
            continue
        seen = f"picture {item}: in {silent} of {counted(len(norms), 'iteration')}"
        if hasattr(estimator, "mu") and hasattr(estimator, "q"):
            problem.warn(
                f"{seen} no perturbation changed the score, so there was nothing to climb along: the reward moves in"
                f" jumps, or not at all. Take a larger mu than {estimator.mu:g}, a larger q than {estimator.q}, or ZeNO"
            )
        else:
            problem.warn(
                f"{seen} the reward's gradient was 0: the picture is at an end of the reward's scale, or the reward is"
                " flat there. Start from another seed, or take ZeNO, which needs no gradient"
            )


def _warn_of_the_floor(problem, floor):
    """Warn of the pictures that never passed the floors: their start is returned."""
    for item, passed in enumerate(problem.best.passed.tolist()):
        if passed or item in problem.ended:
            continue
        under = [name for name in problem.best.floors if problem.best.refused[name][item] > -math.inf]
        if under:
            floors = ", ".join(f"{name} (at least {problem.best.least[name][item]:.3g})" for name in under)
            problem.warn(
                f"picture {item}: no noise passed the floor on {floors}, so it is returned as it began. Lower the"
                " floor, or take another seed"
            )
        else:
            problem.warn(
                f"picture {item}: no noise was probable enough to become the best (P at least {floor} of z and of x_T),"
                " so it is returned as it began. Start from true noise, search a part of it, add a regularizer or"
                " lower the learning rate"
            )


def _unless_it_breaks(problem, name, function, *args):
    """Return function(*args), or None with a warning: what comes after a search must not lose what it found."""
    try:
        return function(*args)
    except (KeyboardInterrupt, Stopped):
        return None
    except Exception as error:  # rewards of others can raise anything
        problem.warn(f"{name} failed: {error}")
        return None
