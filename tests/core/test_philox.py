"""Philox against its published answers and an implementation in NumPy; its normal numbers against the normal law."""

import math

import numpy as np
import pytest
import torch
from comfyui_dno.core import philox as module
from comfyui_dno.core.philox import normals, philox

SIZE = 100_003  # of several vectors and some numbers more


def words(counters, key):
    """Philox-4x32-10 as Salmon et al. write it, one counter a row, in NumPy's unsigned numbers."""
    c = [counters[:, place].astype(np.uint64) for place in range(4)]
    k0, k1 = key
    for _ in range(10):
        product = [np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]]
        (high0, low0), (high1, low1) = [(p >> np.uint64(32), p & np.uint64(0xFFFFFFFF)) for p in product]
        c = [high1 ^ c[1] ^ np.uint64(k0), low1, high0 ^ c[3] ^ np.uint64(k1), low0]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return np.stack(c, axis=1)


def ours(counters, key):
    return torch.stack(philox(*torch.from_numpy(counters.astype(np.int64)).unbind(1), key), dim=1).numpy()


@pytest.mark.parametrize(
    "counter, key, answer",
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_published_answers_of_random123_come_out(counter, key, answer):
    assert " ".join(f"{word:08x}" for word in ours(np.array([counter]), key)[0]) == answer


def test_random_counters_and_keys_give_the_words_of_another_implementation():
    source = np.random.default_rng(0)
    for _ in range(20):
        counters, key = source.integers(0, 2**32, (500, 4)), tuple(map(int, source.integers(0, 2**32, 2)))
        assert np.array_equal(ours(counters, key), words(counters, key).astype(np.int64))


def in_float64(count, seed):
    """The normal numbers in NumPy: words from above, then Box and Muller's formulas in float64."""
    blocks = -(-count // 64) * 16
    counters = np.zeros((blocks, 4), dtype=np.int64)
    counters[:, 0] = np.arange(blocks)
    found = words(counters, (seed % 2**32, seed >> 32)).astype(np.float64)
    rows = []
    for radius, angle in found.T.reshape(2, 2, -1):
        length = np.sqrt(-2 * np.log((radius + 0.5) / 2**32))
        rows += [length * np.cos(2 * math.pi * angle / 2**32), length * np.sin(2 * math.pi * angle / 2**32)]
    return torch.from_numpy(np.concatenate(rows)[:count])


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_a_device_may_differ_from_exact_arithmetic_by_no_more_than_is_stated(device, seed):
    """Of the angle, up to 2 pi, float32 loses 2.4e-7, times a length of 6.8: 1.6e-6; then log, sqrt, cos, product."""
    for place in ("cpu", device):
        assert (normals(SIZE, seed, place).cpu() - in_float64(SIZE, seed)).abs().max() < 4e-6


def test_how_many_are_worked_on_at_once_and_by_how_many_threads_changes_no_bit(monkeypatch):
    expected, threads = normals(SIZE, 3, "cpu"), torch.get_num_threads()
    for chunk in (2**8, 2**12):
        monkeypatch.setattr(module, "CHUNK", chunk)
        assert torch.equal(normals(SIZE, 3, "cpu"), expected)
    try:
        torch.set_num_threads(3)
        assert torch.equal(normals(SIZE, 3, "cpu"), expected)
    finally:
        torch.set_num_threads(threads)


def test_they_are_normal_in_their_moments_and_in_their_distribution():
    count = 2**20
    z = normals(count, 1, "cpu").double()
    # Five standard errors: of the mean 1, of the square sqrt 2, of the third and fourth powers sqrt 15 and sqrt 96.
    for power, expected, error in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert abs(z.pow(power).mean() - expected) < 5 * error / count**0.5
    # Kolmogorov and Smirnov: 1.95 / sqrt(n) is passed once in a thousand samples.
    reached = torch.special.ndtr(z.sort().values)
    assert (reached - torch.arange(1, count + 1) / count).abs().max() < 1.95 / count**0.5
    # In the tails too: as many beyond 4 as there should be, 66.4 of 2^20, up to five standard deviations.
    assert abs((z.abs() > 4).sum() - 6.334e-5 * count) < 5 * 66.4**0.5


def test_nothing_ties_neighbours_or_candidates_to_one_another():
    """Correlations of numbers and of their squares, five standard errors; distances of words, rows and vectors too."""
    count = 2**18
    draws = torch.stack([normals(count, seed, "cpu") for seed in (*range(8), 2**32, 2**33, 2**62)]).double()
    squares = (draws.square() - 1) / 2**0.5
    for values in (draws, squares):
        together = values @ values.T / count
        assert (together - torch.eye(len(draws))).fill_diagonal_(0).abs().max() < 5 / count**0.5
        for distance in (1, 2, 3, 4, 16, 64, 1000, count // 4, count // 2, 3 * count // 4):
            tied = (values[:, distance:] * values[:, :-distance]).mean(dim=1)
            assert tied.abs().max() < 5 / (count - distance) ** 0.5


def test_other_keys_give_other_numbers_and_a_draw_may_be_of_any_length():
    assert [len(normals(count, 0, "cpu")) for count in (0, 1, 63, 64, 65)] == [0, 1, 63, 64, 65]
    firsts = {normals(1, seed, "cpu").item() for seed in (0, 1, 2, 2**32, 2**32 + 1, 2**62)}
    assert len(firsts) == 6
