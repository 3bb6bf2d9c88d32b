"""The record of a run: JSON that every reader takes, and pictures without their memory growing."""

import json
import math

import pytest
import torch
from comfyui_dno import core
from comfyui_dno.core import history as module
from comfyui_dno.core import plots
from tiny_models import sample_map


def evaluation(iteration, value=0.5, size=(4, 4), batch=1, **more):
    noise = core.Noise.randn((batch, 1, 2, 2))
    shade = torch.full((batch, 3, *size), iteration % 256 / 255)
    scores = torch.full((batch,), value)
    named = {"noise": noise, "latent": noise.initial, "images": shade, "scores": scores, "watched": {}}
    return core.Evaluation(**named | {"log_p": scores - 1, "log_p_initial": scores - 1, "iteration": iteration} | more)


def recorded(iterations, **settings):
    history = core.History()
    for iteration in range(iterations):
        history.record(evaluation(iteration, **settings))
    return history


def strict(text):
    """Read JSON as the standard has it, without NaN and Infinity."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_null_wherever_it_stands(value):
    history = core.History(settings={"lr": value, "sigmas": [value, 0.0], "nested": {"eta": value}})
    values = torch.tensor([value])
    history.record(evaluation(0, value, watched={"own": values}, gradient_norm=values, penalty=values, seconds=1.0))
    history.best, history.best_row = [0], {"score": [value]}
    kinds = ("g1", "g2", "product", "alignment", "g1_relative", "g2_relative")
    history.diagnosis = core.Diagnosis(**dict.fromkeys(kinds, values), opposed=values, types=["unknown"])
    found = strict(history.to_json())
    assert found["settings"] == {"lr": None, "sigmas": [None, 0.0], "nested": {"eta": None}}
    row = found["rows"][0]
    assert all(row[key] == [None] for key in ("score", "log_p", "watch/own", "gradient_norm", "penalty"))
    assert found["best_row"] == {"score": [None]} and found["diagnosis"] is not None


def test_settings_of_any_type_are_written():
    settings = {"size": torch.Size((2, 3)), "dtype": torch.float16, "mean": torch.tensor([1.0, math.nan]), 3: "three"}
    found = strict(core.History(settings=settings).to_json())["settings"]
    assert found == {"size": [2, 3], "dtype": "torch.float16", "mean": [1.0, None], "3": "three"}


def test_a_watched_reward_that_is_not_finite_spoils_no_file():
    def own(images, prompts):
        return images.mean((1, 2, 3)) * torch.nan

    def brightness(images, prompts):
        return images.mean((1, 2, 3))

    noise_map = sample_map()
    noise = noise_map.randn().to(torch.float64)
    result = core.optimize(noise_map, brightness, noise, iterations=2, watch=(own,))
    assert [row["watch/own"] for row in strict(result.history.to_json())["rows"]] == [[None, None]] * 3
    assert "own nan -> nan" in result.history.summary()


@pytest.mark.parametrize("iterations", [1, 2, 255, 256, 257, 258, 511, 512, 513, 514, 3000])
def test_a_long_search_keeps_every_row_and_evenly_spaced_pictures(iterations):
    history = recorded(iterations)
    rows = history.picture_rows
    assert len(history.rows) == iterations and len(history.pictures) <= 256
    assert iterations <= 256 or len(history.pictures) >= 128
    assert rows[0] == 0 and rows[-1] == iterations - 1 and rows == sorted(set(rows))
    assert len({after - before for before, after in zip(rows[:-2], rows[1:-1], strict=True)}) <= 1, "evenly spaced"
    for row, picture in zip(rows, history.pictures, strict=True):
        assert picture[0, 0, 0, 0] == row % 256, "each picture is that of its row"


def test_large_batches_keep_fewer_pictures_for_the_same_memory(monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 40 * 8 * 3 * 16 * 16)
    history = recorded(500, batch=8, size=(16, 16))
    assert 20 <= len(history.pictures) <= 40
    monkeypatch.setattr(module, "MOST_BYTES", 0)
    assert 8 <= len(recorded(500).pictures) <= 16


def test_pictures_of_any_shape_and_value_are_kept():
    for size in ((1, 1), (10, 4096), (4096, 10), (1, 3000)):
        (picture,) = recorded(1, size=size).pictures
        assert max(picture.shape) <= 128 and min(picture.shape[-2:]) >= 1
    history = core.History()
    history.record(evaluation(0, images=torch.tensor([math.nan, math.inf, -math.inf]).view(1, 3, 1, 1)))
    assert history.pictures[0].flatten().tolist() == [0, 255, 0]


def test_the_trajectory_of_a_long_search_shows_first_best_and_last():
    history = recorded(2000)
    history.best, history.best_row = [1001], {**history.rows[1001], "iteration": [1001]}
    history.best_picture = torch.full((1, 3, 4, 4), 1001 % 256, dtype=torch.uint8)
    sheet = plots.trajectory(history, count=8, size=20)
    shown = [sheet.getpixel((x, 16))[0] for x in range(16, sheet.width, 26)]
    assert shown[0] == 0 and 1001 % 256 in shown and shown[-1] == 1999 % 256 and len(shown) == 8
    # Before the run has ended, no best is known.
    assert plots.trajectory(recorded(600), count=3, size=20).width == 3 * 26 + 6


def test_the_norm_is_in_units_of_the_square_root_of_the_number_of_entries():
    """True noise is near 1; all ones are at 1, all twos at 2, whatever their number."""
    noise_map = sample_map(batch=1)
    for value in (1.0, 2.0):
        noise = noise_map.randn(0).to(torch.float64).map(lambda z, value=value: torch.full_like(z, value))
        history = core.optimize(noise_map, lambda i, p: i.mean(dim=(1, 2, 3)), noise, iterations=0).history
        assert history.column("norm") == pytest.approx([value], rel=1e-6)


def test_the_best_of_a_search_that_goes_on_is_found_in_its_own_rows():
    noise_map = sample_map(batch=1)

    def reward(images, prompts):
        return images.mean(dim=(1, 2, 3))

    solver = core.GradientAscent(lr=0.05)
    start = noise_map.randn(0).to(torch.float64)
    first = core.optimize(noise_map, reward, start, solver, iterations=3, floor=0.0)
    history = core.optimize(noise_map, reward, first.noise, solver, iterations=3, floor=0.0).history
    scores = history.column("score")
    assert [row["iteration"] for row in history.rows] == [3, 4, 5, 6]
    assert history.best == [max(range(4), key=scores.__getitem__)] == [3]
