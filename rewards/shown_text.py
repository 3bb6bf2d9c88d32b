"""How well a text can be read off a picture: the log-probability that a recogniser of text lines reads just that.

    images --box--> line, 48 high --recogniser--> p(character or blank) at each of W / 8 places --CTC--> log p(text)

A recogniser says at each place, from left to right, which character it sees, or blank between two. CTC (Graves et al.
2006) adds up the probabilities of all the ways to read the text so: each character at one place or several in a row,
blanks anywhere, and at least one between two equal characters.

    a[0](s) = log p_0(l_s) for s = 0, 1                                                  l = blank, c_1, blank, c_2, ..
    a[t](s) = log p_t(l_s) + log(exp a[t-1](s) + exp a[t-1](s-1) + [may skip] exp a[t-1](s-2))
    log p   = log(exp a[T-1](S-1) + exp a[T-1](S-2))                                              Eqs. (5) to (8) there
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional as F

from . import weights
from .networks import check_tower, slices
from .onnx import OnnxPixels
from .onnx_tower import OnnxTower
from .pictures import rgb

HEIGHT = 48
"""Of the lines that PP-OCR's recognisers read, in pixels, where the file takes any."""

NEVER = -1e30
"""A log-probability of what cannot be; minus infinity would make gradients NaN."""

WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(eq=False)
class ShownText:
    """How well a recogniser reads a text off one line of the picture: log p(text), per character.

    Example:
        >>> tower = rewards.load_tower("ch_PP-OCRv4_rec_infer.onnx")
        >>> images = torch.rand((2, 3, 64, 256), generator=torch.Generator().manual_seed(0))
        >>> scores = rewards.ShownText(tower, "CAT")(images)
        >>> bool((scores < 0).all())
        True

    Attributes:
        tower: an OnnxTower of a recogniser whose file lists its characters, as those of RapidOCR do.
        text: one line, from left to right.
        box: where it shall stand: left, top, width and height, as shares of the picture's width and height.
    """

    tower: OnnxTower
    text: str
    box: tuple = WHOLE
    differentiable = True

    def __post_init__(self):
        check_tower(self.tower, self.name, ["ONNX"], ["Text"])
        self.text = self.text.strip()
        left, top, width, height = self.box
        if min(self.box) < 0 or min(width, height) <= 0 or left + width > 1 + 1e-6 or top + height > 1 + 1e-6:
            raise ValueError(
                f"box is {tuple(self.box)}; expected left, top, width and height as shares of the picture, inside of it"
            )
        if len(self.tower.outputs) != 1:
            raise ValueError(
                f"{self.tower.name} has {len(self.tower.outputs)} outputs, {', '.join(self.tower.outputs)}; expected a"
                " recogniser of text lines with one, the probability of each character at each place"
            )
        self._labels = _labels(self.text, self._characters, self.tower.name)
        self._sizes = {}

    @property
    def name(self):
        return f"text {self.text!r}"

    @cached_property
    def _characters(self):
        """What the classes mean: blank, those that the file lists, and a space, which it leaves out."""
        listed = self.tower.metadata.get("character", "").splitlines()
        if not listed:
            raise ValueError(
                f"{self.tower.name} does not list its characters; expected a recogniser of text lines with them in the"
                f" file's metadata, such as {weights.known_files(['Text'])}"
            )
        return ["", *listed, " "]

    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), nominally [0, 1]: 0 where the text is read for certain."""
        lines = self.lines(rgb(images))
        return torch.cat([self._score(lines[rows]) for rows in slices(lines)]).to(images.device)

    def lines(self, images):
        """Return the box of images as the recogniser is shown it: (B, 3, 48, W), with the box's own shape.

        One that is higher than wide is stretched to a square.
        """
        left, top, across, down = self.box
        rows, columns = (_span(*each) for each in ((top, down, images.shape[-2]), (left, across, images.shape[-1])))
        boxes = images[..., rows, columns]
        tall = self.tower.inputs[0].shape[2] or HEIGHT
        wide = max(round(tall * boxes.shape[-1] / boxes.shape[-2]), tall)
        return OnnxPixels((tall, wide), mean=(0.5,), std=(0.5,), channels="BGR")(boxes)

    def _score(self, lines):
        memory, places = self._size(tuple(lines.shape[1:]))
        self._check_room(places, lines)
        with self.tower.running(len(lines) * memory) as device:
            (chances,) = self.tower.module(lines.to(device, self.tower.dtype))
            if chances.shape[2] != len(self._characters):
                raise ValueError(
                    f"{self.tower.name} gives {chances.shape[2]} classes and lists {len(self._characters) - 2}"
                    " characters; expected two more, blank and space"
                )
            logs = chances[..., self._labels].clamp(min=torch.finfo(chances.dtype).tiny).log()
            return log_probability(logs, self._labels) / len(self.text)

    def _size(self, shape):
        """Return the bytes that a line takes, with gradient, and its number of places."""
        if shape not in self._sizes:
            (found,), sizes = self.tower.tried((1, *shape))
            self._sizes[shape] = sum(sizes), found.shape[1]
        return self._sizes[shape]

    def _check_room(self, places, lines):
        equal = sum(a == b for a, b in zip(self.text, self.text[1:], strict=False))
        if places < len(self.text) + equal:
            tall, wide = lines.shape[-2:]
            raise ValueError(
                f"the box, {wide} x {tall} pixels as {self.tower.name} sees it, has room for {places} characters;"
                f" {self.text!r} needs {len(self.text) + equal}, one more for each pair of equal neighbours. Make the"
                f" box {math.ceil((len(self.text) + equal) / places)} times as wide for its height, or the text shorter"
            )


def _span(start, share, length):
    """Return the slice of so many pixels that a share of them is, from the share `start` on; one pixel at least."""
    first = min(round(start * length), length - 1)
    return slice(first, max(round((start + share) * length), first + 1))


def log_probability(logs, labels):
    """Return the log-probability (B,) that CTC gives a text, differentiable.

    Args:
        logs: (B, T, S), log-probabilities of `labels` at T places.
        labels: S = 2 n + 1 numbers: blank, character, blank, character, .., blank.
    """
    skips = [s > 1 and labels[s] != labels[0] and labels[s] != labels[s - 2] for s in range(len(labels))]
    skips = torch.tensor(skips, device=logs.device)
    begins = torch.arange(len(labels), device=logs.device) < 2
    found = torch.where(begins, logs[:, 0], NEVER)
    for now in logs.unbind(1)[1:]:
        before = F.pad(found, (2, 0), value=NEVER)
        two = torch.where(skips, before[:, :-2], NEVER)
        found = now + torch.stack([found, before[:, 1:-1], two]).logsumexp(dim=0)
    return found[:, -2:].logsumexp(dim=1)


def _labels(text, characters, name):
    """Return blank, character, blank, .. of a text as numbers of classes."""
    if not text:
        raise ValueError("the text is empty; expected what the picture shall show, on one line")
    numbers = {character: number for number, character in enumerate(characters)}
    unknown = sorted({character for character in text if character not in numbers})
    if unknown:
        raise ValueError(
            f"{name} does not know {', '.join(map(repr, unknown))}, of {text!r}; expected characters of its own"
            f" {len(characters) - 1}. Write it without them, or take a recogniser of that script"
        )
    return [number for character in text for number in (0, numbers[character])] + [0]
