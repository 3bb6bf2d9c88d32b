"""The report nodes inside a real ComfyUI: curves, contact sheets, and why a search stopped."""

import math

import numpy as np
import torch
from comfy_server.make_template import opened
from workflows import NoiseWorkflow, Workflow, history_of


def test_diagnostics_say_why_it_stopped(comfy):
    graph = NoiseWorkflow()
    ours = graph.dno(iterations=1, diagnose=True, steps=3)
    told = graph.node("DNODiagnostics", history=ours[3])
    graph.keep("image", told[1])
    run = comfy.run(graph)
    (text,) = run.outputs[told.id]["text"]
    assert "picture 0: still improving" in text and "brightness" in text
    assert run.kept["image"]["tensor"].ndim == 4


def test_diagnostics_of_a_search_that_was_not_diagnosed_say_what_to_do_and_end_no_workflow(comfy):
    graph = NoiseWorkflow()
    ours = graph.dno(iterations=1, steps=3)
    told = graph.node("DNODiagnostics", history=ours[3])
    graph.keep("bars", told[1])
    graph.keep("picture", ours[1])
    run = comfy.run(graph)
    sentence, summary = run.outputs[told.id]["text"][0].split("\n", 1)
    assert "was not diagnosed: switch on `diagnose`" in sentence and "1 iteration done" in summary
    assert list(run.kept) == ["picture"], "there are no bars to show"


def test_a_picture_outside_the_batch_is_refused(comfy):
    graph = Workflow()
    ours = graph.dno(iterations=1)
    graph.keep("image", graph.node("DNOTrajectory", history=ours[3], picture=2, count=4)[0])
    found = comfy.fail(graph)
    assert "picture is 2" in found and "expected 0 .. 1" in found


def test_a_report_draws_the_curves_of_one_picture_or_of_all(comfy):
    graph = NoiseWorkflow()
    ours = graph.dno(iterations=2, solver=graph.gradient())
    for picture in (-1, 0, 1):
        graph.keep(f"curves {picture}", graph.node("DNOReport", history=ours[3], picture=picture)[0])
    alone = graph.dno(iterations=2, solver=graph.gradient(), latent=graph.latent(batch=1, scale=0.0))
    graph.keep("alone", graph.node("DNOReport", history=alone[3], picture=-1)[0])
    curves = {key: kept["tensor"] for key, kept in comfy.run(graph).kept.items()}
    assert len({curve.numpy().tobytes() for curve in curves.values()}) == 4
    assert all(0 <= curve.min() < curve.max() <= 1 for curve in curves.values())
    assert len({curve.shape for curve in curves.values()}) == 1


def test_a_trajectory_begins_with_the_start_and_has_as_many_pictures_as_are_asked_for(comfy):
    graph = NoiseWorkflow()
    ours = graph.dno(iterations=5, solver=graph.gradient(0.1))
    graph.keep("start", graph.dno(iterations=0)[1])
    graph.keep("best", ours[1])
    graph.keep("sheet", graph.node("DNOTrajectory", history=ours[3], picture=1, count=4)[0])
    graph.node("DNOTestHistory", history=ours[3])
    run = comfy.run(graph)
    start, best, sheet = (run.kept[key]["tensor"] for key in ("start", "best", "sheet"))
    assert history_of(run)["best"][1] == 5
    assert sheet.shape[2] == 4 * 166 + 6  # tiles of 160 pixels, 6 apart
    tiles = [small(sheet[0, 6:166, 6 + 166 * place : 166 + 166 * place]) for place in (0, 3)]
    pictures = [small(picture[1]) for picture in (start, best)]
    errors = torch.tensor([[(tile - picture).abs().mean() for picture in pictures] for tile in tiles])
    # Scaled from 64 pixels to 160 and rounded to 1 / 255, a tile is its own picture and not the other.
    assert (errors.diag() < 1 / 255).all() and (errors.diag() < errors.flip(1).diag() / 4).all(), errors


def small(picture):
    """Average a square picture (H, W, 3) over areas to 32 pixels a side."""
    return torch.nn.functional.interpolate(picture.movedim(-1, 0)[None], size=(32, 32), mode="area")


def test_a_report_gives_start_and_best_for_a_comparison(comfy):
    graph = NoiseWorkflow()
    ours = graph.dno(iterations=2, solver=graph.gradient(0.1))
    report = graph.node("DNOReport", history=ours[3], picture=-1)
    one = graph.node("DNOReport", history=ours[3], picture=1)
    graph.keep("found", ours[1])
    graph.keep("before", graph.dno()[1])
    for place, key in enumerate(("curves", "comparison", "start", "best")):
        graph.keep(key, report[place])
    graph.keep("one", one[3])
    kept = {key: each["tensor"] for key, each in comfy.run(graph).kept.items()}
    # Pictures of 8 bits: half a level off at most.
    for key, expected in (("start", "before"), ("best", "found")):
        assert (kept[key] - kept[expected]).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(kept["one"], kept["best"][1:]) and kept["comparison"].shape[1] > 384


def test_a_report_shows_both_pictures_and_says_what_changed(comfy):
    graph = NoiseWorkflow()
    watched = graph.node("DNOContrastReward", negative=False)[0]
    ours = graph.dno(iterations=2, solver=graph.gradient(0.1), watch=watched)
    report = graph.node("DNOReport", history=ours[3], picture=1)  # connected to nothing, it is shown all the same
    graph.node("DNOTestHistory", history=ours[3])
    for place, key in ((1, "images"), (2, "a_images"), (3, "b_images")):
        graph.keep(key, report[place])
    run = comfy.run(graph)
    for key, kept in run.kept.items():
        (file,) = run.outputs[report.id][key]
        shown = torch.from_numpy(np.asarray(opened(comfy, file), dtype=np.float32) / 255)
        assert (shown - kept["tensor"][0]).abs().max() <= 1 / 255 + 1e-6  # ComfyUI cuts down to 8 bits
    start, best = history_of(run)["rows"][0], history_of(run)["best_row"]
    p = [math.exp(min(row["log_p"][1], row["log_p_initial"][1])) for row in (start, best)]
    assert run.outputs[report.id]["text"][0].splitlines() == [
        f"brightness {start['score'][1]:.3g} -> {best['score'][1]:.3g}",
        f"contrast {start['watch/contrast'][1]:.3g} -> {best['watch/contrast'][1]:.3g}",
        f"P {p[0]:.2f} -> {p[1]:.2f}",
        "2 iterations done",
    ]
