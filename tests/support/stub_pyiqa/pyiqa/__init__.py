"""A stand-in for the package pyiqa, which the tests' Python lacks: its interface, with metrics of known values.

As in pyiqa, a metric made `as_loss` has a gradient even where it is asked without, and forgets the range of its input.
"""

import urllib.request

import numpy as np
import torch

from .default_model_configs import DEFAULT_CONFIGS


def fetch():
    """Ask for weights as torch.hub does."""
    urllib.request.urlopen("https://weights.invalid/file.pth", timeout=5)


class Metric(torch.nn.Module):
    def __init__(self, name, as_loss):
        super().__init__()
        self.name, self.as_loss = name, as_loss
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, target, ref=None):
        assert (ref is not None) == (DEFAULT_CONFIGS[self.name]["metric_mode"] == "FR")
        with torch.set_grad_enabled(self.as_loss):
            return self.weight * getattr(self, self.name)(target, ref)

    def mean(self, target, ref):
        return target.mean(dim=(1, 2, 3))[:, None]  # (B, 1), as some of pyiqa's are

    def error(self, target, ref):
        return (target - ref).square().mean(dim=(1, 2, 3))

    def ssim(self, target, ref):
        """SSIM of a single window, the whole picture."""
        covariance = ((target - target.mean((2, 3), True)) * (ref - ref.mean((2, 3), True))).mean((2, 3))
        means, variances = (target.mean((2, 3)), ref.mean((2, 3))), (target.var((2, 3)), ref.var((2, 3)))
        light = (2 * means[0] * means[1] + 1e-4) / (means[0].square() + means[1].square() + 1e-4)
        return (light * (2 * covariance + 9e-4) / (sum(variances) + 9e-4)).mean(dim=1)

    def topiq_nr(self, target, ref):
        return target.std(dim=(1, 2, 3))  # the contrast, in place of a network

    def rounded(self, target, ref):
        return (target * 255).round().mean(dim=(1, 2, 3)) / 255

    def detached(self, target, ref):
        return target.detach().mean(dim=(1, 2, 3))

    def crops(self, target, ref):
        top, left = np.random.randint(0, target.shape[2] - 4), torch.randint(0, target.shape[3] - 4, ()).item()
        return target[..., top : top + 4, left : left + 4].mean(dim=(1, 2, 3))

    def not_here_later(self, target, ref):
        fetch()


def create_metric(metric_name, as_loss=False, device=None, loss_reduction="mean"):
    assert loss_reduction == "none"
    if metric_name == "not_here":
        fetch()
    if metric_name == "broken":
        raise KeyError("No object named 'Broken' found in 'arch' registry!")
    return Metric(metric_name, as_loss).to(device)
