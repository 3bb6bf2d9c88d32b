"""The Combine Rewards node, and its z-scores that are measured on the first noises of a run."""

import torch
from comfy_api.latest import io

from ... import rewards
from ...core.scoring import part_scores
from .. import sockets

NUMBERS = (1, 2, 3, 4)
PRIORS = "'0.27 0.02, 21 1.2, 0 1, 0 1'"


class DNOCombineRewards(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOCombineRewards",
            display_name="Combine Rewards",
            category=sockets.REWARDS,
            description=(
                "A weighted sum of up to four rewards. For more, connect a Combine Rewards to another one. DNO Report"
                " shows each reward's own score too."
            ),
            inputs=[
                *(
                    sockets.Reward.Input(f"reward_{n}", optional=n > 1, tooltip="A reward, or another Combine Rewards.")
                    for n in NUMBERS
                ),
                io.Combo.Input(
                    "mode", options=["raw", "z-scored"], default="raw",
                    tooltip="raw adds weight x score. z-scored takes the mean off each score and divides by the"
                    " standard deviation first, so that a weight of 1 means the same for every reward.",
                ),
                io.Int.Input(
                    "calibrate_on", default=0, min=0, max=256,
                    tooltip="z-scored only: measure mean and standard deviation on pictures of so many noises, 8 or"
                    " more, before the search. DNO Score Images, Pick Best and Gate measure them on their own pictures."
                    " 0 takes the priors.",
                ),
                io.String.Input(
                    "priors", default="",
                    tooltip="z-scored without calibration: mean and standard deviation of each connected reward,"
                    f" {PRIORS}. Empty takes what is typical of HPS, PickScore, CLIPScore, ImageReward and Aesthetic.",
                ),
                *(each for n in NUMBERS for each in settings_of_a_part(n)),
            ],
            outputs=[sockets.Reward.Output("reward", display_name="reward", tooltip="For the DNO Sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, mode, calibrate_on, priors, **inputs) -> io.NodeOutput:
        given = [n for n in NUMBERS if inputs.get(f"reward_{n}") is not None]
        parts, weights, watch_only = (
            [inputs[f"{name}_{n}"] for n in given] for name in ("reward", "weight", "watch_only")
        )
        if mode == "z-scored" and calibrate_on:
            return io.NodeOutput(Uncalibrated(parts, weights, watch_only, calibrate_on))
        known = priors_of(priors, parts, watch_only) if mode == "z-scored" else None
        return io.NodeOutput(rewards.Combine(parts, weights, known, watch_only))


class Uncalibrated(rewards.Combine):
    """A Combine that cannot score before `calibrated` has made another of it.

    Attributes:
        calibrate_on: the number of pictures wanted for that.
    """

    def __init__(self, parts, weights, watch_only, calibrate_on):
        super().__init__(parts, weights, watch_only=watch_only)
        self.calibrate_on = calibrate_on

    def __call__(self, images, prompts=None):
        raise ValueError(
            "this Combine Rewards has not been calibrated; expected a DNO Sampler, DNO Score Images, Pick Best or Gate,"
            " which do that. Set its calibrate_on to 0 to use it elsewhere"
        )

    image_gradient = __call__


def calibrated(reward, batches, prompts=None, counted=slice(None)):
    """Return the reward with every `Uncalibrated` in it z-scored by what pictures score, the inner ones first.

    Args:
        reward: any reward.
        batches: list of (B, 3, H, W), scored one after another: of N >= 2 unsearched noises in all.
        prompts: of each batch, length B or None.
        counted: (B,) booleans, which pictures of each batch count; all are scored, each with what belongs to it.
    """
    if not pictures_wanted(reward):
        return reward
    parts = [calibrated(part, batches, prompts, counted) for part in reward.parts]
    combined = rewards.Combine(parts, reward.weights, reward.priors, reward.watch_only)
    if not isinstance(reward, Uncalibrated):
        return combined
    found = [part_scores(combined, images, prompts) for images in batches]
    return combined.calibrate({name: torch.cat([scores[name][counted] for scores in found]) for name in found[0]})


def pictures_wanted(reward):
    """Return how many pictures the reward must be calibrated on before it can score, 0 for most rewards."""
    if not isinstance(reward, rewards.Combine):
        return 0
    return max(getattr(reward, "calibrate_on", 0), *map(pictures_wanted, reward.parts))


def priors_of(text, parts, watch_only):
    """Return a (mean, sd) a part, as the text lists them or else as is typical of it; None where it only watches."""
    if not text.strip():
        pairs = zip(parts, watch_only, strict=True)
        return [None if watched else rewards.typical(part) for part, watched in pairs]
    try:
        priors = [tuple(float(number) for number in pair.split()) for pair in text.split(",")]
    except ValueError:
        priors = []
    if len(priors) != len(parts) or any(len(prior) != 2 for prior in priors):
        raise ValueError(
            f"priors are {text!r}; expected mean and standard deviation of each of the {len(parts)} connected rewards,"
            f" such as {PRIORS}, or nothing"
        )
    return priors


def settings_of_a_part(n):
    return [
        io.Float.Input(
            f"weight_{n}", default=1.0, min=-1000.0, max=1000.0, step=0.01, round=0.0001,
            tooltip=f"How much reward_{n} counts; below 0 its opposite is searched.",
        ),
        io.Boolean.Input(
            f"watch_only_{n}", default=False, label_on="watch only", label_off="optimise",
            tooltip=f"Record the score of reward_{n} and never optimise it.",
        ),
    ]  # fmt: skip
