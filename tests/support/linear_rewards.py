"""A map that gives its noise back, and rewards that are linear in it, with known gains."""

import math

import torch
from comfyui_dno import core


def identity_map(shape, batch=1):
    """M(z) = z: one step of a denoiser that undoes the start."""
    scale = math.sqrt(2)
    return core.SampleMap(lambda x, sigma: x / scale, core.Schedule((1.0, 0.0)), (batch, *shape), eta=0.0)


def linear_reward(n, seed=0):
    direction = torch.randn(n, generator=torch.Generator().manual_seed(1000 + seed))
    direction /= direction.norm()

    def reward(images, prompts):
        return images.flatten(1) @ direction

    reward.differentiable = False
    return reward
