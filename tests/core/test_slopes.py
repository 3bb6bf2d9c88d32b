"""A gradient that is not that of differences is noticed; one that is right never."""

import pytest
import torch
from comfyui_dno.core.in_place import InPlace
from comfyui_dno.core.slopes import refuse_a_wrong_gradient


class Sines(torch.nn.Module):
    """A network whose gradient is known: sin(speed x), of which a part may be detached."""

    def __init__(self, speed=1.0, detached=0):
        super().__init__()
        self.speed, self.detached = speed, detached

    def forward(self, x):
        first, rest = x[:, : self.detached].detach(), x[:, self.detached :]
        return torch.sin(self.speed * torch.cat([first, rest], dim=1))


def check(network):
    """Compare the gradient through denoised = x - network(x) with differences."""
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    refuse_a_wrong_gradient(lambda x, sigma: x - network(x), network, x, torch.ones(2), InPlace())


@pytest.mark.parametrize("network", [Sines(), Sines(speed=1e4), Sines(speed=0.0)], ids=["smooth", "rough", "constant"])
def test_a_right_gradient_is_not_called_wrong(network):
    """Differences tell nothing of a network that is rough at their length, and a constant one has no gradient."""
    check(network)


class Half(torch.nn.Module):
    """Layers in half precision, of whose gradient a part may be missing."""

    def __init__(self, dtype, kept):
        super().__init__()
        torch.manual_seed(0)
        layers = torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64)
        self.layers, self.dtype, self.kept = torch.nn.Sequential(*layers).to(dtype), dtype, kept

    def forward(self, x):
        found = self.layers(x.flatten(2).to(self.dtype))
        return (self.kept * found + (1 - self.kept) * found.detach()).view_as(x).float()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kept", [1.0, 0.5, 0.2])
def test_a_wrong_gradient_is_noticed_in_half_precision_too(dtype, kept):
    if kept == 1:
        check(Half(dtype, kept))
    else:
        with pytest.raises(RuntimeError, match="the gradient through this model is wrong"):
            check(Half(dtype, kept))


@pytest.mark.parametrize("detached", [1, 2, 3, 4])
def test_any_detached_quarter_is_noticed(detached):
    with pytest.raises(RuntimeError, match="the gradient through this model is wrong"):
        check(Sines(detached=detached))
