"""A person as the judge: pictures are shown, the liked ones are named, and the noise moves there.

A person gives no score, only answers such as "the third". They stand where the scores of ZeNO's candidates would
stand. With xi_i the random noise in candidate i, let its worth be u_i = <theta, xi_i>, with an unknown direction of
taste theta. Then (Plackett and Luce; of two candidates Bradley and Terry) the probability that i is picked out of K is

    P(i) = exp(u_i) / sum_j exp(u_j)        d ln P(i) / d theta at 0 = xi_i - mean_j xi_j

and of a set S that is liked better than the rest, the same sum over pairs is, up to a factor, sum_i w_i xi_i with
w_i = [i in S] / |S| - 1 / K. These w take the place of ZeNO's weights. [derived: for ZeNO see `solvers/zeno.py`]
"""

import math
import operator
from dataclasses import dataclass, replace
from functools import partial

import torch

from .checks import check_finite, check_whole
from .noise import Checkpoint, Noise
from .problem import Problem
from .solvers.base import neighbour, within_length

SOLVER = "Preference"
"""What a checkpoint of answers calls its solver."""
PICKS = "picks"
"""The setting of a noise that tells the answers it came by."""
FINER = 0.8
"""Each time that the shown noise itself is liked best, the next candidates are nearer to it by this factor.

On a linear taste, which has no end, that costs 3 % of what 20 rounds gain, and 1 % of 60; 0.7 costs 8 and 12 %."""


@dataclass(frozen=True)
class Preference:
    """What is shown in a round, and what an answer does to the noise.

    Picture 0 is the noise as it is, the others are its neighbours sqrt(1 - s^2) z + s xi_i, as ZeNO draws them. An
    answer of one number makes that very noise the next one; 0 keeps it, and the neighbours come nearer. An answer of
    several moves it to sqrt(1 - s^2) z + s sum w xi / sqrt(sum w^2), see above, which tells more: on a linear taste the
    half that is liked gains half as much again as the best alone. Either way true noise stays true noise.

    The state, the round and the answers so far, is in the noise: saved with it, and gone on from.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise, preference = sample_map.randn(seed=0), Preference(candidates=4)
        >>> latent, images = preference.shown(sample_map, noise)
        >>> noise = preference.after(sample_map, noise, 2)
        >>> torch.allclose(sample_map.sample(noise), images[2:3], atol=1e-6)
        True
        >>> preference.after(sample_map, noise, [1, 3]).settings["picks"]
        [[2], [1, 3]]

    Attributes:
        candidates: K, pictures shown in a round, the noise's own among them.
        strength: s, how much of a neighbour's noise is new at first: 0.1 changes details, 0.4 the layout.
        seed: of the neighbours.
    """

    candidates: int = 6
    strength: float = 0.3
    seed: int = 0

    def __post_init__(self):
        check_whole(2, candidates=self.candidates)
        check_whole(-math.inf, seed=self.seed)
        check_finite(strength=self.strength)
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength is {self.strength}; expected a number above 0, and at most 1")

    def shown(self, sample_map, noise):
        """Sample the pictures of the next round.

        Args:
            sample_map: the SampleMap, of one picture.
            noise: a Noise that it can sample.

        Returns:
            latent: (K, C, H, W).
            images: (K, 3, H, W), not clamped.
        """
        problem = _problem(sample_map, noise)
        found = list(problem.candidates(noise, self.candidates, partial(self._candidate, problem, noise)))
        return tuple(torch.cat([getattr(each, name)[:, 0] for each in found]) for name in ("latent", "images"))

    def after(self, sample_map, noise, answer):
        """Return the noise that an answer leads to, with the round and all answers so far.

        Args:
            sample_map, noise: those that `shown` took.
            answer: the number of the picture that is liked best, from 0, or the numbers of several.

        Raises:
            ValueError: the answer names no picture, one that was not shown, or all of them.
        """
        picked, problem = self._checked(answer), _problem(sample_map, noise)
        flat = self._candidate(problem, noise, picked[0]) if len(picked) == 1 else self._towards(problem, noise, picked)
        if list(picked) != [0]:  # else it is kept, however long; and what is not searched is kept always
            flat = within_length(sample_map, noise, flat)
        settings = {**noise.settings, PICKS: [*picks_of(noise), picked]}
        moved = replace(noise.with_flat(flat), settings={}, kept=noise.kept)
        return replace(moved, settings=settings, checkpoint=Checkpoint(moved, SOLVER, problem.iteration + 1, {}))

    def strength_at(self, noise):
        """Return the strength of the next round's neighbours."""
        return self.strength * FINER ** picks_of(noise).count([0])

    def _candidate(self, problem, noise, index):
        if index == 0:
            return noise.flat()
        return neighbour(problem, noise, noise.flat(), index, self.strength_at(noise) ** 2, self.seed)

    def _towards(self, problem, noise, picked):
        """Return the noise, (1, n), moved towards the liked candidates and away from the others."""
        flat, strength = noise.flat(), self.strength_at(noise)
        weights = [(index in picked) / len(picked) - 1 / self.candidates for index in range(self.candidates)]
        mean = torch.zeros_like(flat)
        for index in range(1, self.candidates):  # the noise itself has no xi
            mean.add_(problem.draw(index, flat, self.seed), alpha=weights[index])
        mean.div_(math.sqrt(sum(weight**2 for weight in weights[1:])))
        return mean.mul_(strength).add_(flat, alpha=math.sqrt(1 - strength**2))

    def _checked(self, answer):
        """Return the numbers of an answer in order; raise ValueError unless they say which pictures are liked."""
        numbers = _numbers(answer)
        picked = sorted(set(numbers))
        if len(picked) != len(numbers) or not set(picked) < set(range(self.candidates)) or not picked:
            raise ValueError(
                f"the answer is {answer!r}; expected the number of the picture that is liked best, from 0 to"
                f" {self.candidates - 1}, or the numbers of several, but not of all"
            )
        return picked


@dataclass(frozen=True)
class Asked:
    """What `ask` returns.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> asked = ask(sample_map, sample_map.randn(seed=0), lambda images: 1, rounds=2)
        >>> torch.allclose(sample_map.sample(asked.noise), asked.images)
        True

    Attributes:
        noise: the Noise that the answers led to: save it, search on from it, or ask on.
        images: (1, 3, H, W), its picture, not clamped.
        latent: (1, C, H, W).
    """

    noise: Noise
    images: torch.Tensor
    latent: torch.Tensor


def ask(sample_map, noise, answer, rounds=10, preference=None):
    """Let a person, or any function that compares pictures, lead the noise.

    A noise that an earlier call returned, or that was saved then, goes on from there, at the round after its last.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise = sample_map.randn(seed=0)
        >>> def brightest(images):
        ...     return images.mean(dim=(1, 2, 3)).argmax().item()
        >>> asked = ask(sample_map, noise, brightest, rounds=5)
        >>> asked.images.mean() > sample_map.sample(noise).mean()
        tensor(True)
        >>> len(asked.noise.settings["picks"])
        5

    Args:
        sample_map: the SampleMap, of one picture.
        noise: the Noise to start from.
        answer: (images (K, 3, H, W)) -> the number of the one that is liked best, from 0, or the numbers of several.
            0 is the picture as it is. None ends the asking.
        rounds: most rounds of this call.
        preference: how pictures are varied, a Preference.

    Raises:
        ValueError: the map or the noise is of several pictures, or was made otherwise; or see `Preference.after`.
    """
    check_whole(0, rounds=rounds)
    preference = preference or Preference()
    sample_map.check_settings(noise)
    noise = sample_map.here(noise)
    for _ in range(rounds):
        _, images = preference.shown(sample_map, noise)
        told = answer(images)
        if told is None:
            break
        noise = preference.after(sample_map, noise, told)
    latent = sample_map.latent(noise)
    noise = replace(noise, settings={**noise.settings, **sample_map.settings})
    return Asked(noise, sample_map.images(latent), latent)


def picks_of(noise):
    """Return the answers that led to a noise, a list of numbers each; none where it comes from elsewhere.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> picks_of(ask(sample_map, sample_map.randn(seed=0), lambda images: 1, rounds=2).noise)
        [[1], [1]]
    """
    return noise.settings.get(PICKS, []) if _round(noise) else []


def _round(noise):
    """Return how many answers led to a noise."""
    checkpoint = noise.checkpoint
    return checkpoint.iteration if checkpoint is not None and checkpoint.solver == SOLVER else 0


def _problem(sample_map, noise):
    """Return a Problem of the next round, which draws and samples its candidates; nothing is scored."""
    if sample_map.shape[0] != 1 or noise.batch != 1:
        raise ValueError(
            f"the noise is of {noise.batch} pictures and the sample map of {sample_map.shape[0]}; expected one, which"
            " is varied: set the batch size to 1, and take one picture's noise (Noise.item, DNO Noise From Batch)"
        )
    return Problem(sample_map, reward=None, iteration=_round(noise))


def _numbers(answer):
    """Return the whole numbers in an answer, one or several; none where it is something else."""
    try:
        return [operator.index(answer)]
    except TypeError:
        pass
    try:
        return [operator.index(each) for each in answer]
    except TypeError:
        return []
