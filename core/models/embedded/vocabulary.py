"""The words the embedded model knows, and their CLIP token ids.

Every word is one token of CLIP's byte-pair encoding, so a tokenizer is not needed: this table gives the ids that
CLIP's own gives, and ComfyUI's stock SD1 tokenizer agrees. Unknown words are left out with one warning each.
"""

import logging
import re

import torch

logger = logging.getLogger(__name__)

BOS, EOS, LENGTH = 49406, 49407, 77
COLOURS = {"black": 1449, "white": 1579, "red": 736, "yellow": 4481, "green": 1901, "blue": 1746, "purple": 5496}
ANIMALS = {
    "cat": 2368,
    "dog": 1929,
    "duck": 6910,
    "rabbit": 10274,
    "hedgehog": 21940,
    "elephant": 10299,
    "fish": 2759,
    "turtle": 10912,
    "owl": 9899,
    "snail": 23132,
    "butterfly": 9738,
    "penguin": 14952,
}
TOKEN_IDS = COLOURS | ANIMALS
STORED_IDS = tuple(sorted({*TOKEN_IDS.values(), BOS, EOS}))
COLOURS, ANIMALS = tuple(COLOURS), tuple(ANIMALS)

ARTICLES = ("a", "an", "the")

_warned = set()


def warn_unknown(words):
    """Log the words that the model does not know, each word once."""
    fresh = sorted(set(words) - _warned)
    if fresh:
        _warned.update(fresh)
        logger.warning("%s", ignored(fresh))


def ignored(words):
    """Return what a person is told of words that the model does not know."""
    return f"the embedded model ignores {', '.join(map(repr, words))}; it knows {' '.join(TOKEN_IDS)}"


def known_words(prompt):
    """Return the words of a prompt that the model knows, in order; logs the unknown ones, but for articles."""
    warn_unknown(unknown_words(prompt))
    return [word for word in _words(prompt) if word in TOKEN_IDS]


def unknown_words(prompt):
    """Return the words of a prompt that the model ignores, in order, but for articles."""
    return [word for word in _words(prompt) if word not in TOKEN_IDS]


def _words(prompt):
    # Letters and digits of every script: an unknown word in Greek is unknown too, and no part of one is a word.
    return [word for word in re.findall(r"(?:[^\W_]|')+", prompt.lower()) if word not in ARTICLES]


def words_of(prompt):
    """Return the (colour, animal) a prompt names; colour is None where it names none.

    Raises:
        ValueError: the prompt names no animal the model knows.
    """
    words = known_words(prompt)
    animals = [word for word in words if word in ANIMALS]
    if not animals:
        known = f"{', '.join(ANIMALS)}; and before it a colour: {', '.join(COLOURS)}"
        raise ValueError(f"the prompt {prompt!r} names no animal that the embedded model knows: {known}")
    return next((word for word in words if word in COLOURS), None), animals[0]


def tokenize(prompts):
    """Return the CLIP token ids of prompts, as Stable Diffusion pads them.

    Args:
        prompts: a list of B prompts.

    Returns:
        (B, 77) int64: BOS, the known words' ids, then EOS to the end.
    """
    ids = torch.full((len(prompts), LENGTH), EOS, dtype=torch.int64)
    ids[:, 0] = BOS
    for row, prompt in zip(ids, prompts, strict=True):
        found = [TOKEN_IDS[word] for word in known_words(prompt)][: LENGTH - 2]
        row[1 : 1 + len(found)] = torch.tensor(found, dtype=torch.int64)
    return ids
