"""The noise container: drawing, layout, files."""

import json

import pytest
import torch
from comfyui_dno import core


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


def test_wrong_files_and_shapes_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no noise file"):
        core.Noise.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("not a noise, but long enough to look like a file")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        core.Noise.load(tmp_path / "text.safetensors")
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"found \['weight'\]"):
        core.Noise.load(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"expected \(L, \*\(1, 4, 3, 3\)\)"):
        core.Noise(torch.zeros(1, 4, 3, 3), torch.zeros(2, 2, 4, 3, 3))
    with pytest.raises(ValueError, match="expected 0 .. 0"):
        core.Noise.randn((1, 1, 2, 2)).item(1)
