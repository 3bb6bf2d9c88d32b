"""What a solver may ask of the thing it optimises, and the best answer so far.

Whatever a solver evaluates, as the noise of an iteration or as one of a search's candidates, goes through a `Problem`,
which keeps each picture's best. (The tiny perturbations of an estimator are not candidates.)

Scores, probabilities and norms are moved to the noise's device (`_on_noise`), wherever the decoder and the rewards run.
Watched scores stay where the reward gave them: they are only recorded.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from .estimators import Exact
from .floors import Drop
from .history import Evaluation
from .limits import Limits
from .memory import STEP, is_out_of_memory
from .noise import Noise
from .picture_regularizer import PictureTerm
from .precision import mixed_seed, normal
from .regularizer import ProbabilityRegularizer, log_noise_probability
from .sample_map import SampleMap
from .scoring import NotFiniteError, judges_latents, name_of, numbered, part_scores, score

log = logging.getLogger(__name__)


PROBABILITY = "P"
"""What the floor on the noise's probability is called beside those on watched rewards."""

THE_REWARD, THE_TERM = "the reward", "the term of the picture's regulariser"
"""What they are called among the values that must be finite; messages name the reward, or its part."""


@dataclass
class Best:
    """Each picture's best so far: the highest reward among those that pass every floor.

    With a regulariser of the picture its term counts too: else the best would be a step beyond where the term stops
    the climb. Of the noise there is a floor, and its regulariser's term does not count.

    Attributes:
        floor: least ln P, of the whole z and of x_T alone.
        floors: watched reward's name -> its least score, a number or a `Drop`.
        noise, latent, images: of the best, B rows each, mixed from several iterations.
        scores: (B,).
        objectives: (B,), what they are compared by: the scores, with the picture's term where there is one.
        passed: (B,), whether it passes the floors; where none did yet, the first stays.
        iterations: (B,) ints, when it was found.
        least: watched reward's name -> (B,), what its floor comes to, once the first noise was offered.
        refused: floor's name -> (B,), the highest objective that did not pass it, -inf where there was none;
            `PROBABILITY` is the floor on P.
    """

    floor: float
    floors: dict = field(default_factory=dict)
    noise: Noise | None = None
    latent: torch.Tensor | None = None
    images: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    objectives: torch.Tensor | None = None
    passed: torch.Tensor | None = None
    iterations: torch.Tensor | None = None
    least: dict = field(default_factory=dict)
    refused: dict = field(default_factory=dict)

    def anew(self, least=None):
        """Return a Best that knows no noise yet, with these floors; what they refuse is told here too.

        Args:
            least: name -> (B,), what the floors come to, where it is something else there.
        """
        return Best(self.floor, self.floors, least=self.least if least is None else least, refused=self.refused)

    def offer(self, noise, latent, images, scores, log_p, iteration, watched=None, objectives=None):
        """Take over the pictures that improve.

        Args:
            noise, latent, images, scores: B rows each.
            log_p: (B,), the smaller of ln P of z and of x_T.
            iteration: number of updates made before.
            watched: name -> (B,), the scores that the floors are on.
            objectives: (B,), where they are not the scores.
        """
        objectives = scores if objectives is None else objectives
        passes = scores.isfinite()
        for name, passed in self._passed(scores, log_p, watched).items():
            passes = passes & passed
            refused = torch.where(passed | ~scores.isfinite(), -torch.inf, objectives)
            self.refused[name] = torch.maximum(refused, self.refused.get(name, refused))
        if self.noise is None:
            self.noise, self.latent, self.images, self.scores, self.passed = noise, latent, images, scores, passes
            self.objectives = objectives
            self.iterations = torch.full_like(scores, iteration, dtype=torch.int64)
            return
        better = passes & (~self.passed | (objectives > self.objectives))
        self.noise = Noise(
            where(better, noise.initial, self.noise.initial),
            where(better, noise.injected, self.noise.injected, dim=1),
            self.noise.settings,
        )
        self.latent = where(better, latent, self.latent)
        self.images = where(better, images, self.images)
        self.scores = where(better, scores, self.scores)
        self.objectives = where(better, objectives, self.objectives)
        self.passed = self.passed | better
        self.iterations = torch.where(better, iteration, self.iterations)

    def _passed(self, scores, log_p, watched):
        """Return floor's name -> (B,) booleans."""
        for name, floor in self.floors.items():
            if name not in self.least:
                found = watched[name].to(scores)
                self.least[name] = found - floor.most if isinstance(floor, Drop) else torch.full_like(found, floor)
        return {PROBABILITY: log_p >= self.floor, **self.above_floors(watched)}

    def above_floors(self, watched):
        """Return watched reward's name -> (B,) booleans: which pictures pass its floor, once one was offered."""
        return {name: watched[name].to(least) >= least for name, least in self.least.items()}

    def held(self):
        """Return B lists: the names of the floors that a higher objective than the picture's best did not pass."""
        refused = {name: values.tolist() for name, values in self.refused.items()}
        best = self.objectives.tolist()
        return [[name for name in refused if refused[name][item] > best[item]] for item in range(len(best))]


@dataclass(frozen=True)
class Candidates:
    """Some candidates for each of B pictures, sampled in one call. Their noises are not kept, but proposed once more.

    Attributes:
        first: number of the first of them.
        propose: number -> (B, n), the flat noise of a candidate, the same each time.
        latent: (c, B, C, H, W).
        images: (c, B, 3, H, W).
    """

    first: int
    propose: Callable
    latent: torch.Tensor
    images: torch.Tensor

    def flat(self, index):
        """Return (B, n): of each picture b the noise of candidate index[b], counted from the first of these."""
        found = None
        for each in sorted(set(index.tolist())):
            proposed = self.propose(self.first + each)
            found = proposed if found is None else where(index == each, proposed, found)
        return found


@dataclass
class Problem:
    """What a solver may ask: values, gradients, candidates.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise = sample_map.randn(seed=0)
        >>> problem = Problem(sample_map, rewards.Brightness())
        >>> problem.evaluate(noise).scores.shape
        torch.Size([1])
        >>> evaluation, gradient = problem.gradient(noise)
        >>> gradient.initial.shape == noise.initial.shape
        True

    Attributes:
        sample_map, reward, watch, iterations, preview: as `optimize` takes them.
        regularizer: of the noise, or None.
        picture: the term of a regulariser of the picture in this search, or None.
        best: the best of everything evaluated here.
        limits: what ends the run.
        iteration: number of updates made so far; the loop counts.
        started: time the run began, seconds.
        ended: picture -> why its search ended although the others' goes on: something of it was not finite.
        warnings: what the user should know of the run, each once.
        finishing: whether what the solver does now is to be done to its end, though somebody wants the search to stop.
        latest: the last Evaluation made; where the first iteration breaks off after it, nobody else has it.
    """

    sample_map: SampleMap
    reward: object
    regularizer: ProbabilityRegularizer | None = None
    watch: tuple = ()
    iterations: int = 50
    best: Best = field(default_factory=lambda: Best(floor=float("-inf")))
    limits: Limits = field(default_factory=Limits)
    preview: Callable | None = None
    iteration: int = 0
    started: float = field(default_factory=time.perf_counter)
    ended: dict = field(default_factory=dict)
    warnings: list = field(default_factory=list)
    latest: Evaluation | None = None
    finishing: bool = False
    picture: PictureTerm | None = None
    failure: RuntimeError | None = None

    @property
    def share_of_iterations(self):
        """How much of the way from the first to the last update is behind this one, 0 .. 1, for schedules.

        A search that goes on after its iterations were done stays at 1.
        """
        return min(self.iteration / max(self.iterations - 1, 1), 1.0)

    def evaluate(self, noise):
        """Sample and score `noise`, forward only: its Evaluation."""
        latent = self.sample_map.latent(noise)
        images = self.sample_map.images(latent)
        scores = self._on_noise(score(self.reward, images, self.sample_map.prompts), noise)
        penalty = self.regularizer.gradient(self.sample_map, noise, self.iteration)[0] if self.regularizer else None
        return self.evaluation(noise, latent, images, scores, penalty=penalty)

    def gradient(self, noise, estimator=None, regularized=True):
        """Sample and score `noise`, and differentiate reward + regulariser by it.

        Args:
            noise: where.
            estimator: of `estimators`; default Exact().
            regularized: False leaves the regulariser of the noise out.

        Returns:
            the Evaluation of `noise`, and the Noise of gradients of scores + penalty, 0 for pictures that have ended.
        """
        estimate = (estimator or Exact())(self, noise)
        scores, gradient, penalty = self._on_noise(estimate.scores, noise), estimate.gradient, None
        norm = gradient.norm()
        # A picture that is at fault is named before its gradient, which is not finite either.
        values, picture_term = {THE_REWARD: scores}, estimate.picture_term
        if picture_term is not None:
            values[THE_TERM] = picture_term = self._on_noise(picture_term, noise)
        values["the gradient of the reward by the noise"] = norm
        if self.regularizer and regularized:
            penalty, extra = self.regularizer.gradient(self.sample_map, noise, self.iteration)
            values["the gradient of the regulariser"] = extra.norm()
            gradient = Noise(gradient.initial + extra.initial, gradient.injected + extra.injected)
        self.end_where_not_finite(values, estimate.images)
        gradient = self._of_those_that_go_on(gradient)
        sampled = noise, estimate.latent, estimate.images, scores, norm, penalty
        return self._recorded(*sampled, picture_term=picture_term), gradient

    def by_latent(self, latent, graphs=None):
        """Return the picture's term (B,) and its gradient by the latent (B, ..), or None twice without one.

        `graphs` are those that `PictureTerm.value` kept of this latent, or None.
        """
        return (None, None) if self.picture is None else self.picture.gradient(latent, graphs)

    @contextlib.contextmanager
    def trial(self, noise, estimator=None):
        """Sample and score `noise`, ready for a gradient that is paid for only where it is asked for.

        A solver that rejects what it tried leaves the context without asking, and so without any backward pass. Where
        it asks, the reward looks at the pictures a second time, now with a gradient. The term of the regulariser of the
        noise is not in it, that of the picture is.

        Example:
            >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
            >>> noise = sample_map.randn(seed=0)
            >>> with Problem(sample_map, rewards.Brightness()).trial(noise) as (evaluation, gradient):
            ...     if evaluation.scores > -2:
            ...         gradient().initial.shape
            torch.Size([1, 3, 4, 4])

        Args:
            noise: where.
            estimator: Exact(), Hybrid1(..) or Hybrid2(..); default Exact().

        Yields:
            the Evaluation of `noise`, and a function that returns the Noise of gradients of its objective, 0 for
            pictures that have ended; it may be called once.
        """
        images, vjp = self.sample_map.pullback(noise)

        def gradient():
            _, d_images = vjp.spared(lambda: (estimator or Exact()).by_images(self, noise, images))
            _, d_latent = vjp.spared(lambda: self.by_latent(vjp.latent, vjp.graphs), STEP)
            found = vjp(d_images, d_latent)
            self.end_where_not_finite({"the gradient of the reward by the noise": found.norm()})
            return self._of_those_that_go_on(found)

        try:
            scores = vjp.spared(lambda: score(self.reward, images, self.sample_map.prompts))
            scores, term = self._on_noise(scores, noise), None
            if self.picture is not None:
                term = vjp.spared(lambda: self.picture.value(vjp.latent, vjp.graphs), STEP)
            yield self.evaluation(noise, vjp.latent, images, scores, picture_term=term), gradient
        finally:
            vjp.release()

    def _of_those_that_go_on(self, gradient):
        """Return a Noise of gradients, 0 for the pictures that have ended."""
        if not self.ended:
            return gradient
        return gradient.with_flat(torch.where(self.goes_on(gradient)[:, None], gradient.flat(), 0.0))

    def candidates(self, noise, count, propose):
        """Sample candidates without gradient, one call's worth at a time, and forget each when the next is asked for.

        One call samples at most `sample_map.most_rows` pictures, and half as many from where memory runs out.

        Args:
            noise: a Noise of the shape.
            count: number of candidates for each picture.
            propose: index -> (B, n), the flat noise of a candidate; asked again for those that memory ran out on and
                for those that are better than what was known, so that no other's noise is kept.

        Yields:
            Candidates, in order.
        """
        first, size = 0, self.sample_map.candidates_in_one_call(count)
        while first < count:
            try:
                found = self._sampled(noise, range(first, min(first + size, count)), propose)
            except RuntimeError as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                found = None  # nothing is tried here: the error holds on to the memory that the call took
            if found is None:
                size = math.ceil(size / 2)
                log.warning("out of memory: from now on %d candidates in one call", size)
                continue
            yield found
            first += len(found.images)

    def _sampled(self, noise, indices, propose):
        latent = self.sample_map.latent(noise.with_flat(_stacked(propose, indices)))  # the noises end with this line
        images = self.sample_map.images(latent)
        shape = len(indices), noise.batch
        return Candidates(indices.start, propose, latent.unflatten(0, shape), images.unflatten(0, shape))

    def score(self, images):
        """Score the pictures of candidates, (c, B, 3, H, W), as many in one call as are sampled in one: (c, B)."""
        prompts, found = self.sample_map.prompts, []
        for chunk in images.tensor_split(self.sample_map.calls(len(images))):
            repeated = None if prompts is None else list(prompts) * len(chunk)
            found.append(score(self.reward, chunk.flatten(0, 1), repeated).unflatten(0, chunk.shape[:2]))
        return torch.cat(found)

    def judge(self, noise, candidates, scores=None):
        """Score candidates, and offer each picture's highest to the best.

        If its noise is too improbable, the next highest is offered, until none beats the best.

        Args:
            noise: a Noise of the shape.
            candidates: Candidates.
            scores: (c, B), where `score` has given them already.

        Returns:
            (c, B) scores on the noise's device; -inf of a candidate whose picture or score is not finite.
        """
        scores = self.score(candidates.images) if scores is None else scores
        scores = self._on_noise(self._counting(scores, candidates.images), noise)
        left, rows = scores.clone(), torch.arange(scores.shape[1], device=scores.device)
        while True:
            highest, index = left.max(dim=0)
            if not (highest > torch.where(self.best.passed, self.best.scores, -torch.inf)).any():
                return scores
            chosen = noise.with_flat(candidates.flat(index))
            log_p = torch.minimum(*self.log_probabilities(chosen))
            latent, images = (taken(stack, index) for stack in (candidates.latent, candidates.images))
            watched = self.under_floors(latent, images)
            self.best.offer(chosen, latent, images, highest, log_p, self.iteration, watched)
            left[index, rows] = -torch.inf

    def _counting(self, scores, images):
        """Return the scores (c, B), -inf where they are not finite, which is said."""
        finite = scores.isfinite()
        if finite.all():
            return scores
        at_fault = f"the reward {name_of(self.reward)}" if images.isfinite().all() else "the picture"
        self.warn(f"{at_fault} of some candidates is not finite; those do not count")
        return torch.where(finite, scores, -torch.inf)

    def draw(self, index, like, seed=0):
        """Draw normal numbers in the shape of `like` for this iteration: the same for the same index and seed.

        So a solver need not keep what it has drawn.

        Args:
            index: number of the draw.
            like: a tensor.
            seed: a number, or several in a tuple.
        """
        return normal(like.shape, like, "direction", seed, self.iteration, index)

    def log_probabilities(self, noise):
        """Return ln P of the whole z and of x_T alone, each (B,)."""
        whole, initial = self.sample_map.active(noise), self.sample_map.active_initial(noise)
        noises = sum(self.sample_map.active_noises(noise))
        return log_noise_probability(whole, noises=noises), log_noise_probability(initial)

    def check_gradient(self, noise, step=1e-2):
        """Compare the exact gradient with a central difference along one direction.

        The direction is a random one, turned towards the gradient so that the slope along it is not small by chance.

        Returns:
            (B,) relative errors; about 0.01 or less in float32 where the reward is smooth.
        """
        alone = replace(self, best=Best(floor=float("-inf")), ended={}, warnings=[])
        _, gradient = alone.gradient(noise)
        seed = mixed_seed("check of the gradient")
        random = Noise.randn(noise.initial.shape, len(noise.injected), seed).to(noise.initial)
        flat, random = gradient.flat(), self.sample_map.masked(random).flat()
        ahead = torch.where((flat * random).sum(dim=1, keepdim=True) < 0, -random, random)
        direction = ahead + flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-30)
        ends = [alone.evaluate(noise.with_flat(noise.flat() + sign * step * direction)) for sign in (1, -1)]
        values = [end.objective + (end.penalty if end.penalty is not None else 0) for end in ends]
        expected = (values[0] - values[1]) / (2 * step)
        found = (flat * direction).sum(dim=1)
        return (found - expected).abs() / expected.abs().clamp(min=1e-12)

    def evaluation(
        self, noise, latent, images, scores, gradient_norm=None, penalty=None, watched=None, picture_term=None
    ):
        """Record everything about one sampled and scored noise, and let it compete for the best.

        Args:
            noise .. penalty: see `Evaluation`.
            watched, picture_term: likewise, where they are known already.
        """
        values = {THE_REWARD: scores}
        if self.picture is not None:
            picture_term = self.picture.value(latent) if picture_term is None else picture_term
            values[THE_TERM] = picture_term = self._on_noise(picture_term, noise)
        self.end_where_not_finite(values, images)
        return self._recorded(noise, latent, images, scores, gradient_norm, penalty, watched, picture_term)

    def _recorded(
        self, noise, latent, images, scores, gradient_norm=None, penalty=None, watched=None, picture_term=None
    ):
        log_p, log_p_initial = self.log_probabilities(noise)
        found = Evaluation(
            noise=noise,
            latent=latent,
            images=images,
            scores=scores,
            watched=self.watched(latent, images) if watched is None else watched,
            log_p=log_p,
            log_p_initial=log_p_initial,
            gradient_norm=gradient_norm,
            penalty=penalty,
            picture_term=picture_term,
            iteration=self.iteration,
            seconds=time.perf_counter() - self.started,
        )
        least = torch.minimum(log_p, log_p_initial)
        self.best.offer(noise, latent, images, scores, least, self.iteration, found.watched, found.objective)
        self.latest = found
        return self.latest

    def watched(self, latent, images):
        """Return name -> scores (B,) of what is recorded beside the score: watched rewards, each part of combined ones.

        Of several with one name the second has a 2 behind it, and so on.

        Args:
            latent: (B, ..), for what judges latents.
            images: (B, 3, H, W), its pictures.
        """
        prompts, found = self.sample_map.prompts, []
        for place, reward in enumerate((self.reward, *self.watch)):
            seen = latent if judges_latents(reward) else images
            parts = part_scores(reward, seen, prompts)
            if parts:
                found += parts.items()
            elif place > 0:
                found.append((name_of(reward), score(reward, seen, prompts)))
        names = numbered([name for name, _ in found])
        return dict(zip(names, (scores for _, scores in found), strict=True))

    def under_floors(self, latent, images):
        """Return what `watched` does, where there are floors on it; else {}, and nothing is scored."""
        return self.watched(latent, images) if self.best.floors else {}

    def end_where_not_finite(self, values, images=None):
        """End the search of the pictures of which a value is not finite; the others' goes on.

        All values are looked at together: to look makes the host wait for the device.

        Args:
            values: what they are, for the message -> (B,); `THE_REWARD` is the reward's scores. The first that is not
                finite is given as the reason.
            images: (B, ..), the pictures that were scored: where one of them is not finite, that is the reason.

        Raises:
            NotFiniteError: no picture's search goes on.
        """
        finite = torch.stack([each.isfinite() for each in values.values()])
        if finite.all():
            return
        for what, passed in zip(values, finite.tolist(), strict=True):
            for item in (item for item, fine in enumerate(passed) if not fine and item not in self.ended):
                self.ended[item] = self._what_is_not_finite(item, values[what], what, images)
                log.warning("picture %d has ended: %s", item, self.ended[item])
        if len(self.ended) == len(passed):
            raise NotFiniteError("; ".join(dict.fromkeys(self.ended.values())))

    def _what_is_not_finite(self, item, values, what, images):
        value = values[item].item()
        if images is not None and not images[item].isfinite().all():
            what, value = "the picture", "not finite, so the model or the VAE is at fault and not the reward,"
        elif what == THE_REWARD:
            what = f"the reward {self._part_at_fault(item, images)}"
        return f"{what} is {value} at iteration {self.iteration}; expected finite numbers"

    def _part_at_fault(self, item, images):
        """Return the name of the reward, or of those of its parts whose score of this picture is not finite."""
        names = []
        if images is not None:
            parts = part_scores(self.reward, images, self.sample_map.prompts)
            names = [name for name, scores in parts.items() if not scores[item].isfinite()]
        return ", ".join(names) or name_of(self.reward)

    def goes_on(self, noise):
        """Return (B,) booleans on the noise's device: which pictures are still searched."""
        return torch.tensor([item not in self.ended for item in range(noise.batch)], device=noise.initial.device)

    def held(self, noise):
        """Return `noise` with the best's in place of those of the pictures that have ended."""
        if not self.ended:
            return noise
        kept = self.best.noise if self.best.noise is not None else noise
        return noise.with_flat(torch.where(self.goes_on(noise)[:, None], noise.flat(), kept.flat()))

    def fail(self, error):
        """Remember the first error that ended a search whose best is kept; without what its traceback holds on to."""
        if self.failure is None:
            self.failure = type(error)(str(error))

    def warn(self, text):
        """Record and log what the user should know, each text once."""
        if text not in self.warnings:
            self.warnings.append(text)
            log.warning("%s", text)

    @staticmethod
    def _on_noise(values, noise):
        return values.to(noise.initial.device)


def where(mask, new, old, dim=0):
    """Return `new` where the (B,) mask is true along dimension `dim`, `old` elsewhere."""
    return torch.where(mask.to(old.device).view(-1, *[1] * (old.ndim - 1 - dim)), new, old)


def _stacked(propose, indices):
    """Return the candidates of those numbers as rows (c * B, n), written one by one, so that none is held twice."""
    first = propose(indices.start)
    rows = first.new_empty(len(indices), *first.shape)
    rows[0] = first
    for place in range(1, len(indices)):
        rows[place] = propose(indices[place])
    return rows.flatten(0, 1)


def taken(stack, index):
    """Return (B, ..): of each picture b the candidate index[b] of a stack (c, B, ..), wherever that is."""
    index = index.to(stack.device)
    return stack[index, torch.arange(len(index), device=stack.device)]
