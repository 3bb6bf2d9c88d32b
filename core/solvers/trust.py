"""TrustAscent: gradient ascent on the shells where noise lives, by steps whose length is found by trial.

[derived] Ours; no part of it is the paper's but the probability that it watches. Each part z_j of z, x_T and every
injected noise, turns on its own sphere |z_j| = const by one angle, so that no part's length ever drifts. Per picture:

    accept     r(trial) > r(z)  and  (ln P(trial) >= ln 0.01 + 1  or  ln P(trial) > ln P(z))
               and the trial passes as many floors on watched rewards as z does
               then the trial is the new z, its gradient g is taken, and angle = min(0.6, 1.6 angle)
               else angle = 0.5 angle, and the rejected trial has cost no backward pass
    u          unit(tangent(white_p(tangent(g)))), white_p = ifft(f / |f|^p) with f = fft(g) over channels and sides
    push       u += lambda sqrt(parts) d / |d| where z becomes improbable, see `sphere`
    v          unit(tangent(u + 0.5 v)), without the old v after a rejection
    trial_j    cos(angle) z_j + sin(angle) |z_j| v_j

ln P is the smaller of ln P(z) and ln P(x_T); fft, tangent and unit are of each part alone. Everything is a direction or
a comparison: the reward's scale makes no difference. white_p keeps a step from spending itself on the few frequencies
that the reward hears best. A floor on P that only rejects would bring the angle to 0 at the floor: the soft push, which
begins before it, is what lets the climb go on along it. A regulariser of the picture adds its term to r, and there the
reward's scale counts.
"""

from dataclasses import dataclass, field, replace
from functools import partial

import torch

from ..estimators import Exact, Hybrid1
from ..memory import is_out_of_memory
from ..noise import Noise
from ..problem import where
from ..regularizer import ProbabilityRegularizer
from ..sampler_map import SamplerMap
from ..spectrum import heard
from .base import SamplesItself
from .sphere import PROBABLE_ENOUGH, Sphere, is_searched, kept_probable, least_log_p, noise_of, parts_of
from .tilt import Tilt

START, MOST, GROW, SHRINK = 0.1, 0.6, 1.6, 0.5
"""Angles in radians: the first and the largest; and what an accepted and a rejected trial multiply them by."""
MOMENTUM = 0.5
STRENGTH, MANY_STEPS = 0.3, 16
"""Of the tilted run that a search begins with by itself where there are so many steps, all of which a trial costs."""
NUMBERS = "scores", "log_p", "passed", "angle"
"""What a checkpoint remembers of each picture beside noises, a number each."""


@dataclass
class TrustAscent(SamplesItself):
    """Climb by trial steps that grow while they succeed: no learning rate, no gamma, whatever the reward's units.

    An iteration tries one noise: a sampling run, and a backward pass where it is accepted. The solver keeps the noise
    probable by itself; of `optimize`'s regulariser of the noise it takes the direction of the push, and no weight. The
    term of a PictureRegularizer is added to the reward, with its weight.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise = sample_map.randn(seed=0)
        >>> result = core.optimize(sample_map, rewards.Contrast(), noise, TrustAscent(), iterations=5)
        >>> rewards.Contrast()(result.images) > rewards.Contrast()(sample_map.sample(noise))
        tensor([True])

    Attributes:
        whitening: p in [0, 1]. 0 follows the gradient as it is and soon stalls, 1 hears every frequency alike, which
            suits precise rewards (a likeness); 0.5 is nearly as good there and safer on broad ones (brightness).
        estimator: Exact(), or Hybrid1(..) or Hybrid2(..) for rewards without a gradient.
        push: whose gradient pushes a noise back that becomes improbable, where `optimize` has no regulariser; its
            weight does not count.
        tilt: strength of a tilted run of the start that is the first trial, see `Tilt`: as much as several steps gain,
            for the price of one and a half. None takes 0.3 where there are 16 steps or more, and none where fewer.
            Where nothing can be tilted (eta 0, x_T alone, another sampler, Hybrid2), or at 0, there is none.
    """

    whitening: float = 0.5
    estimator: object = field(default_factory=Exact)
    push: object = field(default_factory=partial(ProbabilityRegularizer, structured=True))
    tilt: float | None = 0.0
    _held: "Held | None" = field(default=None, init=False, repr=False, compare=False)
    _resumed: bool = field(default=False, init=False, repr=False, compare=False)

    regularized = regularizes_pictures = True

    def __post_init__(self):
        if not 0 <= self.whitening <= 1:
            raise ValueError(f"whitening is {self.whitening}; expected a number in [0, 1]")
        if self.tilt is not None and not 0 <= self.tilt < 1:
            raise ValueError(f"tilt is {self.tilt}; expected a strength in (0, 1), 0.3 suits most, or 0 for none")
        if not hasattr(self.estimator, "by_images"):
            raise ValueError(
                f"the estimator is {type(self.estimator).__name__}, which has no gradient by the pictures; expected"
                " Exact(), Hybrid1(..) or Hybrid2(..)"
            )

    def fresh(self, checkpoint=None):
        solver = replace(self)
        if checkpoint is not None and checkpoint.memory:
            solver._held, solver._resumed = Held.remembered(checkpoint.memory), True
        return solver

    def memory(self):
        return {} if self._held is None else self._held.memory()

    def stages(self, sample_map):
        return self.estimator.passes(sample_map) * sample_map.stages

    def stages_of_steps(self, sample_map, iterations):
        tilter = self._tilter(sample_map) if iterations else None
        return iterations * self.stages(sample_map) + (tilter.stages(sample_map) if tilter else 0)

    def step(self, problem, noise):
        """Evaluate the trial `noise`; return (the next trial, the Evaluation of this one)."""
        if self._held is None and self._tilter(problem.sample_map) is not None:
            first = self._first_that_fits(problem, noise)
            if first is not None:
                return first
            problem.warn("memory ran out in the tilted run, which takes more than a gradient: the climb begins without")
        if self._resumed:
            self._held, self._resumed = self._held.judged_by(problem), False
        with problem.trial(noise, self.estimator) as (evaluation, gradient_of):
            passed = _passed(problem, evaluation)
            accepted = self._accepts(evaluation, passed)
            gradient = gradient_of() if (accepted & is_searched(problem, noise)).any() else None
        if gradient is not None:
            evaluation = replace(evaluation, gradient_norm=gradient.norm())
        self._held = self._after(problem, evaluation, gradient, accepted, passed)
        return self._held.trial(problem.sample_map), evaluation

    def guesses(self, calls):
        return 1 if self._strength(calls) else 0

    def _strength(self, steps):
        """Return the strength of the tilted run that the search begins with, 0 for none."""
        return self.tilt if self.tilt is not None else STRENGTH if steps >= MANY_STEPS else 0.0

    def _tilter(self, sample_map):
        """Return the Tilt that makes the first trial, or None."""
        strength = self._strength(sample_map.schedule.steps)
        if not strength or isinstance(sample_map, SamplerMap) or not isinstance(self.estimator, (Exact, Hybrid1)):
            return None
        tilter = Tilt(strength, estimator=self.estimator)
        return tilter if tilter.can_tilt(sample_map) else None

    def _first_that_fits(self, problem, noise):
        """Return what `_first_by_a_tilt` does; None where memory ran out, and nothing is held then."""
        try:
            return self._first_by_a_tilt(problem, noise)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._held = None
            return None

    def _first_by_a_tilt(self, problem, noise):
        """Return the tilted noise to try, and the Evaluation of the start, whose gradient may never be asked for."""
        evaluation = problem.evaluate(noise)
        zero = noise.map(torch.zeros_like)
        angle = torch.full_like(evaluation.scores, START)
        passed = _passed(problem, evaluation)
        self._held = Held(noise, zero, zero, evaluation.objective, least_log_p(evaluation), passed, angle)
        self._leader = tilted = self._tilter(problem.sample_map).run(problem, noise)
        found = noise.with_flat(tilted.flat)
        if problem.picture is None:  # else its term is not known yet; what is known now, no interrupt shall lose
            log_p, watched = torch.minimum(*problem.log_probabilities(found)), problem.under_floors(*tilted.pictures)
            problem.best.offer(found, *tilted.pictures, tilted.scores, log_p, problem.iteration + 1, watched)
        return found, evaluation

    def _accepts(self, evaluation, passed):
        """Return (B,) booleans: which pictures' trials become their noise.

        The first noise always does, and one that is tried again because its gradient is not known yet.
        """
        if self._held is None:
            return torch.ones_like(evaluation.scores, dtype=torch.bool)
        log_p = least_log_p(evaluation)
        probable = (log_p >= PROBABLE_ENOUGH) | (log_p > self._held.log_p)
        better = (evaluation.objective > self._held.scores) & probable & (passed >= self._held.passed)
        itself = (evaluation.noise.flat() == self._held.noise.flat()).all(dim=1)
        return better | itself

    def _after(self, problem, evaluation, gradient, accepted, passed):
        """Return the Held of the next trial."""
        held = self._held
        if held is None:
            angle = torch.full_like(evaluation.scores, START)
            zero = evaluation.noise.map(torch.zeros_like)
            held = Held(evaluation.noise, zero, zero, evaluation.objective, least_log_p(evaluation), passed, angle)
        else:
            by_a_step = held.direction.flat().any(dim=1)
            angle = torch.where(by_a_step, torch.where(accepted, GROW, SHRINK) * held.angle, held.angle)
        direction = held.direction
        if gradient is not None:
            direction = _mixed(accepted, self._direction(problem, evaluation, gradient), direction)
        noise = _mixed(accepted, evaluation.noise, held.noise)
        sphere = Sphere.of(problem.sample_map, noise)
        kept = MOMENTUM * accepted.to(sphere.z).view(-1, *[1] * (sphere.z.ndim - 2))
        velocity = sphere.unit(sphere.tangent(parts_of(direction) + kept * parts_of(held.velocity)))
        scores = torch.where(accepted, evaluation.objective, held.scores)
        log_p = torch.where(accepted, least_log_p(evaluation), held.log_p)
        passed = torch.where(accepted, passed, held.passed)
        return Held(noise, direction, noise_of(velocity), scores, log_p, passed, angle.clamp(max=MOST))

    def _direction(self, problem, evaluation, gradient):
        """Return u, the Noise of directions at the evaluated noise: whitened, on the spheres, pushed where need be."""
        sphere = Sphere.of(problem.sample_map, evaluation.noise)
        whitened = _whitened(sphere.tangent(parts_of(gradient)), self.whitening)
        return noise_of(kept_probable(problem, evaluation, sphere, sphere.unit(sphere.tangent(whitened)), self.push))


@dataclass(frozen=True)
class Held:
    """Where each picture stands, and what its next trial is made of.

    Attributes:
        noise: the Noise that was accepted last.
        direction: u there, a Noise.
        velocity: v of the next trial, a Noise.
        scores, log_p: (B,), of the noise: the score with a picture's term, where there is one, and ln P, the smaller of
            that of z and of x_T.
        passed: (B,), of the noise, how many floors on watched rewards it passes.
        angle: (B,), of the next trial, radians.
    """

    noise: Noise
    direction: Noise
    velocity: Noise
    scores: torch.Tensor
    log_p: torch.Tensor
    passed: torch.Tensor
    angle: torch.Tensor

    def judged_by(self, problem):
        """Return it with what its noise is worth to a search that goes on: maybe another reward, or other floors."""
        evaluation = problem.evaluate(replace(self.noise, settings={}))
        return replace(
            self, scores=evaluation.objective, log_p=least_log_p(evaluation), passed=_passed(problem, evaluation)
        )  # fmt: skip

    def trial(self, sample_map):
        """Return the noise to try: every part turned by the angle towards the velocity."""
        return Sphere.of(sample_map, self.noise).turned(self.noise, self.angle, parts_of(self.velocity))

    def memory(self):
        """Return it as name -> Noise; a number of a picture fills that picture's entries."""
        least = torch.finfo(self.noise.initial.dtype).min  # for a picture that broke: a file holds finite numbers alone
        numbers = {name: getattr(self, name).nan_to_num(least, -least, least) for name in NUMBERS}
        filled = {name: noise_of(_filled(values, parts_of(self.noise))) for name, values in numbers.items()}
        return {name: getattr(self, name) for name in ("noise", "direction", "velocity")} | filled

    @classmethod
    def remembered(cls, memory):
        """Return what `memory` returned as a Held."""
        numbers = {name: memory[name].initial.flatten(1)[:, 0] for name in NUMBERS}
        return cls(*(memory[name] for name in ("noise", "direction", "velocity")), **numbers)


def _whitened(vectors, power):
    """Return ifft(f / |f|^power) of each part of each picture, f its Fourier transform over all but those two."""
    dims = tuple(range(2, vectors.ndim))
    spectrum = torch.fft.rfftn(Sphere.unit(vectors), dim=dims)
    size = torch.where(heard(spectrum, dims), spectrum.abs(), torch.inf)
    return torch.fft.irfftn(spectrum / size**power, s=vectors.shape[2:], dim=dims)


def _filled(values, like):
    """Return (parts, B, ..) of `like`'s shape, filled with each picture's value of (B,)."""
    return values.view(1, -1, *[1] * (like.ndim - 2)).expand(like.shape)


def _mixed(accepted, new, old):
    """Return the Noise of the pictures that are accepted, and `old`'s of the others."""
    return replace(noise_of(where(accepted, parts_of(new), parts_of(old), dim=1)), settings=old.settings)


def _passed(problem, evaluation):
    """Return (B,), how many floors on watched rewards each picture passes."""
    passed = problem.best.above_floors(evaluation.watched).values()
    return sum((each.to(evaluation.scores) for each in passed), torch.zeros_like(evaluation.scores))
