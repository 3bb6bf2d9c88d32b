"""The `dno` command, as a user runs it."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from comfyui_dno import core, rewards
from comfyui_dno.__main__ import main
from PIL import Image


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
    images = core.load_embedded(["red owl"] * 2, steps=4).sample(noise)
    best = [max(row["score"][item] for row in record["rows"]) for item in (0, 1)]
    torch.testing.assert_close(rewards.Brightness(negative=True)(images), torch.tensor(best), rtol=1e-4, atol=1e-4)
    assert {"00_before.png", "01_after.png", "01_trajectory.png"} <= {path.name for path in tmp_path.iterdir()}


def test_the_consistency_score_can_be_the_reward(tmp_path):
    arguments = ["run", "--prompt", "cat", "--reward", "consistency", "--iterations", "1", "--steps", "2"]
    assert main([*arguments, "--gamma", "0", "--check-gradient", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "history.json").read_text())
    assert record["reward"] == "consistency" and record["settings"]["gradient_error"][0] < 0.1


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


@pytest.mark.parametrize("arguments, message", [
    (["--prompt", "black unicorn"], "names no animal"),
    (["--prompt", "black cat", "--eta", "2"], r"eta is 2.0; expected a number in \[0, 1\]"),
    (["--prompt", "black cat", "--steps", "1001"], "steps is 1001; expected 1 .. 1000"),
    (["--prompt", "black cat", "--lr", "0"], "expected a number > 0"),
    (["--prompt", "black cat", "--device", "abacus"], "device 'abacus' cannot be used here"),
])
def test_bad_settings_are_one_clear_line(arguments, message, tmp_path, capsys):
    assert main(["run", *arguments, "--iterations", "1", "--out", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("dno: ") and re.search(message, lines[-1])


@pytest.mark.parametrize("option", ["--steps 0", "--iterations -1", "--batch 0", "--reward beauty"])
def test_impossible_options_are_refused_by_the_parser(option, tmp_path):
    with pytest.raises(SystemExit) as exit:
        main(["run", "--prompt", "black cat", *option.split(), "--out", str(tmp_path)])
    assert exit.value.code == 2
