"""`dno batch`, on one process and on two that `torchrun` starts."""

import argparse
import csv
import json
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
import tiny_pipelines
import torch
from comfyui_dno import core, rewards
from comfyui_dno.__main__ import main
from comfyui_dno.cli import batch
from comfyui_dno.cli import rewards as named
from comfyui_dno.cli.processes import Processes
from PIL import Image

TINY = ["--steps", "2", "--iterations", "1", "--lr", "0.05"]


def prompts_file(folder, *prompts):
    path = folder / "prompts.txt"
    path.write_text("\n".join(prompts or ["# animals", "black cat", "", "red owl"]) + "\n")
    return path


def run_batch(folder, *more, prompts=(), out="out"):
    return main(["batch", str(prompts_file(folder, *prompts)), *TINY, *more, "--out", str(folder / out)])


def torchrun(*arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    return subprocess.Popen([sys.executable, *launcher, *arguments], stdout=subprocess.PIPE, text=True)


def finished(out):
    return {path for path in out.glob("[0-9]*") if path.is_dir()}


def content(out):
    """Return the bytes of every file of a batch."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


class Flawed:
    """Brightness with a flaw at one of its calls; an item of these tests makes two."""

    name, differentiable = "brightness", True

    def __init__(self, at, flaw):
        self.calls, self.at, self.flaw = 0, at, flaw

    def __call__(self, images, prompts=None):
        self.calls += 1
        scores = rewards.Brightness()(images)
        return self.flaw(scores) if self.calls == self.at else scores


def interrupt(scores):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a batch of six items that one process made."""
    folder = tmp_path_factory.mktemp("alone")
    torch.set_num_threads(2)
    assert run_batch(folder, "--seeds", "0:3") == 0
    assert torch.get_num_threads() == 1, "the number of threads decides the last bits"
    return folder / "out"


@pytest.mark.parametrize("resuming", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_processes_killed_and_resumed_give_the_files_of_one(resuming, alone, tmp_path, capfd):
    out = tmp_path / "out"
    command = ["batch", str(prompts_file(tmp_path)), *TINY, "--seeds", "0:3", "--out", str(out)]
    first, deadline = torchrun("-m", "comfyui_dno", *command), time.monotonic() + 300
    while not finished(out) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = [child for child in psutil.Process(first.pid).children() if "batch" in child.cmdline()]
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    first.communicate(timeout=120)
    assert first.returncode != 0
    kept = {path: path.stat().st_mtime_ns for folder in finished(out) for path in folder.iterdir()}
    assert 0 < len(finished(out)) < 6 and not (out / "summary.json").exists()
    if resuming == 1:
        assert main(command) == 0
        said = capfd.readouterr().out
    else:
        again = torchrun("-m", "comfyui_dno", *command)
        said, _ = again.communicate(timeout=300)
        assert again.returncode == 0
    assert said.count("6 of 6 items finished") == 1
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert content(out) == content(alone)


def test_the_summary_lists_what_every_item_became(alone):
    summary = json.loads((alone / "summary.json").read_text())
    assert summary["finished"] == 6 and summary["not finished"] == 0
    names = [f"{line}_{seed:04d}" for line in ("0002_black-cat", "0004_red-owl") for seed in range(3)]
    assert [row["item"] for row in summary["items"]] == names
    with open(alone / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["prompt"], row["seed"]) for row in rows[2:4]] == [("black cat", "2"), ("red owl", "0")]
    for row, name in zip(rows, names, strict=True):
        record = json.loads((alone / name / "history.json").read_text())
        assert float(row["before"]) == record["rows"][0]["score"][0]
        assert float(row["best"]) == record["best_row"]["score"][0] >= float(row["before"])
        assert "seconds" not in record["rows"][0]
    assert Image.open(alone / "contact_sheet.png").width > 3 * 128


def test_an_items_noise_replays_its_picture(alone):
    noise = core.Noise.load(alone / "0004_red-owl_0001" / "noise.safetensors")
    assert (noise.settings["prompt"], noise.settings["seed"]) == ("red owl", 1)
    images = core.load_embedded("red owl", steps=2).sample(noise)
    record = json.loads((alone / "0004_red-owl_0001" / "history.json").read_text())
    torch.testing.assert_close(rewards.Brightness()(images).tolist(), record["best_row"]["score"], rtol=0, atol=1e-5)


def test_other_settings_do_not_mix_with_finished_items(alone, tmp_path, capsys):
    arguments = ["batch", str(prompts_file(tmp_path)), *TINY, "--seeds", "0:4", "--out", str(alone)]
    assert main([*arguments, "--gamma", "0.5"]) == 2
    assert "was made with gamma 1.0, not 0.5; use another --out" in capsys.readouterr().err
    assert main([*arguments, "--steps", "3"]) == 2
    assert len(finished(alone)) == 6


def test_items_of_a_version_that_knew_keep_graphs_alone_count_as_made_with_that_memory(tmp_path, capsys):
    assert run_batch(tmp_path, prompts=["cat"]) == 0
    (history,) = (tmp_path / "out").glob("*/history.json")
    record = json.loads(history.read_text())
    assert record["settings"].pop("memory") == "fast"
    for keep_graphs, found in ((True, 0), (False, 2)):
        record["settings"]["keep_graphs"] = keep_graphs
        history.write_text(json.dumps(record))
        assert run_batch(tmp_path, prompts=["cat"]) == found
    assert "was made with memory 'step', not 'fast'" in capsys.readouterr().err


def lose_the_connection(scores):
    raise ConnectionError("the server is gone")


@pytest.mark.parametrize("call, flaw, told", [
    (3, lambda scores: scores * torch.nan, "expected finite numbers"),
    (3, lose_the_connection, "the server is gone"), (4, lose_the_connection, "the server is gone"),
])
def test_a_failed_item_is_listed_spares_the_others_and_is_tried_again(call, flaw, told, tmp_path, monkeypatch, capsys):
    """At the second item's start, and in its middle, where a single run would keep the best so far."""
    with monkeypatch.context() as patch:
        patch.setitem(named.OWN, "brightness", lambda device: Flawed(call, flaw))
        assert run_batch(tmp_path, "--seeds", "0:3", prompts=["black cat"]) == 1
    assert "2 of 3 items finished" in capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())["items"]
    assert [row["status"] for row in rows] == ["finished", "failed", "finished"]
    assert told in rows[1]["stopped"]
    assert run_batch(tmp_path, "--seeds", "0:3", prompts=["black cat"]) == 0
    assert not list((tmp_path / "out").glob("*error*"))


def test_a_model_is_loaded_once_and_an_item_is_a_single_runs_picture(tmp_path, monkeypatch):
    tiny_pipelines.stable_diffusion().save_pretrained(tmp_path / "model")
    loaded, load = [], core.load_pipeline
    monkeypatch.setattr(core, "load_pipeline", lambda *given: loaded.append(given[0]) or load(*given))
    model = ["--model", str(tmp_path / "model")]
    assert run_batch(tmp_path, *model, prompts=["black cat", "white duck"]) == 0
    assert len(loaded) == 1
    assert main(["run", *model, *TINY, "--prompt", "white duck", "--out", str(tmp_path / "run")]) == 0
    item = tmp_path / "out" / "0002_white-duck_0000"
    assert (item / "after.png").read_bytes() == (tmp_path / "run" / "after.png").read_bytes()
    assert {path.name for path in item.iterdir()} == {path.name for path in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize("call", [3, 4])
def test_control_c_leaves_nothing_half_and_says_how_to_go_on(call, tmp_path, monkeypatch, capsys):
    """Before the second item's first picture is scored, and after, where a single run would keep the best so far."""
    killed = tmp_path / "out" / ".0001_black-cat_0001.99999.partial"
    killed.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setitem(named.OWN, "brightness", lambda device: Flawed(call, interrupt))
        assert run_batch(tmp_path, "--seeds", "0:2", prompts=["black cat"]) == 130
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line == "dno: interrupted with 1 of 2 items finished; the same command goes on from there"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"0001_black-cat_0000"}


def test_an_item_that_was_not_written_whole_is_not_finished(tmp_path, monkeypatch, capsys):
    def fill_the_disk(result, before, folder):
        (folder / "history.json").write_text("{}")
        raise OSError("no space left on device")

    monkeypatch.setattr(batch, "save", fill_the_disk)
    assert run_batch(tmp_path, prompts=["black cat"]) == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "0001_black-cat_0000.error.txt", "summary.csv", "summary.json",
    }  # fmt: skip
    assert "0001_black-cat_0000 could not be written: no space left" in (tmp_path / "out" / "summary.csv").read_text()


def test_bad_prompts_are_found_before_any_work(tmp_path, capsys):
    assert run_batch(tmp_path, prompts=["black cat", "", "black unicorn"]) == 2
    assert "line 3: the prompt 'black unicorn' names no animal" in capsys.readouterr().err
    assert run_batch(tmp_path, prompts=["# nothing"]) == 2
    assert "holds no prompt" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_seeds_are_numbers_and_half_open_ranges():
    assert batch.seeds("0:3,7") == [0, 1, 2, 7]
    for text in ("", "3:1", "-1", "1,1", "a"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected"):
            batch.seeds(text)


def test_processes_meet_without_accelerate_too(tmp_path):
    script = tmp_path / "meet.py"
    script.write_text(
        "import sys; sys.modules['accelerate'] = None\n"
        "from comfyui_dno.cli.processes import Processes\n"
        "here = Processes.join(); here.wait(); here.leave(); sys.stdout.write(f'{here}\\n')\n"
    )
    both = torchrun(str(script))
    said, _ = both.communicate(timeout=300)
    assert both.returncode == 0
    assert sorted(said.splitlines()) == [f"Processes(index={i}, count=2, local_index={i})" for i in (0, 1)]


def test_each_process_of_a_machine_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [Processes(i, 4, i % 2).device("cuda") for i in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert Processes(3, 4, 1).device("cuda:0") == "cuda:0" and Processes(3, 4, 1).device("cpu") == "cpu"
