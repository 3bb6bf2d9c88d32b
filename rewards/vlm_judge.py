"""Rewards by a vision-language model that is asked about the picture: black boxes, for solvers without gradients.

    VLMJudge    log(P(yes) / P(no)) of the first answered token to any question                about -10 to 10
    HPSv3       the mean that its own head reads off a special token (Ma et al. 2025)          about 0 to 12

P(yes) / (P(yes) + P(no)), as VQAScore has it (Lin et al. 2024), is the sigmoid of the former. It is the same order, but
of pictures that a model is sure of all are 1: their log-odds still differ.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from .networks import check_tower
from .pictures import rgb
from .prompts import texts_for
from .vlm_tower import VlmTower

YES = ("Yes", "yes", "YES", " Yes", " yes", " YES")
NO = ("No", "no", "NO", " No", " no", " NO")
"""How models begin an answer; of these counts what is one token."""

PROMPT = "{prompt}"
QUESTION = 'Does this picture show "{prompt}"? Please answer yes or no.'

SCALES = ("log-odds", "probability")


@dataclass(eq=False)
class VLMJudge:
    """How sure a vision-language model is that the answer to a question about the picture is yes.

    Example:
        >>> tower = rewards.load_tower("Qwen2-VL-2B-Instruct")
        >>> images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        >>> scores = rewards.VLMJudge(tower, "Is there {prompt} in this picture?", "a cat")(images)
        >>> scores.shape
        torch.Size([2])

    Attributes:
        tower: a VlmTower, which `load_tower` makes of a folder.
        question: to answer with yes or no; {prompt} in it stands for the prompt.
        prompt: for every picture; None takes the prompts the sample map hands over.
        scale: of the score: "log-odds", or "probability", which has no room above 1.
    """

    tower: VlmTower
    question: str = QUESTION
    prompt: str | None = None
    scale: str = "log-odds"
    name = "VLM judge"
    differentiable = False

    def __post_init__(self):
        check_tower(self.tower, self.name, ["VLM"], ["VLM"])
        if self.scale not in SCALES:
            raise ValueError(f"scale is {self.scale!r}; expected one of {', '.join(map(repr, SCALES))}")
        if not self.question.strip():
            raise ValueError(f"the question is empty; expected one that is answered with yes or no, such as {QUESTION}")
        self._yes, self._no = self.tower.tokens(YES), self.tower.tokens(NO)

    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), nominally [0, 1]; prompts of length B unless one was set."""
        images = rgb(images)
        texts = texts_for(self, images, prompts) if PROMPT in self.question else [""] * len(images)
        questions = [self.question.replace(PROMPT, text) for text in texts]
        logits = self.tower.answers(files(images), questions, [*self._yes, *self._no])
        yes, no = logits.split([len(self._yes), len(self._no)], dim=1)
        odds = yes.logsumexp(dim=1) - no.logsumexp(dim=1)
        return judged(odds if self.scale == "log-odds" else odds.sigmoid(), images)


@dataclass(eq=False)
class HPSv3:
    """Human Preference Score v3: how much people like the picture for the prompt, by a Qwen2-VL with a head of its own.

    Example:
        >>> tower = rewards.load_tower("HPSv3")
        >>> images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        >>> scores = rewards.HPSv3(tower, "a cat")(images)
        >>> scores.shape
        torch.Size([2])

    Attributes:
        tower: a VlmTower whose weights have that head.
        prompt: for every picture; None takes the prompts the sample map hands over.
    """

    tower: VlmTower
    prompt: str | None = None
    name = "HPSv3"
    differentiable = False

    def __post_init__(self):
        check_tower(self.tower, self.name, ["VLM"], ["VLM"])
        if not self.tower.rates:
            raise ValueError(
                f"{self.tower.name} has no weights rm_head.0.weight and so on; expected HPSv3.safetensors from"
                f" huggingface.co/MizzenAI/HPSv3 as its model.safetensors. For other models use VLMJudge"
            )

    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), nominally [0, 1]; prompts of length B unless one was set."""
        images = rgb(images)
        texts = [instruction().replace(PROMPT, text) for text in texts_for(self, images, prompts)]
        pictures = [picture.resize(seen_size(*picture.size), Image.Resampling.BICUBIC) for picture in files(images)]
        return judged(self.tower.ratings(pictures, texts)[:, 0], images)


def files(images):
    """Return pictures as files hold them, Pillow's, of 8 bits; black where one is not finite."""
    levels = (images.detach().nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()]


def judged(scores, images):
    """Return scores as float32 where the images are, NaN for pictures that are not finite, which 8 bits cannot hold."""
    return scores.float().to(images.device).masked_fill(images[:, 0, 0, 0].isnan(), torch.nan)


PATCH, AREA = 28, 256 * 28 * 28
"""Pixels of a side of what is one token to Qwen2-VL, and of the pictures that HPSv3 was trained on."""


def seen_size(width, height):
    """Return the width and height that HPSv3 sees a picture at: of `AREA` at most, or at least if it was smaller."""
    sides = [max(PATCH, round(side / PATCH) * PATCH) for side in (width, height)]
    area, scale = sides[0] * sides[1], math.sqrt(AREA / (width * height))
    if area > AREA:
        return tuple(math.floor(side * scale / PATCH) * PATCH for side in (width, height))
    if area < AREA:
        return tuple(math.ceil(side * scale / PATCH) * PATCH for side in (width, height))
    return tuple(sides)


def instruction():
    """Return what HPSv3 is asked, as it was in its training."""
    return Path(__file__).with_name("hpsv3_instruction.txt").read_text(encoding="utf-8")
