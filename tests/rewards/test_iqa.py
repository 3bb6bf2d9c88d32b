"""pyiqa's metrics as rewards: by a stand-in of its interface always, by pyiqa itself where it is installed."""

import importlib.util
import re
import socket
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_dno import rewards
from comfyui_dno.core.scoring import exact, score
from comfyui_dno.rewards.iqa import metrics
from reward_laws import gained_by_ten_steps

STUB = Path(__file__).parents[1] / "support" / "stub_pyiqa"
INSTALLED = importlib.util.find_spec("pyiqa") is not None
SLOPES = {"psnr": 0.99, "ssim": 0.8, "ssimc": 0.8, "nlpd": 0.8, "gmsd": 0.1, "fsim": None, "piqe": None}
"""Metrics without weights -> the least share of what a gradient says that a step must gain; None: there is none."""


@pytest.fixture
def stub(monkeypatch):
    """Let the stand-in be what `import pyiqa` finds."""
    ours = [name for name in sys.modules if name.split(".")[0] == "pyiqa"]
    for name in ours:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(STUB)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "pyiqa"]:
        del sys.modules[name]


def pictures(*shape, seed=0):
    """Random pictures that go a little out of range."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 1.2 - 0.1


def test_every_metric_of_a_picture_is_listed_without_importing_pyiqa(stub):
    ours = ["mean", "error", "rounded", "detached", "crops", "not_here", "not_here_later", "broken"]
    assert list(metrics()) == [*ours, "ssim", "topiq_nr"]
    assert "pyiqa" not in sys.modules


def test_without_pyiqa_nothing_is_listed_and_a_metric_says_why(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert metrics() == {}


@pytest.mark.parametrize("listing", [None, "raise RuntimeError", "import not_there", "CONFIGS = {}"])
def test_another_pyiqas_list_that_cannot_be_read_leaves_no_metric_and_no_error(monkeypatch, tmp_path, listing, caplog):
    """The list is read as ComfyUI asks for the nodes: an error would take away all that come after."""
    (tmp_path / "pyiqa").mkdir()
    (tmp_path / "pyiqa" / "__init__.py").write_text("")
    if listing is not None:
        (tmp_path / "pyiqa" / "default_model_configs.py").write_text(listing)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "pyiqa"]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    assert metrics() == {}
    assert "cannot be read" in caplog.text
    with pytest.raises(ValueError, match="no metric 'mean' of a picture; expected one of none, since pyiqa is not ins"):
        rewards.IQA("mean")


def test_higher_is_better_whatever_the_metric_says(stub):
    images, reference = pictures(2, 3, 8, 8), pictures(1, 3, 8, 8, seed=1)
    seen = images.clamp(0, 1)
    torch.testing.assert_close(rewards.IQA("mean")(images), seen.mean(dim=(1, 2, 3)))
    reward = rewards.IQA("error", reference)
    torch.testing.assert_close(reward(images), -(seen - reference.clamp(0, 1)).square().mean(dim=(1, 2, 3)))
    assert (reward.name, rewards.IQA("mean").name) == ("minus error", "mean")


def test_the_reference_is_resized_and_is_one_for_all_or_one_for_each(stub):
    images = torch.stack([torch.full((3, 8, 8), level) for level in (0.2, 0.6)])
    large = torch.stack([torch.full((3, 20, 12), level) for level in (0.2, 0.6)])
    torch.testing.assert_close(rewards.IQA("error", large)(images), torch.zeros(2), rtol=0, atol=1e-6)
    candidates = rewards.IQA("error", large)(images.repeat(2, 1, 1, 1).flip(0))
    torch.testing.assert_close(candidates, torch.full((4,), -0.16), rtol=0, atol=1e-6)
    torch.testing.assert_close(rewards.IQA("error", large[:1])(images), torch.tensor([0, -0.16]), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="reference has 2 pictures, the batch 3; expected one, or one each"):
        rewards.IQA("error", large)(images[[0, 1, 0]])


@pytest.mark.parametrize("metric, expected", [("mean", True), ("crops", True), ("rounded", False), ("detached", False)])
def test_whether_there_is_a_gradient_is_found_out(stub, metric, expected):
    assert rewards.IQA(metric).differentiable is expected
    assert not expected or rewards.IQA(metric).slope == pytest.approx(1, rel=1e-3)  # both are linear


def test_a_gradient_that_does_not_raise_the_metric_is_none(stub, monkeypatch):
    reward = rewards.IQA("mean")

    def of_the_wrong_sign(network, target, ref):
        return 3 * target.detach().mean() - 2 * target.mean()

    monkeypatch.setattr(type(reward.tower.module), "mean", of_the_wrong_sign)
    assert reward.slope < 0 and reward.differentiable is False


def test_the_gradient_is_minus_that_of_what_is_better_when_lower_and_a_pixel_out_of_range_has_one(stub):
    images, reference = pictures(2, 3, 6, 6), pictures(1, 3, 6, 6, seed=1)
    _, gradient = exact(rewards.IQA("error", reference), images)
    torch.testing.assert_close(gradient, -2 * (images.clamp(0, 1) - reference.clamp(0, 1)) / images[0].numel())


@pytest.mark.parametrize("metric", ["mean", "error", "ssim"])
def test_ten_ascent_steps_raise_the_score(stub, metric):
    reference = pictures(1, 3, 64, 64, seed=1).clamp(0, 1) if metric != "mean" else None
    assert (gained_by_ten_steps(rewards.IQA(metric, reference), pictures(2, 3, 64, 64).clamp(0.1, 0.9)) > 0).all()


def test_a_metric_that_compares_may_be_asked_for_its_gradient_in_inference_mode_and_under_any_default_device(stub):
    reference = pictures(1, 3, 64, 64, seed=1).clamp(0, 1)
    reward = rewards.IQA("ssim", reference)
    with torch.inference_mode(), torch.device("meta"):
        slope = reward.slope
    assert slope == rewards.IQA("ssim", reference).slope > 0.5


def test_a_reference_that_is_not_finite_is_refused(stub):
    reference = pictures(1, 3, 64, 64, seed=1)
    reference[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="reference holds NaN or infinity; expected finite pictures"):
        rewards.IQA("ssim", reference)


def test_the_network_runs_where_it_is_loaded_to_and_says_first_what_it_takes(stub, device):
    """As ComfyUI loads the networks of rewards; the pictures may be elsewhere."""
    images, reference = pictures(2, 3, 6, 6), pictures(1, 3, 6, 6, seed=1)
    reward, asked = rewards.IQA("error", reference), []

    def load(memory):
        asked.append(memory)
        reward.tower.module.to(device)

    reward.tower.on_use = load
    scores, gradient = exact(reward, images)
    assert next(reward.tower.module.parameters()).device == device
    assert (scores.device, gradient.device) == (images.device, images.device)
    own = rewards.IQA("error", reference)
    torch.testing.assert_close(scores, own(images))
    torch.testing.assert_close(gradient, exact(own, images)[1])
    with_gradient = asked[-1]  # those before it tried whether there is one
    asked.clear()
    score(reward, images)
    assert len(asked) == 1 and with_gradient > asked[0] > 0  # once for all pictures


def test_random_crops_are_the_same_each_time_and_generators_are_left_as_found(stub):
    reward, images = rewards.IQA("crops"), pictures(1, 3, 32, 32)
    first = score(reward, images)
    np.random.rand(), torch.rand(1)  # as anybody may draw between two calls
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    assert score(reward, images) == first
    assert (np.random.get_state()[1] == numpy_state).all() and torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize("metric", ["not_here", "not_here_later"])
def test_weights_that_are_not_here_are_one_error_that_says_how_to_fetch_them(stub, metric, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: asked.append(host))
    find = socket.getaddrinfo
    told = f"the weights of pyiqa's metric {metric} are not on this computer, and nothing is downloaded here. Fetch"
    with pytest.raises(FileNotFoundError, match=re.escape(told)) as raised:
        rewards.IQA(metric)(pictures(1, 3, 8, 8))
    assert f"{sys.executable} -c \"import pyiqa; pyiqa.create_metric('{metric}'" in str(raised.value)
    assert asked == [] and socket.getaddrinfo is find, "no host was asked for, and hosts are found as before"


def test_other_threads_find_hosts_meanwhile(stub, monkeypatch):
    found = []

    def from_another_thread(network, target, ref):
        thread = threading.Thread(target=lambda: found.append(socket.getaddrinfo("localhost", 80)))
        thread.start()
        thread.join()
        return target.mean(dim=(1, 2, 3))

    reward = rewards.IQA("mean")
    monkeypatch.setattr(type(reward.tower.module), "mean", from_another_thread)
    reward(pictures(1, 3, 8, 8))
    assert len(found) == 1


def test_what_pyiqa_cannot_make_and_what_it_does_not_know_is_said(stub):
    with pytest.raises(RuntimeError, match="pyiqa cannot run its metric broken: KeyError: .*Likely a package that it"):
        rewards.IQA("broken")
    with pytest.raises(
        ValueError, match="pyiqa has no metric 'fid' of a picture; expected one of mean, error, rounded"
    ):
        rewards.IQA("fid")
    with pytest.raises(ValueError, match="error compares pictures with a reference; expected one, and found none"):
        rewards.IQA("error")


@pytest.mark.skipif(not INSTALLED, reason="pyiqa is not installed")
@pytest.mark.parametrize("metric", SLOPES)
def test_scores_are_those_of_pyiqa_itself_and_a_step_along_the_gradient_gains_what_it_says(metric):
    import pyiqa

    theirs = pyiqa.create_metric(metric, device="cpu")
    images, reference = (pictures(1, 3, 128, 128, seed=seed).clamp(0, 1) for seed in (1, 2))
    reward = rewards.IQA(metric, reference if theirs.metric_mode == "FR" else None)
    expected = theirs(images, reference).item() * (-1 if theirs.lower_better else 1)
    assert reward(images).item() == pytest.approx(expected, rel=1e-5)
    assert reward.lower_is_better == theirs.lower_better and reward.range == theirs.score_range
    assert reward.differentiable is (SLOPES[metric] is not None)
    assert not reward.differentiable or SLOPES[metric] < reward.slope < 1.02


@pytest.mark.skipif(not INSTALLED, reason="pyiqa is not installed")
def test_pyiqa_itself_is_refused_a_download(monkeypatch, tmp_path):
    from pyiqa.utils import download_util

    monkeypatch.setattr(download_util, "DEFAULT_CACHE_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="the weights of pyiqa's metric niqe are not on this computer"):
        rewards.IQA("niqe")
    assert not list(tmp_path.iterdir())
