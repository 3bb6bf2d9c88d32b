"""Small analytic and random denoisers with known answers."""

import torch
from comfyui_dno import core


class TinyDenoiser(torch.nn.Module):
    """A smooth random network x, sigma -> denoised, float64, conditioned on the noise level."""

    def __init__(self, channels=3, hidden=8, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.inner = torch.nn.Conv2d(channels, hidden, 3, padding=1)
        self.outer = torch.nn.Conv2d(hidden, channels, 3, padding=1)
        self.double().requires_grad_(False)

    def forward(self, x, sigma):
        sigma = sigma.view(-1, 1, 1, 1)
        return self.outer(torch.tanh(self.inner(x / (1 + sigma)) + sigma.log())) * 1.5


def guided(denoise, negative, cfg=3.0):
    """Classifier-free guidance of two denoisers."""
    return lambda x, sigma: negative(x, sigma) + cfg * (denoise(x, sigma) - negative(x, sigma))


def decode(latent):
    """A smooth three-channel decoder that doubles the size."""
    return torch.tanh(torch.nn.functional.interpolate(latent, scale_factor=2, mode="nearest")) * 0.6 + 0.5


SIGMAS = {
    "vp": (8.0, 3.0, 1.2, 0.5, 0.0),
    "flow": (1.0, 0.8, 0.55, 0.25, 0.0),
    "flow_rf": (1.0, 0.8, 0.55, 0.25, 0.0),
}


def sample_map(family="vp", eta=1.0, batch=2, cfg=None, **settings):
    """A SampleMap of a tiny random network in float64, (batch, 3, 6, 6)."""
    denoise = TinyDenoiser()
    denoise = guided(denoise, TinyDenoiser(seed=1), cfg) if cfg else denoise
    schedule = core.Schedule(SIGMAS[family], family)
    return core.SampleMap(denoise, schedule, (batch, 3, 6, 6), eta=eta, decode=decode, **settings)
