"""The loop: evaluate, record, keep the best, update, until the budget is used up or something says stop."""

import logging
import time
from dataclasses import dataclass, field

import torch

from .estimators import exact, name_of, score
from .history import Evaluation, History
from .noise import Noise
from .regularizer import P_SUSPICIOUS, ProbabilityRegularizer, log_noise_probability
from .sample_map import SampleMap
from .solvers import GradientAscent

log = logging.getLogger(__name__)

# No seed that a user is likely to start from: along the starting noise itself nothing would be checked but its length.
DIRECTION_SEED = 2**53 + 91


class NotFiniteError(ValueError):
    """A reward or a gradient is NaN or infinite."""


@dataclass
class Problem:
    """What a solver may ask: the value of a noise, and its gradient.

    Attributes:
        sample_map, reward, regularizer, watch: as `optimize` takes them.
        iteration: number of updates made so far; the loop counts.
        started: time the run began, seconds.
    """

    sample_map: SampleMap
    reward: object
    regularizer: ProbabilityRegularizer | None = None
    watch: tuple = ()
    iteration: int = 0
    started: float = field(default_factory=time.perf_counter)

    def evaluate(self, noise):
        """Sample and score `noise`, forward only."""
        latent = self.sample_map.latent(noise)
        images = self.sample_map.images(latent)
        scores = score(self.reward, images, self.sample_map.prompts)
        penalty = self.regularizer.gradient(self.sample_map, noise, self.iteration)[0] if self.regularizer else None
        return self._evaluation(noise, latent, images, scores, penalty=penalty)

    def gradient(self, noise):
        """Sample and score `noise`, and differentiate reward + regulariser by it.

        Returns:
            the Evaluation of `noise`, and the Noise of gradients of scores + penalty.
        """
        images, vjp = self.sample_map.pullback(noise)
        try:
            scores, d_images = exact(self.reward, images, self.sample_map.prompts)
            self._require_finite(scores, f"the reward {name_of(self.reward)}")
            gradient = vjp(d_images)
        finally:
            vjp.release()
        norm = gradient.flat().norm(dim=1)
        self._require_finite(norm, "the gradient of the reward by the noise")
        penalty = None
        if self.regularizer:
            penalty, extra = self.regularizer.gradient(self.sample_map, noise, self.iteration)
            gradient = Noise(gradient.initial + extra.initial, gradient.injected + extra.injected)
        return self._evaluation(noise, vjp.latent, images, scores, norm, penalty), gradient

    def check_gradient(self, noise, step=1e-2):
        """Compare the gradient with a central difference along one random direction.

        Returns:
            (B,) relative errors; about 0.01 or less in float32 where the reward is smooth.
        """
        _, gradient = self.gradient(noise)
        direction = Noise.randn(noise.initial.shape, len(noise.injected), DIRECTION_SEED).to(noise.initial)
        direction = self.sample_map.masked(direction)
        ends = [
            self.evaluate(noise.with_flat(noise.flat() + sign * step * direction.flat())) for sign in (1, -1)
        ]
        values = [end.scores + (end.penalty if end.penalty is not None else 0) for end in ends]
        expected = (values[0] - values[1]) / (2 * step)
        found = (gradient.flat() * direction.flat()).sum(dim=1)
        return (found - expected).abs() / expected.abs().clamp(min=1e-12)

    def _evaluation(self, noise, latent, images, scores, gradient_norm=None, penalty=None):
        self._require_finite(scores, f"the reward {name_of(self.reward)}")
        sample_map = self.sample_map
        return Evaluation(
            noise=noise,
            latent=latent,
            images=images,
            scores=scores,
            watched={name_of(watch): score(watch, images, sample_map.prompts) for watch in self.watch},
            log_p=log_noise_probability(sample_map.active(noise)),
            log_p_initial=log_noise_probability(sample_map.active_initial(noise)),
            gradient_norm=gradient_norm,
            penalty=penalty,
            iteration=self.iteration,
            seconds=time.perf_counter() - self.started,
        )

    def _require_finite(self, values, what):
        if not torch.isfinite(values).all():
            raise NotFiniteError(f"{what} is {values.tolist()} at iteration {self.iteration}; expected finite numbers")


@dataclass
class Best:
    """Each picture's best evaluation so far: the highest reward among those whose noise is probable enough.

    Attributes:
        floor: least ln P, of the whole z and of x_T alone.
        noise, latent, images: of the best, B rows each, mixed from several iterations.
        scores: (B,).
        iterations: (B,) ints.
    """

    floor: float
    noise: Noise | None = None
    latent: torch.Tensor | None = None
    images: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    iterations: torch.Tensor | None = None

    def update(self, evaluation):
        """Take over the pictures that `evaluation` improves. Where no noise passes the floor the first stays."""
        if self.noise is None:
            self.noise, self.latent, self.images = evaluation.noise, evaluation.latent, evaluation.images
            self.scores = evaluation.scores
            self.iterations = torch.full((len(self.scores),), evaluation.iteration)
            self._passed = self._passes(evaluation)
            return
        passes = self._passes(evaluation)
        better = passes & (~self._passed | (evaluation.scores > self.scores))
        self._passed = self._passed | better
        self.noise = Noise(
            _where(better, evaluation.noise.initial, self.noise.initial),
            _where(better, evaluation.noise.injected, self.noise.injected, dim=1),
            self.noise.settings,
        )
        self.latent = _where(better, evaluation.latent, self.latent)
        self.images = _where(better, evaluation.images, self.images)
        self.scores = _where(better, evaluation.scores, self.scores)
        self.iterations[better.cpu()] = evaluation.iteration

    def _passes(self, evaluation):
        least = torch.minimum(evaluation.log_p, evaluation.log_p_initial)
        return (least >= self.floor).to(evaluation.scores.device)


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
    problem = Problem(sample_map, reward, regularizer, tuple(watch))
    solver = (solver or GradientAscent()).fresh()
    history = History(reward=name_of(reward))
    best = Best(floor=torch.tensor(float(floor)).log().item())
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
            best.update(evaluation)
            if callback is not None:
                callback(evaluation, best)
            history.stopped = _reason_to_stop(history, best, seconds, target, stop_probability)
            if history.stopped:
                break
        history.stopped = history.stopped or f"{iterations} iterations done"
    except KeyboardInterrupt:
        if best.noise is None:
            raise
        history.stopped = "interrupted"
    except NotFiniteError as error:
        if best.noise is None:
            raise
        history.stopped = str(error)
    log.info("stopped after %d evaluations: %s", len(history.rows), history.stopped)
    history.best = best.iterations.tolist()
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
    return torch.tensor(float(value)).log().item()


def _where(mask, new, old, dim=0):
    """Return `new` where the (B,) mask is true along dimension `dim`, `old` elsewhere."""
    return torch.where(mask.to(old.device).view(-1, *[1] * (old.ndim - 1 - dim)), new, old)
