"""What the commands write, and where it cannot be written."""

import json
import os
import resource
import subprocess
import sys

import pytest
from comfyui_dno import core
from comfyui_dno.__main__ import main
from comfyui_dno.cli import output
from comfyui_dno.cli.items import Item, read_items, summarise
from comfyui_dno.cli.search import Setup
from comfyui_dno.core import files
from comfyui_dno.core.files import whole_file

TINY = ["--prompt", "black cat", "--steps", "2", "--iterations", "1"]
COMMAND = [sys.executable, "-m", "comfyui_dno"]


def no_space(*given, **options):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("command", [["run", *TINY], ["demo"], ["toy"], ["batch", "prompts.txt"]])
@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_search(command, out, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(Setup, "of", lambda *given: pytest.fail("the search began"))
    assert main([*command, "--out", str(tmp_path / out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dno: --out {tmp_path / out} cannot be written to (")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_noticed_before_the_search_although_it_takes_an_empty_file(tmp_path):
    def at_most_a_kilobyte():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    arguments = [*COMMAND, "run", *TINY, "--out", str(tmp_path / "out")]
    done = subprocess.run(arguments, capture_output=True, text=True, preexec_fn=at_most_a_kilobyte)
    assert done.returncode == 2
    assert done.stderr == f"dno: --out {tmp_path / 'out'} cannot be written to (File too large); {EXPECTED}\n"
    assert not list((tmp_path / "out").iterdir())


EXPECTED = "expected a folder to write to"


@pytest.mark.parametrize("command", [["run", *TINY], ["demo", "--steps", "2", "--iterations", "1"]])
def test_a_disk_that_fills_up_leaves_every_file_of_an_earlier_search(command, tmp_path, monkeypatch, capsys):
    assert main([*command, "--out", str(tmp_path)]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(core.plots, "trajectory", no_space)  # the last of a search's files
        assert main([*command, "--seed", "1", "--out", str(tmp_path)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"dno: {tmp_path} could not be written: No space left on device"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_smaller_batch_leaves_no_picture_of_a_larger_one_and_nothing_else_is_removed(tmp_path):
    """Of 101 pictures the last has a number of three digits."""
    (tmp_path / "100_after.png").touch()
    for name in ("my_before.png", "01_notes.txt", "1_after.png"):
        (tmp_path / name).write_text("mine")
    for batch in ("2", "1"):
        assert main(["run", *TINY, "--batch", batch, "--out", str(tmp_path)]) == 0
    pictures = {"before.png", "after.png", "trajectory.png", "curves.png"}
    mine = {"my_before.png", "01_notes.txt", "1_after.png"}
    assert {path.name for path in tmp_path.iterdir()} == pictures | mine | {"history.json", "noise.safetensors"}


def test_a_file_that_names_itself_is_not_named_by_its_working_folder(tmp_path):
    with pytest.raises(OSError, match=rf"^{tmp_path} could not be written: No space left on device$"):
        with output.together(tmp_path) as folder, whole_file(folder / "noise.safetensors"):
            no_space()


def test_a_batch_on_a_full_disk_ends_in_one_line_without_an_empty_report(tmp_path, monkeypatch, capsys):
    (tmp_path / "prompts.txt").write_text("black cat\nred owl\n")
    monkeypatch.setattr(files.os, "replace", no_space)
    arguments = ["batch", str(tmp_path / "prompts.txt"), *TINY[2:], "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].endswith("error.txt could not be written: No space left on device")
    assert "Traceback" not in said and not list((tmp_path / "out").iterdir())


def test_leftovers_of_every_kind_are_removed(tmp_path):
    (tmp_path / ".0a.partial").mkdir()
    (tmp_path / ".0b.partial.json").write_text("{")
    (tmp_path / "kept.partial").write_text("mine")
    output.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.partial"]


@pytest.mark.parametrize("data", [
    b"\xef\xbb\xbfblack cat\r\nred owl\r\n", b"black cat\rred owl", b"black cat\nred owl\n", b"black cat\r\nred owl",
])  # fmt: skip
def test_prompts_come_from_the_text_files_of_every_system(data, tmp_path):
    (tmp_path / "prompts.txt").write_bytes(data)
    items = read_items(tmp_path / "prompts.txt", [0], tmp_path)
    assert [(item.line, item.prompt) for item in items] == [(1, "black cat"), (2, "red owl")]


def test_lines_are_those_that_an_editor_counts(tmp_path):
    (tmp_path / "prompts.txt").write_text("black\u2028cat\fred\x85owl\nwhite duck", encoding="utf-8")
    assert [item.line for item in read_items(tmp_path / "prompts.txt", [0], tmp_path)] == [1, 2]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-be", "cp1252"])
def test_other_encodings_are_named_with_the_file(encoding, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_bytes("caf\u00e9 cat\n".encode(encoding))
    assert main(["batch", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "prompts.txt is not a text file in UTF-8" in line and line.endswith("save as UTF-8")


@pytest.mark.parametrize("name, reason", [("gone.txt", "No such file or directory"), (".", "Is a directory")])
def test_prompts_that_cannot_be_read_are_one_line(name, reason, tmp_path, capsys):
    assert main(["batch", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"dno: the file of prompts {tmp_path / name} cannot be read: {reason}\n"


def finished_item(folder, record):
    item = Item(1, "black cat", 0, folder / "0001_black-cat_0000")
    item.folder.mkdir()
    (item.folder / "history.json").write_text(record)
    core.plots.Image.new("RGB", (8, 8)).save(item.folder / "after.png")
    return item


@pytest.mark.parametrize("record", ["", "{", "[]", "{}", '{"rows": []}'])
def test_a_broken_history_is_named(record, tmp_path):
    with pytest.raises(ValueError, match="history.json .*; remove the item's folder"):
        finished_item(tmp_path, record).record()


def test_scores_that_are_null_are_drawn_as_unknown(tmp_path):
    row = {"iteration": 0, "score": [None], "log_p": [None], "log_p_initial": [None]}
    record = {"rows": [row], "best": [0], "best_row": row, "reward": "r", "stopped": "", "settings": {}}
    assert summarise([finished_item(tmp_path, json.dumps(record))], tmp_path) == 0
    assert (tmp_path / "contact_sheet.png").exists()


SAY = "from comfyui_dno.cli.output import say; say('\\u732b {0}'); say('again')"


def test_what_a_console_cannot_say_is_escaped():
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", SAY], capture_output=True, env=environment)
    assert (done.returncode, done.stdout.splitlines()) == (0, [b"\\u732b {0}", b"again"])


@pytest.mark.parametrize("console", ["/dev/full", "closed", "broken pipe"])
def test_a_console_that_takes_nothing_is_no_failure(console):
    command = [sys.executable, "-c", SAY]
    if console == "/dev/full":
        with open(console, "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE)
    elif console == "closed":
        done = subprocess.run(command, stderr=subprocess.PIPE, preexec_fn=lambda: os.close(1))
    else:
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE)
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("option", ["cfg", "eta", "lr", "gamma", "beta", "scale", "seconds"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "much"])
def test_options_are_finite_numbers(option, value, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["run", *TINY, f"--{option}={value}", "--out", str(tmp_path)])
    assert exit.value.code == 2
    assert f"argument --{option}: " in capsys.readouterr().err.splitlines()[-1]


def test_a_run_that_ended_early_says_why_and_how_far_it_came(tmp_path, capsys):
    assert main(["run", *TINY[:-1], "5", "--seconds", "0", "--out", str(tmp_path)]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("brightness: ended early, after 0 of 5 iterations: the time budget of 0.0 s is spent;")
