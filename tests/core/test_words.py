"""Numbers as people read them."""

import pytest
import torch
from comfyui_dno.core import words


@pytest.mark.parametrize("log_p, text", [
    (0.0, "1.00"), (-1.0, "0.37"), (-53.0, "1e-23"), (None, "unknown"), (float("nan"), "unknown"), (-float("inf"), "0"),
])  # fmt: skip
def test_probabilities_are_written_short(log_p, text):
    assert words.probability(log_p) == text


def test_large_batches_are_summed_up():
    assert words.listed(torch.arange(5.0)) == "0 .. 4"
    assert words.listed([0.25, 1.5]) == "0.25 1.5" and words.listed([None, float("inf")]) == "unknown unknown"


@pytest.mark.parametrize("seconds, text", [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (5399, "1 h 30 min")])
def test_times_are_written_as_people_say_them(seconds, text):
    assert words.duration(seconds) == text
