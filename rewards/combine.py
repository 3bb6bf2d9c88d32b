"""Several rewards as one: a weighted sum, of raw scores or of z-scores.

    score = sum over the counted parts of weight * (part - mean) / sd          raw: mean 0, sd 1

Raw weights are what the literature states: ReNO's are HPS 5, ImageReward 1, PickScore 0.05, CLIPScore 1 (0.01 in its
code, of 100 times the cosine). Z-scored, a weight of 1 means the same for every part: one standard deviation of what it
usually scores. That is a prior, or better measured on N >= 8 pictures of unsearched noise and frozen, since it differs
from prompt to prompt:

    reward = Combine([hps, pick], priors=[typical(hps), typical(pick)])
    images = torch.cat([sample_map.sample(sample_map.randn(seed)) for seed in range(8)])
    reward = reward.calibrate(reward.part_scores(images, prompts))   # prompts: one a picture, or None
"""

import copy
import math

import torch

from ..core.scoring import asked, checked, exact, name_of, numbered, remarks, score
from .jitter import Jittered

TYPICAL = {
    "HPS": (0.27, 0.02),
    "PickScore": (21.0, 1.2),
    "CLIPScore": (0.33, 0.04),
    "ImageReward": (0.0, 1.0),
    "Aesthetic": (5.5, 0.6),
}
"""Mean and standard deviation of the scores of generated pictures, by class; rough, HPS v2.1 and ViT-H's CLIPScore."""

RAW = (0.0, 1.0)


class Combine:
    """A weighted sum of rewards, differentiated part by part: memory is that of the largest, not of all.

    Args:
        parts: rewards, one or more; a Combine may be among them.
        weights: one a part, None 1 for all.
        priors: a (mean, sd) a part, by which its score is z-scored; None in its place, or (0, 1), leaves it raw, and
            None alone all of them.
        watch_only: one boolean a part: True records its score and never optimises it; None counts all.

    Example:
        >>> reward = rewards.Combine([rewards.Brightness(), rewards.Contrast()], weights=[1, 10])
        >>> white = torch.ones(1, 3, 8, 8)
        >>> reward(white)
        tensor([1.])
        >>> reward.part_scores(white)
        {'brightness': tensor([1.]), 'contrast': tensor([0.])}

    Attributes:
        parts, weights, priors, watch_only: tuples, one entry a part.
        names: what each part's raw score is called in histories; parts of the same name are numbered.
        counted: the parts that are not watched only.
        differentiable: whether all counted parts are.
        part_settings: name -> what a part counts, and its prior; kept in histories.
    """

    name = "combined"

    def __init__(self, parts, weights=None, priors=None, watch_only=None):
        self.parts = tuple(parts)
        self.weights = tuple(map(float, self._each("weights", weights, 1.0)))
        self.priors = tuple(tuple(map(float, prior or RAW)) for prior in self._each("priors", priors, RAW))
        self.watch_only = tuple(map(bool, self._each("watch_only", watch_only, False)))
        self.names = numbered([name_of(part) for part in self.parts])
        self._counted = [index for index, watched in enumerate(self.watch_only) if not watched]
        if not self._counted:
            raise ValueError(f"found {len(self.parts)} parts, none to optimise; expected one that is not watch-only")
        for name, prior in zip(self.names, self.priors, strict=True):
            if not (math.isfinite(prior[0]) and 0 < prior[1] < math.inf):
                raise ValueError(f"the prior of {name} is {prior}; expected a mean and an sd above 0")
        for name, weight in zip(self.names, self.weights, strict=True):
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {name} is {weight}; expected a finite number")
        self.counted = tuple(self.parts[index] for index in self._counted)
        self.differentiable = all(getattr(part, "differentiable", True) for part in self.counted)
        self._latest = None  # images, prompts and {index: scores} of the latest call

    @property
    def part_settings(self):
        """Name -> each part's weight, mean, sd and watch_only, JSON types; a nested Combine's parts too."""
        found = {}
        rows = zip(self.names, self.parts, self.weights, self.priors, self.watch_only, strict=True)
        for name, part, weight, (mean, sd), watch_only in rows:
            found[name] = {"weight": weight, "mean": mean, "sd": sd, "watch_only": watch_only}
            if isinstance(part, Combine):
                found |= {f"{name}/{inner}": values for inner, values in part.part_settings.items()}
        return found

    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W)."""
        found = {}
        for index in self._counted:
            # Of a copy: a part may change its pictures in place, which the next must not see.
            scores = asked(self.parts[index], self.parts[index], images.clone(), prompts)
            found[index] = checked(self.parts[index], scores, images)
        if not any(scores.requires_grad for scores in found.values()):
            self._remember(images, prompts, found)
        return self._sum(found)

    def image_gradient(self, images, prompts=None):
        """Score and differentiate one counted part after another, so that one part's graph exists at a time.

        Args:
            images: (B, 3, H, W).
            prompts: length B or None.

        Returns:
            scores: (B,), detached.
            d_images: (B, 3, H, W), each picture's own gradient.
        """
        found, d_images = {}, 0
        for index in self._counted:
            found[index], gradient = exact(self.parts[index], images, prompts)
            d_images = d_images + self._slope(index) * gradient
        self._remember(images, prompts, found)
        return self._sum(found), d_images

    def part_scores(self, images, prompts=None):
        """Return name -> (B,), every part's own score, watched ones and a nested Combine's parts included; no gradient.

        What the latest call or `image_gradient` has scored, if it was these pictures, is not scored again.
        """
        known, raw = self._known(images, prompts), {}
        for index, (name, part) in enumerate(zip(self.names, self.parts, strict=True)):
            raw[name] = known[index].clone() if index in known else score(part, images, prompts)
            if isinstance(part, Combine):
                raw |= {f"{name}/{inner}": scores for inner, scores in part.part_scores(images, prompts).items()}
        self._latest = None
        return raw

    def calibrate(self, raw):
        """Return the same Combine with each counted part z-scored by mean and standard deviation of given scores.

        Args:
            raw: name -> (N,) scores, as `part_scores` returns them, of N >= 2 pictures; 8 or more are better.
        """
        priors = list(self.priors)
        for index in self._counted:
            name = self.names[index]
            values = torch.as_tensor(raw[name]).cpu().double()  # not every device has float64
            if len(values) < 2 or not values.isfinite().all() or values.std() == 0:
                raise ValueError(
                    f"{name} scored {values.tolist()}; calibration needs two or more finite scores that differ. Give"
                    " it pictures of more noises, or a prior"
                )
            priors[index] = (values.mean().item(), values.std().item())
        return Combine(self.parts, self.weights, priors, self.watch_only)

    def _sum(self, found):
        """Return the score, given the counted parts' as index -> (B,)."""
        return sum(self._slope(index) * (scores - self.priors[index][0]) for index, scores in found.items())

    def _slope(self, index):
        return self.weights[index] / self.priors[index][1]

    def _remember(self, images, prompts, found):
        self._latest = images.detach(), prompts and list(prompts), found

    def remarks(self, images):
        """Return what the parts have to say of pictures."""
        return [sentence for part in self.parts for sentence in remarks(part, images)]

    def _known(self, images, prompts):
        """Return index -> scores of the latest call, if it was these pictures."""
        if self._latest is None:
            return {}
        latest, their_prompts, found = self._latest
        same = (latest.shape, latest.dtype, latest.device) == (images.shape, images.dtype, images.device)
        return found if same and their_prompts == (prompts and list(prompts)) and torch.equal(latest, images) else {}

    def _each(self, what, values, default):
        values = tuple(values) if values is not None else (default,) * len(self.parts)
        if len(values) != len(self.parts):
            raise ValueError(f"found {len(values)} {what} for {len(self.parts)} parts; expected one a part")
        return values


def typical(reward):
    """Return (mean, sd), what a reward model usually scores, also of crops, to z-score it by."""
    whole = reward.reward if isinstance(reward, Jittered) else reward
    prior = TYPICAL.get(type(whole).__name__)
    if prior is None:
        raise ValueError(
            f"no typical mean and sd are known of {name_of(reward)}, only of {', '.join(TYPICAL)}; give a prior of your"
            " own, or calibrate"
        )
    return prior


def in_parity(reward):
    """Return the reward as its authors compute it from 8-bit pixels, to report by; see `Preprocess`.

    Of a Combine all parts are taken so. What has no such mode is returned as it is: pixel rewards, crops, one's own.
    """
    if isinstance(reward, Combine):
        return Combine([in_parity(part) for part in reward.parts], reward.weights, reward.priors, reward.watch_only)
    if getattr(reward, "parity", None) is not False:
        return reward
    reported = copy.copy(reward)
    object.__setattr__(reported, "parity", True)  # some are frozen
    return reported
