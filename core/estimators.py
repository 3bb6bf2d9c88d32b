"""Where d score / d images comes from. The exact one differentiates the reward; the pullback does not care."""

import torch


def score(reward, images, prompts=None):
    """Return reward(images, prompts) without gradient, checked: (B,) float32 or wider on the images' device."""
    with torch.no_grad():
        return _checked(reward, reward(images.detach(), prompts), images)


def exact(reward, images, prompts=None):
    """Score the images and differentiate the scores by autograd.

    Args:
        reward: a reward whose `differentiable` is true.
        images: (B, 3, H, W).
        prompts: length B or None.

    Returns:
        scores: (B,), detached.
        d_images: (B, 3, H, W), each picture's own gradient.

    Raises:
        ValueError: the reward declares that it is not differentiable, or returns the wrong shape.
        RuntimeError: the reward returned scores without gradient.
    """
    if not getattr(reward, "differentiable", True):
        raise ValueError(f"{name_of(reward)} is not differentiable; a gradient solver needs a reward that is")
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        scores = _checked(reward, reward(images, prompts), images)
    if not scores.requires_grad:
        raise RuntimeError(
            f"{name_of(reward)} lost the gradient: its scores do not depend on the images for autograd. It must not"
            " detach, round or convert them, and must run outside no_grad and inference_mode"
        )
    (d_images,) = torch.autograd.grad(scores, images, torch.ones_like(scores))
    return scores.detach(), d_images


def name_of(reward):
    """Return what histories and messages call a reward: its `name`, or its class's or function's."""
    return getattr(reward, "name", None) or getattr(reward, "__name__", None) or type(reward).__name__


def _checked(reward, scores, images):
    if not torch.is_tensor(scores) or scores.shape != images.shape[:1]:
        found = tuple(scores.shape) if torch.is_tensor(scores) else type(scores).__name__
        expected = f"one score per picture, a tensor of shape ({len(images)},)"
        raise ValueError(f"{name_of(reward)} returned {found}; expected {expected}")
    return scores if scores.dtype == torch.float64 else scores.float()
