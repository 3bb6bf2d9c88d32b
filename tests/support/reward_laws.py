"""What holds of every reward with a gradient, whichever network it judges by."""

import torch
from comfyui_dno.core.scoring import exact, score


def check_gradient(reward, images, direction, step=1e-6, prompts=None, rtol=1e-4, atol=1e-9):
    """Compare the gradient along a direction with the difference of two scores, in float64; return the gradient.

    Args:
        reward: whose networks are in float64.
        images: one picture, (1, 3, H, W), within [0, 1]: outside, the gradient is on purpose that of no clamping.
        direction: (1, 3, H, W).
        step: along it.
    """
    _, gradient = exact(reward, images, prompts)
    above, below = (score(reward, images + sign * step * direction, prompts) for sign in (1, -1))
    torch.testing.assert_close((gradient * direction).sum(), ((above - below) / (2 * step))[0], rtol=rtol, atol=atol)
    return gradient


def gained_by_ten_steps(reward, images, lr=0.01, prompts=None):
    """Return what ten steps of Adam on the pixels themselves raise the scores by, (B,)."""
    images = images.requires_grad_()
    optimizer = torch.optim.Adam([images], lr=lr, maximize=True)
    before = score(reward, images, prompts)
    for _ in range(10):
        optimizer.zero_grad()
        reward(images, prompts).sum().backward()
        optimizer.step()
    return score(reward, images, prompts) - before
