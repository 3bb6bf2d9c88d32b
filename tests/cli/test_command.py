"""The `dno` command, as a user runs it."""

import argparse
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace

import numpy as np
import pytest
import tiny_pipelines
import tiny_rewards
import tiny_vlm
import torch
from comfyui_dno import core, rewards
from comfyui_dno.__main__ import main
from comfyui_dno.cli import run
from comfyui_dno.cli.rewards import picture_of
from comfyui_dno.cli.search import Setup
from comfyui_dno.cli.solvers import SOLVERS, solver_of, solver_settings
from comfyui_dno.core import plots
from comfyui_dno.core.models.embedded import vocabulary
from comfyui_dno.experiments import ring
from PIL import Image, ImageChops


def test_demo_writes_pictures_curves_histories_and_says_where(tmp_path, capsys):
    assert main(["demo", "--iterations", "2", "--steps", "3", "--out", str(tmp_path / "demo")]) == 0
    written = {path.name for path in (tmp_path / "demo").iterdir()}
    kinds = ("before.png", "after.png", "trajectory.png", "curves.png", "history.json", "noise.safetensors")
    assert written == {"before_after.png", "curves.png"} | {
        f"{arm}_regulariser_{kind}" for arm in ("without", "with") for kind in kinds
    }
    record = json.loads((tmp_path / "demo" / "with_regulariser_history.json").read_text())
    assert len(record["rows"]) == 3 and record["settings"]["gamma"] == 1 and record["settings"]["seed"] == 0
    assert all(0 <= row["watch/consistency"][0] <= 1 for row in record["rows"])
    assert Image.open(tmp_path / "demo" / "with_regulariser_after.png").size == (128, 128)
    assert str(tmp_path / "demo") in capsys.readouterr().out


def test_run_saves_each_picture_of_a_batch_and_its_noise_replays(tmp_path):
    arguments = "run --reward darkness --batch 2 --iterations 1 --steps 4 --seed 5".split()
    assert main([*arguments, "--prompt", "red owl", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "history.json").read_text())
    noise = core.Noise.load(tmp_path / "noise.safetensors")
    assert noise.settings["prompt"] == "red owl" and noise.settings["seed"] == 5
    sample_map = core.load_embedded(["red owl"] * 2, steps=4)
    images = sample_map.sample(noise)
    before = plots.to_pictures(sample_map.sample(sample_map.randn(5)))[0]
    difference = ImageChops.difference(Image.open(tmp_path / "00_before.png"), before)
    assert max(high for _, high in difference.getextrema()) <= 1
    best = [max(row["score"][item] for row in record["rows"]) for item in (0, 1)]
    torch.testing.assert_close(rewards.Brightness(negative=True)(images), torch.tensor(best), rtol=1e-4, atol=1e-4)
    assert {"00_before.png", "01_after.png", "01_trajectory.png"} <= {path.name for path in tmp_path.iterdir()}


def test_the_consistency_score_can_be_the_reward(tmp_path):
    arguments = ["run", "--prompt", "cat", "--reward", "consistency", "--iterations", "1", "--steps", "2"]
    assert main([*arguments, "--gamma", "0", "--check-gradient", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "history.json").read_text())
    assert record["reward"] == "consistency" and record["settings"]["gradient_error"][0] < 0.1


def test_toy_writes_the_rings_figures_to_its_folder(tmp_path, monkeypatch, capsys):
    """The figures themselves are the experiment's own tests' business."""
    monkeypatch.setattr(ring, "figures", lambda folder, seed: (folder / f"{seed}.png").touch())
    assert main(["toy", "--seed", "4", "--out", str(tmp_path / "ring")]) == 0
    assert (tmp_path / "ring" / "4.png").exists()
    assert str(tmp_path / "ring") in capsys.readouterr().out


@pytest.mark.parametrize("command", ["run --prompt cat", "demo"])
def test_a_reward_that_fails_in_the_middle_leaves_what_was_found_and_a_status(command, tmp_path, monkeypatch, capsys):
    asked, brightness = itertools.count(), rewards.Brightness.__call__

    def failing(self, images, prompts=None):
        if next(asked) >= 4:
            raise ConnectionError("the server is gone")
        return brightness(self, images, prompts)

    monkeypatch.setattr(rewards.Brightness, "__call__", failing)
    assert main([*command.split(), "--iterations", "9", "--steps", "2", "--lr", "0.05", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "dno: the search ended early and what it had found is saved: the reward brightness failed" in said.err
    assert list(tmp_path.glob("*history.json")) and "the server is gone, at iteration" in said.out


def test_control_c_saves_the_best_so_far(tmp_path):
    command = [sys.executable, "-m", "comfyui_dno", *"run --iterations 100000 --steps 3".split()]
    command += ["--prompt", "black cat", "--out", str(tmp_path)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment,
        # Whoever runs the tests in the background has Ctrl-C ignored, and the child would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    seen, deadline = "", time.monotonic() + 120
    while "iteration 2" not in seen and time.monotonic() < deadline:
        seen += process.stderr.read(200)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    record = json.loads((tmp_path / "history.json").read_text())
    assert record["stopped"] == "interrupted" and len(record["rows"]) > 2
    assert (tmp_path / "after.png").exists()


DEFAULTS = {
    "adam": core.GradientAscent(),
    "sgd": core.GradientAscent(optimizer="sgd"),
    "reno": core.GradientAscent.reno(),
    "hybrid1": core.GradientAscent(estimator=core.Hybrid1()),
    "hybrid2": core.GradientAscent(estimator=core.Hybrid2()),
    "zo-sgd": core.GradientAscent(estimator=core.ZerothOrder()),
    "zeno": core.ZeNO(),
    "best-of-n": core.Search.best_of_n(),
    "zero-order": core.Search.zero_order(),
    "pcn": core.Search.pcn(),
    "trs": core.TRS(),
    "hybrid2-ou": core.GradientAscent.ou(core.Hybrid2()),
    "lgd": core.LGD(),
    "tilt": core.Tilt(),
    "tilt-decoder": core.Tilt(through="decoder"),
    "trust": core.TrustAscent(tilt=None),
    "fast": core.Fast(),
}


@pytest.mark.parametrize("lr, gamma, expected", [
    (None, None, core.default_solver()), (0.1, None, core.GradientAscent(0.1)), (None, 0.0, core.GradientAscent()),
])
def test_without_a_solver_the_default_is_taken_or_the_one_whose_settings_are_given(lr, gamma, expected):
    solver, _ = solver_of(solver_settings(Namespace(solver=None, lr=lr, gamma=gamma)))
    assert solver.name == expected.name and getattr(solver, "lr", None) == getattr(expected, "lr", None)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_without_options_has_its_papers_settings(name):
    solver, regularizer = solver_of(solver_settings(Namespace(solver=name)))
    expected = DEFAULTS[name]
    if SOLVERS[name].exact and name != "lgd":
        assert isinstance(solver.estimator, core.Exact)
        solver.estimator = expected.estimator  # Exact has no equality
    assert solver == expected
    if name == "reno":
        assert regularizer == core.NormRegularizer()
    else:
        assert regularizer == (core.ProbabilityRegularizer() if isinstance(solver, core.GradientAscent) else None)


@pytest.mark.parametrize("arguments", [
    "--solver hybrid2 --reward jpeg --candidates 2 --lr 0.03",
    "--solver zeno --reward jpeg-incompressible --candidates 3 --beta 0.2",
    "--solver zeno --reward jpeg --candidates 3 --schedule geometric",
    "--solver trs --reward jpeg --candidates 3",
    "--solver pcn --reward jpeg-proxy",
    "--solver lgd --candidates 2 --scale 20.0",
    "--solver tilt --strength 0.2",
    "--solver trust --part initial",
    "--solver fast --calls 15",
    "--solver sgd --part initial --gamma 0.0",
])
def test_every_kind_of_solver_runs_to_the_end_of_its_bar(arguments, tmp_path, capsys):
    given = ["run", "--prompt", "black cat", "--steps", "2", "--iterations", "1", *arguments.split()]
    assert main([*given, "--out", str(tmp_path)]) == 0
    done, stages = re.findall(r"(\d+)/(\d+) \[", capsys.readouterr().err)[-1]
    # LGD neither guides the last step nor decodes its run.
    assert int(done) == int(stages)
    record = json.loads((tmp_path / "history.json").read_text())
    asked = dict(zip(given[3::2], given[4::2], strict=True))
    assert asked.items() <= {f"--{name}": str(value) for name, value in record["settings"].items()}.items()
    assert record["best_row"]["score"][0] >= record["rows"][0]["score"][0]


def test_floors_and_a_target_end_up_in_what_is_found_and_in_the_record(tmp_path, capsys):
    arguments = "run --prompt cat --steps 2 --iterations 2 --lr 0.3 --floors 9 --target 0 --out".split()
    assert main([*arguments, str(tmp_path)]) == 0
    record = json.loads((tmp_path / "history.json").read_text())
    assert record["stopped"] == "every picture reached the target score 0.0" and len(record["rows"]) == 1
    assert {"floors": "9", "target": 0.0}.items() <= record["settings"].items()
    assert "no noise passed the floor on consistency (at least 9)" in record["warnings"][0]


def test_a_search_watches_what_is_named_and_the_models_own_belief(tmp_path):
    arguments = "run --prompt cat --steps 2 --iterations 1 --watch belief contrast consistency --floors".split()
    assert main([*arguments, "belief: 0.1, contrast: start - 1", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "history.json").read_text())
    watched = [key for key in record["rows"][0] if key.startswith("watch/")]
    assert watched == ["watch/consistency", "watch/belief", "watch/belief loss", "watch/contrast"]
    assert record["settings"]["watch"] == ["belief", "contrast", "consistency"]
    assert record["best_row"]["watch/belief"][0] >= 0.1


def test_reno_moves_x_t_alone(tmp_path):
    arguments = "run --solver reno --steps 2 --iterations 1 --prompt cat --out".split()
    assert main([*arguments, str(tmp_path)]) == 0
    found, start = core.Noise.load(tmp_path / "noise.safetensors"), core.Noise.randn((1, 4, 16, 16), 1)
    assert torch.equal(found.injected, start.injected) and not torch.equal(found.initial, start.initial)


def test_a_run_goes_on_from_the_noise_of_another(tmp_path, capsys):
    """Two runs of one iteration are one run of two; the file knows what it was made for."""
    arguments = ["run", "--prompt", "black cat", "--steps", "2", "--lr", "0.05", "--seed", "3"]
    for name, more in {
        "both": ["--iterations", "2"],
        "first": ["--iterations", "1"],
        "second": ["--iterations", "1", "--start", str(tmp_path / "first" / "noise.safetensors")],
    }.items():
        assert main([*arguments, *more, "--out", str(tmp_path / name)]) == 0
    both, second = (json.loads((tmp_path / name / "history.json").read_text()) for name in ("both", "second"))
    assert [row["iteration"] for row in second["rows"]] == [1, 2]
    assert second["rows"][1]["score"] == pytest.approx(both["rows"][2]["score"], abs=1e-6)
    assert second["settings"]["seed"] == 3
    wrong = ["--eta", "0.5", "--start", str(tmp_path / "first" / "noise.safetensors"), "--out", str(tmp_path / "wrong")]
    assert main([*arguments, *wrong]) == 2
    assert "the noise was made with eta 1.0, but here it is 0.5" in capsys.readouterr().err


def test_a_diffusers_pipeline_takes_the_embedded_models_place(tmp_path):
    tiny_pipelines.stable_diffusion().save_pretrained(tmp_path / "model")
    arguments = ["run", "--model", str(tmp_path / "model"), "--prompt", "white duck", "--height", "24"]
    assert main([*arguments, "--steps", "2", "--iterations", "1", "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "history.json").read_text())
    assert record["best_row"].keys() == {"iteration", "score", "log_p", "log_p_initial", "norm"}
    assert (record["settings"]["memory"], record["settings"]["most_rows"]) == ("auto", 1)
    assert re.fullmatch("[0-9a-f]{16}", record["settings"]["model"])
    assert Image.open(tmp_path / "out" / "before.png").size == (16, 24)


@pytest.mark.parametrize("name, kind, tower", [
    ("hps", "hps", None), ("aesthetic", "aesthetic", "clip_l"), ("clipscore", "clip_l", None), ("mps", "mps", None),
    ("aesthetic-v25", "aesthetic_v25", "siglip"),
])  # fmt: skip
def test_a_reward_model_judges_by_its_file(name, kind, tower, tmp_path):
    file = tiny_rewards.write(kind, tmp_path)
    arguments = ["run", "--prompt", "black cat", "--reward", name, "--reward-file", str(file), "--steps", "2"]
    arguments += ["--clip-file", str(tiny_rewards.write(tower, tmp_path))] if tower else []
    assert main([*arguments, "--iterations", "2", "--lr", "0.03", "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "history.json").read_text())
    assert record["settings"]["reward_file"] == str(file)
    assert record["reward"].lower().replace(" ", "-").replace(".", "") == name
    assert record["best_row"]["score"][0] > record["rows"][0]["score"][0]


@pytest.mark.parametrize("name, file, expected", [
    ("palette", None, "palette"), ("layout", None, "layout by edges"), ("similarity", "clip_l", "similarity"),
    ("dinov2", "dinov2", "DINOv2 similarity"), ("lpips", "squeezenet", "LPIPS"),
])  # fmt: skip
def test_a_reward_compares_with_a_picture(name, file, expected, tmp_path):
    """The start's own picture is the nearest to itself: the first score is that of no difference."""
    common = ["run", "--prompt", "black cat", "--steps", "2", "--out"]
    assert main([*common, str(tmp_path / "first"), "--iterations", "0"]) == 0
    reference = tmp_path / "first" / "after.png"
    arguments = [*common, str(tmp_path / "out"), "--iterations", "1", "--reward", name, "--reference", str(reference)]
    arguments += ["--reward-file", str(tiny_rewards.write(file, tmp_path))] if file else []
    assert main(arguments) == 0
    record = json.loads((tmp_path / "out" / "history.json").read_text())
    assert record["reward"] == expected and record["settings"]["reference"] == str(reference)
    alike = 0.0 if name in ("palette", "lpips") else 1.0
    # Of the tiny networks another picture's score is nearer to this than a real one's; a file has 256 levels.
    assert record["rows"][0]["score"][0] == pytest.approx(alike, abs=1e-3 if file else 0.01)


def test_a_reference_of_more_than_256_levels_keeps_them_and_what_has_no_scale_is_refused(tmp_path):
    levels = np.linspace(0, 65535, 32).astype(np.uint16).reshape(4, 8)
    Image.fromarray(levels).save(tmp_path / "depth.png")
    torch.testing.assert_close(picture_of(tmp_path / "depth.png")[0, 2], torch.from_numpy(levels / 65535).float())
    Image.fromarray(np.ones((4, 8), np.float32)).save(tmp_path / "depth.tiff")
    with pytest.raises(ValueError, match=r"depth.tiff has pixels of mode F; expected .* of 8 or 16 bits"):
        picture_of(tmp_path / "depth.tiff")


def test_a_reference_that_the_run_would_replace_is_refused(tmp_path, capsys):
    common = ["run", "--prompt", "black cat", "--steps", "2", "--iterations", "0", "--out", str(tmp_path)]
    assert main([*common, "--batch", "2"]) == 0
    for name in ("01_after.png", "curves.png"):
        assert main([*common, "--reward", "palette", "--reference", str(tmp_path / name)]) == 2
        assert f"{name} is in --out, where this run's files replace it" in capsys.readouterr().err
        assert (tmp_path / name).exists()


def test_a_batch_does_not_go_on_with_a_reference_that_has_changed(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("black cat")
    arguments = ["batch", str(tmp_path / "prompts.txt"), "--steps", "2", "--iterations", "0", "--reward", "palette"]
    arguments += ["--reference", str(tmp_path / "picture.png"), "--out", str(tmp_path / "out")]
    for color, status in (("red", 0), ("red", 0), ("blue", 2)):
        Image.new("RGB", (8, 8), color).save(tmp_path / "picture.png")
        assert main(arguments) == status
    assert "was made with reference_sha256" in capsys.readouterr().err


def test_a_reference_is_turned_as_its_camera_says_and_its_transparency_left_out(tmp_path):
    pixels = np.zeros((4, 8, 4), np.uint8)
    pixels[0, 0] = 255, 0, 0, 128
    picture, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    picture.save(tmp_path / "photo.png", exif=exif)
    found = picture_of(tmp_path / "photo.png")
    assert found.shape == (1, 3, 8, 4)
    assert found.nonzero().tolist() == [[0, 0, 0, 3]] and found.max() == 1


@pytest.mark.parametrize("rating, reward", [(False, "VLM judge"), (True, "HPSv3")])
def test_a_vision_language_model_judges_by_its_folder(rating, reward, tmp_path):
    tiny_vlm.write_qwen2_vl(tmp_path / "Qwen2-VL", rating=rating)
    arguments = ["run", "--prompt", "black cat", "--reward", "vlm", "--reward-file", str(tmp_path / "Qwen2-VL")]
    arguments += ["--solver", "best-of-n", "--candidates", "3", "--steps", "2", "--iterations", "1"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "history.json").read_text())
    assert record["reward"] == reward
    assert record["best_row"]["score"][0] >= record["rows"][0]["score"][0]


@pytest.mark.parametrize("arguments, message", [
    (["--prompt", "black cat", "--reward", "hps"], "--reward hps needs --reward-file; .* HPS_v2.1_compressed.pt"),
    (["--prompt", "black cat", "--reward", "hps", "--reward-file", "gone.pt"], "there is no file .*gone.pt"),
    (["--prompt", "black cat", "--reward-file", "x.pt"], "--reward brightness takes no --reward-file; leave it out"),
    (["--prompt", "black cat", "--reward", "palette"], "--reward palette needs --reference; expected the path of a p"),
    (["--prompt", "black cat", "--reward", "dinov2", "--reference", "x.png"], "--reward-file; .*facebook/dinov2-base"),
    (["--prompt", "black cat", "--reference", "x.png"], "--reward brightness takes no --reference; leave it out"),
    (["--prompt", "black cat", "--reward", "palette", "--reference", "gone.png"], "there is no file gone.png"),
    (["--prompt", "black cat", "--reward", "palette", "--reference", __file__], "cannot be read as a picture"),
    (["--prompt", "black unicorn"], "names no animal"),
    (["--prompt", "black cat", "--reward", "aesthetic-v25", "--reward-file", "x.pth"], "--clip-file; .*siglip-so400m"),
    (["--prompt", "black cat", "--eta", "2"], r"eta is 2.0; expected a number in \[0, 1\]"),
    (["--prompt", "black cat", "--steps", "1001"], "steps is 1001; expected 1 .. 1000"),
    (["--prompt", "black cat", "--lr", "0"], "expected a number > 0"),
    (["--prompt", "black cat", "--device", "abacus"], "device 'abacus' cannot be used here"),
    (["--prompt", "black cat", "--reward", "jpeg"], "--reward jpeg has no gradient and --solver trust .* hybrid2"),
    (["--prompt", "black cat", "--solver", "pcn", "--lr", "1"], "--solver pcn takes .*--beta; leave out --lr"),
    (["--prompt", "black cat", "--steps", "2", "--part", "first 2"], "part is 'first 2'; expected"),
    (["--prompt", "black cat", "--height", "64"], "--height and --width are for --model"),
    (["--prompt", "black cat", "--download"], "--download fetches --model; the embedded model is here already"),
    (["--prompt", "black cat", "--reward", "jpeg", "--solver", "zeno", "--check-gradient"],
     "--reward jpeg has no gradient that --check-gradient could compare; leave it out"),
    (["--prompt", "black cat", "--model", "nowhere"], "there is no folder nowhere; .* --download"),
    (["--prompt", "black cat", "--model", "nowhere", "--reward", "consistency"], "--reward consistency knows"),
    (["--prompt", "black cat", "--model", "nowhere", "--watch", "consistency"], "--watch consistency knows"),
    (["--prompt", "black cat", "--start", "nothing"], "no noise file at nothing"),
    (["--prompt", "black cat", "--floors", "sharpness: 1"], "a floor on 'sharpness', but watched is 'consistency'"),
])
def test_bad_settings_are_one_clear_line(arguments, message, tmp_path, capsys):
    assert main(["run", *arguments, "--iterations", "1", "--out", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("dno: ") and re.search(message, lines[-1])


def test_a_prompt_that_the_embedded_model_cannot_draw_is_refused_before_anything_is_loaded(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(Setup, "of", lambda options: pytest.fail("the model was loaded"))
    assert main(["run", "--prompt", "a dragon in a castle", "--out", str(tmp_path)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("dno: the prompt 'a dragon in a castle' names no animal")
    assert all(word in line for word in (*vocabulary.ANIMALS, *vocabulary.COLOURS))


@pytest.mark.parametrize("asked, expected", [
    ("", "fast"), ("--memory auto", "auto"), ("--memory step", "step"), ("--memory 0.5", 0.5),
    ("--keep-graphs", "fast"), ("--no-keep-graphs", "step"),
])
def test_memory_is_what_the_maps_pullbacks_follow_and_the_older_switch_means_two_of_its_settings(asked, expected):
    parser = argparse.ArgumentParser()
    run.add_commands(parser.add_subparsers())
    setup = Setup.of(parser.parse_args(["run", "--prompt", "cat", *asked.split()]))
    assert setup.sample_map(["cat"]).plan.memory == setup.settings["memory"] == expected


def test_a_search_finds_the_same_in_little_memory_as_with_every_graph_kept(tmp_path):
    scores = []
    for memory in ("fast", "low"):
        arguments = ["run", "--prompt", "cat", "--steps", "2", "--iterations", "2", "--memory", memory]
        assert main([*arguments, "--out", str(tmp_path / memory)]) == 0
        record = json.loads((tmp_path / memory / "history.json").read_text())
        scores.append([row["score"][0] for row in record["rows"]])
        assert record["settings"]["memory"] == memory
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


@pytest.mark.parametrize("option", [
    "--steps 0", "--iterations -1", "--batch 0", "--reward beauty", "--memory slow", "--memory 0", "--memory nan",
    "--memory low --keep-graphs",
])
def test_impossible_options_are_refused_by_the_parser(option, tmp_path):
    with pytest.raises(SystemExit) as exit:
        main(["run", "--prompt", "black cat", *option.split(), "--out", str(tmp_path)])
    assert exit.value.code == 2
