"""The metrics of the package pyiqa (IQA-PyTorch) as rewards, where the user has installed it.

pyiqa is no requirement of this pack, and its licence (PolyForm Noncommercial) is its own. A metric's network is made by
pyiqa from the weights in its caches. It would fetch what they lack; here that is an error that says how to fetch it.
"""

import contextlib
import importlib.util
import logging
import socket
import sys
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from ..core.precision import outside_autocast, repeatable
from .networks import Tower
from .pictures import rgb
from .preprocess import clamp_through

log = logging.getLogger(__name__)

LISTED = "default_model_configs"
"""The module of pyiqa that lists its metrics, and imports nothing of the rest, which takes ten seconds."""
OF_NO_PICTURE = ("fid", "sfid", "fid_dinov2", "inception_score", "clipscore", "fgresq_pair")
"""What judges whole folders of pictures, a picture with a text, or which of two pictures is better."""
PROBE = 256
"""Side of the picture on which a gradient is tried; some metrics take none below 176."""
BYTES_A_PIXEL = 3072
"""What a network may keep of a picture for its way back, a guess: the layers of VGG16 add up to 2.2 KB a pixel."""
LEAST_SLOPE = 0.1
"""Of what the gradient says. Of the metrics that need no weights psnr gave 1.00, ssim 0.91, vif 0.64, gmsd, whose
gradient is in few pixels, 0.25; fsim 0.03 and vsi NaN, which no search can climb."""


@dataclass(eq=False)
class IQA:
    """The score of a metric of pyiqa, or minus it where lower is better: TOPIQ, MUSIQ, CLIP-IQA, NIMA, SSIM, LPIPS ..

    Each picture is judged by itself, with the same random crops each time, where the metric takes any.

    Example:
        >>> images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        >>> scores = rewards.IQA("psnr", reference=images[:1])(images)  # doctest: +SKIP
        >>> scores  # doctest: +SKIP
        tensor([80.0000,  7.7541])

    Attributes:
        metric: one of `metrics()`.
        tower: its `MetricTower`.
        reference: (R, 3, H, W) in [0, 1], what pictures are compared with by a metric that compares: one for all, or
            one for each of the batch. It is resized to theirs. Other metrics do not use it.

    Raises:
        ValueError: there is no such metric, or it compares and there is no reference.
        FileNotFoundError: its weights are not in pyiqa's caches.
        RuntimeError: pyiqa cannot make it, most often since a package that it needs is missing.
    """

    metric: str
    reference: torch.Tensor | None = None

    def __post_init__(self):
        known = metrics()
        if self.metric not in known:
            found = ", ".join(known) or "none, since pyiqa is not installed"
            raise ValueError(f"pyiqa has no metric {self.metric!r} of a picture; expected one of {found}")
        if self.compares:
            if self.reference is None:
                raise ValueError(f"{self.metric} compares pictures with a reference; expected one, and found none")
            if not rgb(self.reference, "reference").isfinite().all():
                raise ValueError("reference holds NaN or infinity; expected finite pictures")
        self.tower = MetricTower(self.metric)

    @property
    def compares(self):
        """Whether the metric needs a reference."""
        return metrics()[self.metric]["metric_mode"] == "FR"

    @property
    def lower_is_better(self):
        """Whether the reward is minus the metric."""
        return metrics()[self.metric].get("lower_better", False)

    @property
    def range(self):
        """The least and the greatest number that the metric usually gives, as pyiqa writes it."""
        return metrics()[self.metric].get("score_range", "unknown")

    @property
    def name(self):
        return f"minus {self.metric}" if self.lower_is_better else self.metric

    @cached_property
    def differentiable(self):
        """Whether a step along the metric's gradient raises it: tried on one picture, since pyiqa does not tell."""
        return self.slope > LEAST_SLOPE

    @cached_property
    def slope(self):
        """By how much a step along the metric's gradient changes it, as a share of what the gradient says; 0 without.

        The step is of 2 of 255 levels, since some metrics round pixels, on a picture of coarse and fine shapes.
        """
        with torch.inference_mode(False), torch.enable_grad():
            fine, coarse, other = (pattern(side, seed) for seed, side in enumerate((64, 16, 32)))
            picture, reference = (coarse + fine / 4), ((other + coarse) / 2 if self.compares else None)
            leaf = (picture / picture.max()).requires_grad_()
            with self.tower.judging(leaf) as device:
                score = self._judged(leaf, reference, device)
            if not score.requires_grad:
                return 0.0
            (gradient,) = torch.autograd.grad(score.sum(), leaf)
        if not gradient.isfinite().all() or not gradient.any():
            return 0.0
        step = gradient * (2 / 255 / gradient.abs().mean())
        with torch.no_grad(), self.tower.judging(leaf) as device:
            ends = [self._judged(leaf + sign * step, reference, device) for sign in (1, -1)]
        return ((ends[0] - ends[1]) / (2 * gradient * step).sum()).item()

    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), as many as references or a multiple, candidate-major."""
        images = clamp_through(rgb(images))
        references = self._references(images) if self.compares else [None] * len(images)
        with self.tower.judging(images) as device:
            scores = [self._judged(*pair, device) for pair in zip(images.split(1), references, strict=True)]
        return -torch.cat(scores) if self.lower_is_better else torch.cat(scores)

    def _references(self, images):
        """Return for each picture its reference (1, 3, H, W), of its size."""
        if len(images) % len(self.reference):
            raise ValueError(
                f"reference has {len(self.reference)} pictures, the batch {len(images)}; expected one, or one each"
            )
        reference = rgb(self.reference.to(images)).clamp(0, 1)
        if reference.shape[-2:] != images.shape[-2:]:
            reference = F.interpolate(reference, images.shape[-2:], mode="bilinear", antialias=True)
        return reference.clamp(0, 1).split(1) * (len(images) // len(self.reference))

    def _judged(self, picture, reference, device):
        """Return the metric (1,) of one picture (1, 3, H, W), by the network on `device`."""
        with _explained(self.metric), _same_crops(device):
            given = [each.to(device, torch.float32) for each in (picture, reference) if each is not None]
            found = self.tower.module(*given)
        return found.reshape(1, -1)[:, 0].to(picture)


class MetricTower(Tower):
    """The network of one metric, and of no file that is known here.

    Attributes:
        module: pyiqa's; it may have no parameters.
    """

    def __init__(self, metric):
        super().__init__(metric, "pyiqa")
        self.module = made(metric)

    @contextlib.contextmanager
    def judging(self, images):
        """Yield the device to judge pictures (B, 3, H, W) on: theirs, or where `on_use` loads the network."""
        if self.on_use is None or next(self.module.parameters(), None) is None:
            self.module.to(images.device)
            with outside_autocast(images.device.type):
                yield images.device
        else:
            # Each has its own graph; without a gradient one picture is held at a time, and of that a few layers.
            kept = len(images) if torch.is_grad_enabled() and images.requires_grad else 0.25
            with self.running(int(BYTES_A_PIXEL * kept * images[0, 0].numel())) as device:
                yield device


def pattern(side, seed):
    """Return one picture (1, 3, PROBE, PROBE) of random shapes, `side` of them along each side."""
    drawn = torch.rand((1, 3, side, side), generator=torch.Generator().manual_seed(seed), device="cpu")
    return F.interpolate(drawn, PROBE, mode="bilinear")


def metrics():
    """Return name -> what pyiqa says of its metrics that judge a picture; nothing where it, or its list, is not there.

    Example:
        >>> for name, told in metrics().items():  # doctest: +SKIP
        ...     print(name, told["metric_mode"], told.get("lower_better", False), told["score_range"])
    """
    found = importlib.util.find_spec("pyiqa")
    if found is None or found.origin is None:
        return {}
    listed = importlib.util.spec_from_file_location(f"pyiqa_{LISTED}", Path(found.origin).with_name(f"{LISTED}.py"))
    module = importlib.util.module_from_spec(listed)
    try:
        listed.loader.exec_module(module)
        return {name: told for name, told in module.DEFAULT_CONFIGS.items() if name not in OF_NO_PICTURE}
    except Exception:  # another version's file can hold anything, and must not keep the other rewards from loading
        log.warning("the list of metrics of the pyiqa that is installed cannot be read", exc_info=True)
        return {}


def made(metric):
    """Return pyiqa's network of a metric, a torch Module, made of what is on this computer."""
    with torch.inference_mode(False), _explained(metric):
        import pyiqa

        network = pyiqa.create_metric(metric, as_loss=True, loss_reduction="none", device=torch.device("cpu"))
    return network.eval().requires_grad_(False)


@contextlib.contextmanager
def _explained(metric):
    """Let pyiqa work offline, and say what to do where it finds weights or packages missing."""
    by_hand = f"{sys.executable} -c \"import pyiqa; pyiqa.create_metric('{metric}', device='cpu')\""
    try:
        with _offline():
            yield
    except OSError as error:
        raise FileNotFoundError(
            f"the weights of pyiqa's metric {metric} are not on this computer, and nothing is downloaded here. Fetch"
            f" them once by this command, outside ComfyUI: {by_hand}"
        ) from error
    except (ImportError, LookupError) as error:
        raise RuntimeError(
            f"pyiqa cannot run its metric {metric}: {type(error).__name__}: {error}. Likely a package that it needs is"
            f" missing. See whether it can outside ComfyUI: {by_hand}"
        ) from error


@contextlib.contextmanager
def _offline():
    """Let this thread find no host, and the Hugging Face Hub's package ask for none, so that caches alone are read."""
    thread, find = threading.get_ident(), socket.getaddrinfo

    def refuse(host, *args, **kwargs):
        if threading.get_ident() == thread:
            raise OSError(f"{host} is asked for something, and nothing is downloaded here")
        return find(host, *args, **kwargs)

    hub = sys.modules.get("huggingface_hub.constants")
    was_offline = getattr(hub, "HF_HUB_OFFLINE", None)
    socket.getaddrinfo = refuse
    if hub is not None:
        hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        socket.getaddrinfo = find
        if hub is not None:
            hub.HF_HUB_OFFLINE = was_offline


@contextlib.contextmanager
def _same_crops(device):
    """Let what a metric draws be the same each time, and leave the generators as found."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        with repeatable(device, ("crops of a metric",)):
            yield
    finally:
        np.random.set_state(state)
