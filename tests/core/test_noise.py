"""The noise container: drawing, layout, files."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from comfyui_dno import core
from safetensors import safe_open
from safetensors.torch import save_file


def test_x_t_and_the_steps_come_from_two_neighbouring_seeds():
    noise = core.Noise.randn((2, 4, 3, 3), injected=2, seed=7)
    torch.testing.assert_close(noise.initial, torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(7)))
    generator = torch.Generator().manual_seed(8)
    for step in noise.injected:
        torch.testing.assert_close(step, torch.randn(2, 4, 3, 3, generator=generator))
    assert not torch.equal(noise.initial, noise.injected[0])


def test_the_largest_seed_is_accepted():
    assert core.Noise.randn((1, 1, 2, 2), 1, seed=2**64 - 1).flat().shape == (1, 8)


def test_flat_puts_each_pictures_x_t_first_and_goes_back():
    noise = core.Noise.randn((2, 4, 3, 3), injected=3, seed=0)
    flat = noise.flat()
    torch.testing.assert_close(flat[1, :36], noise.initial[1].flatten())
    torch.testing.assert_close(flat[1, 36:72], noise.injected[0, 1].flatten())
    again = noise.with_flat(flat)
    assert torch.equal(again.initial, noise.initial) and torch.equal(again.injected, noise.injected)
    torch.testing.assert_close(noise.item(1).flat(), flat[1:])


def test_a_file_brings_back_the_tensors_and_the_settings(tmp_path):
    noise = core.Noise.randn((1, 4, 3, 3), injected=2, seed=0)
    noise = core.Noise(noise.initial, noise.injected, {"steps": 3, "eta": 1.0, "scheduler": "simple"})
    noise.save(tmp_path / "noise.safetensors")
    again = core.Noise.load(tmp_path / "noise.safetensors")
    assert torch.equal(again.initial, noise.initial) and torch.equal(again.injected, noise.injected)
    assert again.settings == noise.settings and json.dumps(again.settings)
    (tmp_path / "usual").touch()
    assert (tmp_path / "noise.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_wrong_files_and_shapes_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no noise file"):
        core.Noise.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("not a noise, but long enough to look like a file")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        core.Noise.load(tmp_path / "text.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not a noise file: it holds weight; expected"):
        core.Noise.load(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"expected \(L, \*\(1, 4, 3, 3\)\)"):
        core.Noise(torch.zeros(1, 4, 3, 3), torch.zeros(2, 2, 4, 3, 3))
    with pytest.raises(ValueError, match="expected 0 .. 0"):
        core.Noise.randn((1, 1, 2, 2)).item(1)


def with_checkpoint(**settings):
    """A noise with all that a file can hold."""
    noise = core.Noise.randn((1, 4, 3, 3), injected=2, seed=0)
    memory = {"exp_avg": noise.map(torch.zeros_like), "exp_avg_sq": noise.map(torch.ones_like)}
    checkpoint = core.Checkpoint(core.Noise.randn((1, 4, 3, 3), 2, 1), "adam", 5, memory)
    settings = {"sigmas": [1.0, 0.5, 0.0], "eta": 1.0, "family": "vp", "model": "0f" * 8, "seed": 3} | settings
    return core.Noise(noise.initial, noise.injected, settings, noise.initial.clone(), checkpoint)


def rewritten(path, change):
    """Write a whole noise to `path` with its tensors and record changed by `change(tensors, record)`."""
    with_checkpoint().save(path)
    with safe_open(path, framework="pt") as file:
        record, tensors = json.loads(file.metadata()["dno"]), {key: file.get_tensor(key) for key in file.keys()}
    text = change(tensors, record)
    save_file(tensors, path, {"dno": text if isinstance(text, str) else json.dumps(record)})
    return path


def test_a_checkpoint_and_what_was_kept_come_back(tmp_path):
    noise = with_checkpoint()
    noise.save(tmp_path / "whole.safetensors")
    again = core.Noise.load(tmp_path / "whole.safetensors")
    assert again.settings == noise.settings and torch.equal(again.kept, noise.kept)
    assert (again.checkpoint.solver, again.checkpoint.iteration) == ("adam", 5)
    assert torch.equal(again.checkpoint.noise.flat(), noise.checkpoint.noise.flat())
    for name, value in noise.checkpoint.memory.items():
        assert torch.equal(again.checkpoint.memory[name].flat(), value.flat())


BROKEN = {
    "a record that is no JSON": (lambda tensors, record: "{'format':", "its record is not JSON"),
    "a record nested without end": (lambda tensors, record: "[" * 100_000, "its record is not JSON"),
    "a record of many digits": (lambda tensors, record: "9" * 10_000, "its record is not JSON"),
    "a record that is a list": (lambda tensors, record: "[1]", "is not a table with a table of settings"),
    "settings that are a text": (lambda tensors, record: record.update(settings="eta"), "is not a table with a table"),
    "no settings": (lambda tensors, record: record.pop("settings") and None, "is not a table with a table"),
    "another format": (lambda tensors, record: record.update(format="dno_noise_9"), "its format is 'dno_noise_9'"),
    "sigmas that are a number": (lambda tensors, record: record["settings"].update(sigmas=1.0), "sigmas is 1.0; exp"),
    "an eta that is NaN": (lambda tensors, record: record["settings"].update(eta=math.nan), "eta is nan; expected a n"),
    "an eta that is a text": (lambda tensors, record: record["settings"].update(eta="1"), "eta is 1; expected a num"),
    "a family that is null": (lambda tensors, record: record["settings"].update(family=None), "family is None; expec"),
    "a seed with a point": (lambda tensors, record: record["settings"].update(seed=0.5), "seed is 0.5; expected a wh"),
    "a solver without a name": (lambda tensors, record: record.update(solver=7), "solver and iteration are 7 and 5"),
    "an iteration below 0": (lambda tensors, record: record.update(iteration=-1), "are 'adam' and -1"),
    "an iteration that is a text": (lambda tensors, record: record.update(iteration="5"), "are 'adam' and '5'"),
    "no iteration": (lambda tensors, record: record.pop("iteration") and None, "lacks 'iteration'"),
    "no injected noise": (lambda tensors, record: tensors.pop("injected").sum(), "it holds checkpoint/initial"),
    "half a checkpoint": (lambda tensors, record: tensors.pop("checkpoint/injected").sum(), "lacks 'checkpoint/inj"),
    "half a memory": (lambda tensors, record: tensors.pop("memory/exp_avg/initial").sum(), "lacks 'memory/exp_avg/in"),
    "another shape": (
        lambda tensors, record: tensors.update(initial=torch.zeros(1, 4, 3, 2)), r"expected \(L, \*\(1, 4, 3, 2\)\)"
    ),
    "a checkpoint of another shape": (
        lambda tensors, record: tensors.update(
            {"checkpoint/initial": torch.zeros(2, 4, 3, 3), "checkpoint/injected": torch.zeros(2, 2, 4, 3, 3)}
        ),
        r"checkpoint/initial is \(2, 4, 3, 3\); expected \(1, 4, 3, 3\)",
    ),
    "a kept part of another shape": (lambda tensors, record: tensors.update(kept=torch.zeros(4)), r"kept is \(4,\)"),
    "no picture": (
        lambda tensors, record: tensors.update(initial=torch.zeros(0, 4, 3, 3), injected=torch.zeros(2, 0, 4, 3, 3)),
        r"initial is \(0, 4, 3, 3\)",
    ),
    "whole numbers": (
        lambda tensors, record: tensors.update(initial=torch.zeros(1, 4, 3, 3, dtype=torch.int32)), "torch.int32; expe"
    ),
    "NaN": (lambda tensors, record: tensors.update(initial=torch.full((1, 4, 3, 3), torch.nan)), "initial holds NaN"),
    "infinity in the memory": (
        lambda tensors, record: tensors["memory/exp_avg/injected"].mul_(torch.inf).sum() and None,
        "memory/exp_avg/injected holds NaN or infinity",
    ),
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_record_is_one_line_that_names_the_file(broken, tmp_path):
    change, message = BROKEN[broken]
    path = rewritten(tmp_path / "broken.safetensors", change)
    with pytest.raises(ValueError, match=message) as raised:
        core.Noise.load(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [
    b"", b"\0", (2**63).to_bytes(8, "little"), (50_000_000).to_bytes(8, "little") + b"{}",
    (2).to_bytes(8, "little") + b"[]", b"not a noise, but long enough to look like a file",
], ids=["empty", "one byte", "a huge header", "a header that is cut off", "a header that is a list", "text"])
def test_a_file_of_another_kind_is_named(content, tmp_path):
    (tmp_path / "other.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="other.safetensors is not a safetensors file"):
        core.Noise.load(tmp_path / "other.safetensors")


def test_what_is_no_file_is_not_read(tmp_path):
    for path in [tmp_path, *filter(os.path.exists, ["/dev/zero"])]:
        with pytest.raises(ValueError, match="is not a file; expected one written by Noise.save"):
            core.Noise.load(path)
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(FileNotFoundError, match="no noise file at"):
            core.Noise.load(tmp_path / name)


@pytest.mark.parametrize("name, error, message", [
    ("x" * 300 + ".safetensors", OSError, r"..x+.safetensors could not be written: File name too long"),
    ("nowhere/noise.safetensors", OSError, "could not be written: No such file"),
    ("a\0b", ValueError, "holds a NUL character"),
    ("", ValueError, "is not a file"),
    ("file/noise.safetensors", OSError, "could not be written: Not a directory"),
])  # fmt: skip
def test_a_noise_that_cannot_be_written_says_so_in_one_line(name, error, message, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(error, match=message) as raised:
        core.Noise.randn((1, 1, 2, 2)).save(tmp_path / name)
    assert len(str(raised.value).splitlines()) == 1 and len(str(raised.value)) < 250
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_file_of_before(tmp_path):
    """A limit on the size of files stands for the disk; a process of its own, since it holds for all of one."""
    core.Noise.randn((1, 4, 8, 8)).save(tmp_path / "noise.safetensors")
    before = (tmp_path / "noise.safetensors").read_bytes()
    code = (
        "import resource, sys\nfrom comfyui_dno import core\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))\n"
        "try:\n    core.Noise.randn((1, 4, 64, 64)).save(sys.argv[1])\n"
        "except OSError as error:\n    sys.stdout.write(str(error))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "noise.safetensors")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"{tmp_path / 'noise.safetensors'} could not be written:") and "too large" in said
    assert (tmp_path / "noise.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["noise.safetensors"]


def test_a_device_is_not_replaced_by_a_file():
    with pytest.raises(ValueError, match="/dev/null is not a file"):
        core.Noise.randn((1, 1, 2, 2)).save("/dev/null")


def test_a_setting_that_is_no_number_can_be_written_and_read(tmp_path):
    core.Noise.randn((1, 1, 2, 2)).save(tmp_path / "plain.safetensors")
    noise = core.Noise(torch.zeros(1, 1, 2, 2), torch.zeros(0, 1, 1, 2, 2), {"lr": math.inf, "path": tmp_path})
    noise.save(tmp_path / "odd.safetensors")
    assert core.Noise.load(tmp_path / "odd.safetensors").settings == {"lr": None, "path": str(tmp_path)}


@pytest.mark.parametrize("settings, message", [
    ({"shape": (1, 4, 2.5, 2)}, "side is 2.5; expected a whole number"),
    ({"shape": (1, -4, 2, 2)}, "side is -4; expected 0 or more"),
    ({"injected": math.nan}, "injected is nan; expected a whole number"),
    ({"injected": -1}, "injected is -1; expected 0 or more"),
    ({"seed": math.nan}, "seed is nan; expected a whole number"),
    ({"seed": None}, "seed is None; expected a whole number"),
])  # fmt: skip
def test_noise_is_drawn_by_whole_numbers(settings, message):
    with pytest.raises(ValueError, match=message):
        core.Noise.randn(**{"shape": (1, 4, 2, 2)} | settings)


def test_a_seed_is_the_same_noise_whatever_torchs_default_type_is(default_float64):
    noise = core.Noise.randn((1, 4, 3, 3), injected=2, seed=7)
    drawn = torch.randn((1, 4, 3, 3), generator=torch.Generator().manual_seed(7), dtype=torch.float32)
    assert noise.flat().dtype == torch.float32 and torch.equal(noise.initial, drawn)


@pytest.fixture
def default_float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def test_items_come_in_the_order_that_is_asked_for_with_their_checkpoints():
    noise = core.Noise.randn((3, 2, 4, 4), injected=2, seed=0)
    last = core.Noise.randn((3, 2, 4, 4), injected=2, seed=1)
    noise = replace(noise, kept=last.initial, checkpoint=core.Checkpoint(last, "solver", 3, {"exp_avg": last}))
    some = noise.items([2, -3])
    assert torch.equal(some.flat(), noise.flat()[[2, 0]]) and torch.equal(some.kept, noise.kept[[2, 0]])
    assert torch.equal(some.checkpoint.noise.flat(), last.flat()[[2, 0]])
    assert torch.equal(some.checkpoint.memory["exp_avg"].flat(), last.flat()[[2, 0]])


def test_variations_begin_with_the_noise_itself_and_stay_true_noise_however_often_they_are_varied():
    noise = core.Noise.randn((1, 4, 32, 32), injected=7, seed=0)
    original = noise
    for round_ in range(20):
        some = noise.variations(4, beta=0.3, seed=round_)
        assert torch.equal(some.item(0).flat(), noise.flat())
        noise = some.item(2)
        # n = 32768: the norm of true noise is 1 up to 1 / sqrt(2 n) = .004, here five times that.
        assert abs(noise.flat().square().mean().sqrt() - 1) < 0.02
        assert core.noise_probability(noise.flat()).item() > 0.01
    # After k rounds sqrt(1 - .09)^k of the first is left.
    left = (noise.flat() * original.flat()).mean()
    assert abs(left - (1 - 0.09) ** 10) < 0.03


def test_a_neighbour_is_as_far_away_as_beta_says_and_does_not_depend_on_their_number():
    noise = core.Noise.randn((1, 4, 32, 32), injected=7, seed=0)
    some = noise.variations(3, beta=0.6, seed=1)
    for item in (1, 2):
        assert abs((some.item(item).flat() * noise.flat()).mean() / noise.flat().square().mean() - 0.8) < 0.03
    assert torch.equal(noise.variations(2, beta=0.6, seed=1).flat(), some.items([0, 1]).flat())
    assert not torch.equal(noise.variations(2, beta=0.6, seed=2).flat(), some.items([0, 1]).flat())
    assert torch.equal(noise.variations(2, beta=0.0).item(1).flat(), noise.flat())


@pytest.mark.parametrize("batch, count, beta", [(2, 2, 0.1), (1, 0, 0.1), (1, 2, 1.5), (1, 2, float("nan"))])
def test_variations_of_what_cannot_be_varied_are_refused(batch, count, beta):
    with pytest.raises(ValueError, match="expected"):
        core.Noise.randn((batch, 1, 4, 4)).variations(count, beta)
