"""Random numbers that a key decides, the same on every device: Philox-4x32-10 (Salmon et al. 2011).

PyTorch's own generators give other numbers on each kind of device, and what a GPU needs should not be drawn on the CPU
and moved. A counter-based generator has no state: its numbers are a function of their place and of a key, made wherever
they are needed, by whole-number arithmetic that every device does alike.

Symbols: counter = (c0, c1, c2, c3) and key = (k0, k1), words of 32 bits; hi(p), lo(p) the upper and the lower word of a
product. One round, of ten:

    c0, c1, c2, c3 = hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)        k0 += W0, k1 += W1
"""

import math

import torch

M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
WORD = 0xFFFFFFFF

CHUNK = 2**15
"""Counters worked on at once, for 131,072 numbers: a CPU's cache holds them, and PyTorch leaves them to one thread."""


def philox(c0, c1, c2, c3, key):
    """Turn counters into the four random words that belong to each.

    Example:
        >>> import torch
        >>> words = philox(*torch.zeros((4, 1), dtype=torch.int64), key=(0, 0))
        >>> [f"{word.item():08x}" for word in words]  # as Random123 publishes it
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']

    Args:
        c0, c1, c2, c3: int64 tensors of one shape, the words of the counters. They are overwritten: new memory for each
            step would cost a CPU more than the arithmetic.
        key: two whole numbers, its words.

    Returns:
        four int64 tensors of that shape, each number in [0, 2^32).
    """
    spare, upper = torch.empty_like(c0), c0.new_full((), 32)
    k0, k1 = key
    for _ in range(ROUNDS):
        # The products take the place of what they are made of. They wrap in int64, which changes no bit of them; a
        # lower word keeps what lies above it until it meets a mask.
        c0 *= M0
        c2 *= M1
        c1 ^= torch.bitwise_right_shift(c2, upper, out=spare)
        c1 ^= k0
        c1 &= WORD
        c3 ^= torch.bitwise_right_shift(c0, upper, out=spare)
        c3 ^= k1
        c3 &= WORD
        c0, c1, c2, c3 = c1, c2, c3, c0
        k0, k1 = (k0 + W0) & WORD, (k1 + W1) & WORD
    c1 &= WORD
    c3 &= WORD
    return c0, c1, c2, c3


def normals(count, seed, device):
    """Draw normal numbers by Box and Muller's method.

    Example:
        >>> here = normals(1000, 7, "cpu")
        >>> here.mean().abs() < 0.1, (here.std() - 1).abs() < 0.1
        (tensor(True), tensor(True))

    Args:
        count: how many.
        seed: a whole number in [0, 2^64), the key.
        device: where.

    Returns:
        (count,) float32, at most 6.8 in size. What differs from device to device is how they round log, sqrt, cos and
        sin: less than 4e-6.
    """
    blocks = -(-count // 64) * 16  # whole vectors of the processor: what is left over would be rounded in another way
    found = torch.empty((4, blocks), dtype=torch.float32, device=device)
    memory = torch.empty((4, min(CHUNK, blocks)), dtype=torch.int64, device=device)
    for first in range(0, blocks, CHUNK):
        rows = found[:, first : first + CHUNK]
        counter = memory[:, : rows.shape[1]].zero_()
        torch.arange(first, first + rows.shape[1], dtype=torch.int64, device=device, out=counter[0])
        c0, c1, c2, c3 = philox(*counter, key=(seed & WORD, seed >> 32))
        _box_muller(c0, c1, rows[0], rows[1])
        _box_muller(c2, c3, rows[2], rows[3])
    return found.flatten()[:count]


def _box_muller(radius, angle, one, two):
    """Fill `one` and `two`, float32, with the normal numbers that two tensors of random words stand for."""
    length = one.copy_(radius).mul_(2**-32).add_(2**-33).log_().mul_(-2).sqrt_()  # of numbers in (0, 1]
    turn = two.copy_(angle).mul_(2 * math.pi * 2**-32)
    cosine = turn.cos()
    turn.sin_().mul_(length)
    length.mul_(cosine)
