"""Fast: climb on a few steps, then lift what is found to all of them.

[derived] Ours. Of a picture's 50 steps most only make certain what a few have decided. So the noise that the search
begins with is taken down to a coarse map of a few of its steps (`CoarseMap`), where `TrustAscent` climbs at their
price, and one run of all steps makes the same picture of what it finds (`CoarseMap.lift`). Further iterations climb
on all steps from there.

The lift lets each noise take up what the model changes its mind about between two coarse steps. Where that is much, as
on too coarse a grid, noise is no longer what it should be, or so improbable that it could not become the best: then the
climb is made once more on twice as many steps.
"""

import math
import time
from dataclasses import dataclass, field, replace

import torch

from ..checks import check_whole
from ..coarse import CoarseMap
from ..estimators import Exact
from ..limits import INTERRUPTED, Stopped
from ..memory import is_out_of_memory
from ..problem import Problem
from ..regularizer import log_noise_probability
from ..scoring import LostGradientError, NotFiniteError, RewardError, why_failed
from ..words import first_line
from .base import Leader, SamplesItself, refuse_another_sampler
from .trust import TrustAscent

DENSER = 1.5
"""How much closer together the coarse steps are towards the end: 1 spaces them evenly."""
STRAYED, JUDGED = math.log(1e-4), 1024
"""ln P of so many numbers below which a lifted noise, judged alone, is not what noise should be.

Of larger noises ln P is counted for so many of their numbers: its exponent grows with their number, and would refuse of
a large picture what does a small one no harm. A lift adds up to 20 % to the square of a noise's length; 40 % are
refused.
"""


IN_HAND = 0.02
"""Share of what a watched score may fall to its floor that the climb leaves: the lifted picture's is a little other."""


@dataclass
class Fast(SamplesItself):
    """Find the picture on a few of the steps, and make it with all of them; use `optimize(.., iterations=1)`.

    The whole costs `calls`, and two runs of all steps: the start's, which shows what the seed gives without a search,
    and the lifted one. A map of no more steps than `coarse_steps` is climbed on itself. `optimize`'s regulariser is not
    used: `TrustAscent` keeps the noise probable by itself.

    Example:
        >>> sigmas = [8.0, 5.0, 3.0, 2.0, 1.0, 0.5, 0.0]
        >>> sample_map = core.SampleMap(lambda x, sigma: torch.tanh(x), core.Schedule(sigmas), shape=(1, 3, 4, 4))
        >>> noise = sample_map.randn(seed=0)
        >>> result = core.optimize(sample_map, rewards.Contrast(), noise, Fast(calls=30, coarse_steps=3), iterations=1)
        >>> rewards.Contrast()(result.images) > rewards.Contrast()(sample_map.sample(noise))
        tensor([True])

    Attributes:
        calls: most network calls of the climb, forward and backward 1 each, at least three for each coarse step; what
            is run again for want of kept graphs is not counted.
        coarse_steps: how many of the steps the climb takes, 2 or more.
        whitening: of `TrustAscent`, in [0, 1].
        estimator: Exact(), or Hybrid1(..) or Hybrid2(..) for rewards without a gradient.
    """

    calls: int = 100
    coarse_steps: int = 5
    whitening: float = 0.5
    estimator: object = field(default_factory=Exact)
    _climber: TrustAscent | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self):
        check_whole(2, coarse_steps=self.coarse_steps)
        check_whole(1, calls=self.calls)
        if self.calls < 3 * self.coarse_steps:
            raise ValueError(
                f"calls is {self.calls}; expected at least {3 * self.coarse_steps}: forward and backward through"
                f" {self.coarse_steps} coarse steps, and forward again to see what that has brought"
            )
        self._climber = TrustAscent(self.whitening, self.estimator)

    def fresh(self, checkpoint=None):
        solver = replace(self)
        solver._climber = self._climber.fresh(checkpoint)
        return solver

    def memory(self):
        return self._climber.memory()

    def stages(self, sample_map):
        return self._climber.stages(sample_map)

    def stages_of_steps(self, sample_map, iterations):
        if iterations == 0:
            return 0
        steps = min(self.coarse_steps, sample_map.schedule.steps)
        climb = (2 * self._updates(steps) + 1) * (steps + 1)
        lifted = sample_map.stages if steps < sample_map.schedule.steps else 0
        on_all_steps = (iterations - 1) * self.stages(sample_map)
        return climb + lifted + on_all_steps + (sample_map.stages if iterations > 1 else 0)

    def graphs(self, calls, iterations):
        return min(2 * self.coarse_steps, calls) if iterations == 1 else calls

    def step(self, problem, noise):
        """Climb and lift, of a search's first noise; of every other one, climb on all steps."""
        if problem.iteration > 0:
            return self._climber.step(problem, noise)
        self._check(problem.sample_map)
        began = time.perf_counter()
        evaluation = problem.evaluate(noise)
        once = time.perf_counter() - began
        limits = problem.limits
        if limits.reached(problem.best, evaluation) or limits.outlasted(problem.started, 2 * once):
            return noise, evaluation
        self._search(problem, noise, once, _with_some_in_hand(problem.best.least, evaluation.watched))
        best = problem.best
        self._leader = Leader(best.noise.flat(), best.latent, best.images, best.scores, None)
        return best.noise, evaluation

    def _check(self, sample_map):
        refuse_another_sampler(self, sample_map)
        if sample_map.schedule.steps <= self.coarse_steps:
            return
        if not sample_map.injected or sample_map.part not in ("all", "injected"):
            raise ValueError(
                f"Fast lifts what a few steps have found to all {sample_map.schedule.steps} by the noise that each"
                f" injects; here eta is {sample_map.eta} and the searched part {sample_map.part!r}. Expected eta > 0,"
                f" and part 'all' or 'injected' (or no more than {self.coarse_steps} steps)"
            )

    def _search(self, problem, noise, once, least):
        """Offer what each picture's climb from the start `noise` has found.

        Args:
            problem: the Problem.
            noise: the start.
            once: a run's time in seconds.
            least: watched reward's name -> (B,), the climb's floors.
        """
        sample_map = problem.sample_map
        wanted = torch.ones(noise.batch, dtype=torch.bool, device=noise.initial.device)
        if sample_map.schedule.steps <= self.coarse_steps:
            best, ended = self._climbed(problem, sample_map, noise, once, problem.best.least)
            self._offer(problem, (best.noise, best.latent, best.images, best.scores), wanted, best.passed)
            _go_on_unless_interrupted(ended)
            return
        may_be_refused = _probable(problem, noise)
        for steps in self._grids(sample_map):
            coarse = CoarseMap.of(sample_map, grid_of(sample_map.schedule.steps, steps))
            best, ended = self._climbed(problem, coarse, coarse.down(noise), once, least)
            found = self._lifted(problem, coarse, best, noise)
            strayed = (strays(sample_map, found[0]) | (may_be_refused & ~_probable(problem, found[0]))) & wanted
            is_last = bool(ended) or not strayed.any() or steps == self._grids(sample_map)[-1]
            self._offer(problem, found, wanted if is_last else wanted & ~strayed, best.passed)
            _go_on_unless_interrupted(ended)
            if is_last:
                break
            wanted = strayed
            problem.warn(f"the noise lifted from {steps} steps is not as true noise is: the climb is made on more")
        if strayed.any():
            problem.warn(
                f"the noise lifted from {steps} steps is not as true noise is; set coarse_steps to {2 * steps} or more"
            )

    def _grids(self, sample_map):
        """Return the numbers of coarse steps to try, one where the calls do not pay for a finer grid or none is."""
        steps, finer = self.coarse_steps, 2 * self.coarse_steps
        return [steps, finer] if self.calls >= 3 * finer and finer < sample_map.schedule.steps else [steps]

    def _climbed(self, problem, coarse, z, once, least):
        """Climb on the coarse map from its noise z; return the `Best` of it, and why it ended early or ''."""
        climb = Problem(
            coarse, problem.reward, None, problem.watch, best=problem.best.anew(least), limits=problem.limits,
            started=problem.started, warnings=problem.warnings,
        )  # fmt: skip
        climber, updates, ended = self._climber.fresh(), self._updates(coarse.schedule.steps), ""
        try:
            for trial in range(updates + 1):
                climb.iteration, began = trial, time.perf_counter()
                if trial < updates:
                    z, evaluation = climber.step(climb, z)
                    z = climb.held(z)
                else:
                    evaluation = climb.evaluate(z)
                if problem.preview is not None:
                    steps = f"{coarse.schedule.steps} of {problem.sample_map.schedule.steps} steps"
                    problem.preview(f"trial {trial} of {updates}, on {steps}", evaluation, climb.best)
                left_to_do = time.perf_counter() - began + 2 * once  # one more trial, the lift and the check
                ended = climb.limits.reached(climb.best, evaluation)
                ended = ended or (trial < updates and climb.limits.outlasted(problem.started, left_to_do))
                if ended:
                    break
        except (Stopped, NotFiniteError, KeyboardInterrupt, RuntimeError, FileNotFoundError) as error:
            if climb.best.noise is None:
                raise
            ended = _why_ended(error)
            if isinstance(error, (RuntimeError, FileNotFoundError)):
                problem.fail(error)
        if ended:
            problem.warn(f"the climb on {coarse.schedule.steps} steps ended after {trial} of {updates} trials: {ended}")
        return climb.best, ended

    @staticmethod
    def _lifted(problem, coarse, best, own):
        """Sample all steps so that they give the picture of the climb's best: (the Noise, latent, images, scores).

        Where the reward has failed meanwhile, the scores are those that the climb found.
        """
        problem.finishing = True  # whoever wants the search to stop wants the picture that was shown
        try:
            found, latent = coarse.lift(best.noise, own)
            images = problem.sample_map.images(latent)
        finally:
            problem.finishing = False
        try:
            scores = problem.score(images[None])[0]
        except (RewardError, FileNotFoundError) as error:
            problem.fail(error)
            scores = best.scores
        return found, latent, images, scores.to(own.initial.device)

    @staticmethod
    def _offer(problem, found, wanted, passed):
        """Let those of the wanted pictures (B,) that are better become the best.

        Where a watched reward fails now, it must do that it has `passed` (B,) the floors in the climb.
        """
        noise, latent, images, scores = found
        log_p = torch.minimum(*problem.log_probabilities(noise))
        scores = torch.where(wanted, scores, -torch.inf)
        try:
            watched = problem.under_floors(latent, images)
        except (RewardError, FileNotFoundError) as error:
            problem.fail(error)
            scores = torch.where(passed.to(scores.device), scores, -torch.inf)
            watched = {name: least.to(scores.device) for name, least in problem.best.least.items()}
        problem.best.offer(noise, latent, images, scores, log_p, problem.iteration + 1, watched)

    def _updates(self, steps):
        """Return how many updates of the noise `calls` pay for: forward and backward each, and the last's forward."""
        return (self.calls - steps) // (2 * steps)


def _why_ended(error):
    """Return in words what ended a climb whose best is kept; raise what does not."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, (Stopped, NotFiniteError)):
        return str(error)
    if isinstance(error, (RewardError, FileNotFoundError)) and not isinstance(error, LostGradientError):
        return why_failed(error)
    if is_out_of_memory(error):
        return f"out of memory: {first_line(error)}"
    raise


def _go_on_unless_interrupted(ended):
    """End the whole search, too, with what it has, where an interrupt ended the climb."""
    if ended == INTERRUPTED:
        raise KeyboardInterrupt


def _probable(problem, noise):
    """Return (B,) booleans: whether ln P of each picture's noise is at the search's floor or above."""
    return torch.minimum(*problem.log_probabilities(noise)) >= problem.best.floor


def _with_some_in_hand(least, watched):
    """Return floors, name -> (B,), a little nearer to what the start was `watched` to score."""
    return {name: floor + IN_HAND * (watched[name].to(floor) - floor).abs() for name, floor in least.items()}


def grid_of(steps, coarse_steps):
    """Return the indices of the fine sigmas that the coarse steps are between, dense towards the end.

    The last step is one of its own: its denoised is the picture. Before it they lie at 1 - (1 - t)^1.5 of the way, for
    t of equal distances.

    Example:
        >>> grid_of(50, 5)
        (0, 17, 32, 43, 49, 50)
        >>> grid_of(4, 5)
        (0, 1, 2, 3, 4)

    Args:
        steps: of the fine map.
        coarse_steps: how many are wanted.
    """
    count = min(coarse_steps, steps)
    places = [(steps - 1) * (1 - (1 - index / max(count - 1, 1)) ** DENSER) for index in range(count)]
    grid = [steps]
    for place in reversed(places):
        grid.insert(0, min(round(place), grid[0] - 1))
    return tuple(grid)


def strays(sample_map, noise):
    """Return (B,) booleans: whether an injected noise of a picture is longer, shorter or less random than it should be.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 8, 8))
        >>> strays(sample_map, sample_map.randn(seed=0)), strays(sample_map, sample_map.randn(seed=0).map(torch.exp))
        (tensor([False]), tensor([True]))
    """
    free = noise.with_flat(sample_map.active_entries(noise)).injected
    vectors = [part[keep] for part, keep in zip(noise.injected.flatten(0, 1), free.flatten(0, 1), strict=True)]
    log_p = log_noise_probability(vectors)
    share = log_p.new_tensor([min(JUDGED / max(len(vector), 1), 1.0) for vector in vectors])
    return ((share * log_p).view(-1, noise.batch) < STRAYED).any(dim=0)
