"""The contract of a reward, and the ways to ask one: `score` without gradient, `exact` with.

    reward(images, prompts) -> scores

images are (B, 3, H, W) RGB, nominally [0, 1] and not clamped; prompts is a list of B strings or None; scores are (B,),
each of its own picture. Any callable of this form is a reward. What it may have besides:

    name             what histories and messages call it, else its __name__ or its class's
    differentiable   False where the scores carry no gradient; True is assumed
    image_gradient   (images, prompts) -> scores, d_images: `exact` by its own means, such as one part after another
    counted          the parts that `image_gradient` differentiates, to be named where one cannot be
    part_scores      (images, prompts) -> name -> (B,), each part's own, for the history
    part_settings    name -> JSON types, what each part counts, for the history
"""

from itertools import count

import torch


class NotFiniteError(ValueError):
    """A reward or a gradient is NaN or infinite."""


def score(reward, images, prompts=None):
    """Return reward(images, prompts) without gradient, checked: (B,) float32 or wider on the images' device."""
    with torch.no_grad():
        return checked(reward, reward(images.detach(), prompts), images)


def exact(reward, images, prompts=None):
    """Score the images and differentiate the scores by autograd, also when called in inference mode.

    Args:
        reward: a reward whose `differentiable` is true.
        images: (B, 3, H, W).
        prompts: length B or None.

    Returns:
        scores: (B,), detached.
        d_images: (B, 3, H, W), each picture's own gradient, float32 or wider.

    Raises:
        ValueError: the reward declares that it is not differentiable, or returns the wrong shape.
        RuntimeError: the reward returned scores without gradient.
    """
    _require_differentiable(reward)
    if callable(getattr(reward, "image_gradient", None)):
        scores, d_images = reward.image_gradient(images, prompts)
        if not torch.is_tensor(d_images) or d_images.shape != images.shape:
            found = tuple(d_images.shape) if torch.is_tensor(d_images) else type(d_images).__name__
            raise ValueError(f"{name_of(reward)}'s image_gradient gave {found}; expected {tuple(images.shape)}")
        d_images = d_images.detach().to(torch.promote_types(d_images.dtype, torch.float32))
        return checked(reward, scores, images).detach(), d_images
    with torch.inference_mode(False), torch.enable_grad():
        images = leaf(images)
        scores = checked(reward, reward(images, prompts), images)
        if not scores.requires_grad:
            raise RuntimeError(
                f"{name_of(reward)} lost the gradient: its scores do not depend on the images for autograd. It must not"
                " detach, round or convert them, or enter no_grad or inference_mode"
            )
        (d_images,) = torch.autograd.grad(scores, images, torch.ones_like(scores))
    return scores.detach(), d_images


def leaf(images):
    """Return a copy to differentiate by: no inference tensor; float32 or wider, since half loses small gradients."""
    return images.detach().to(torch.promote_types(images.dtype, torch.float32), copy=True).requires_grad_()


def name_of(reward):
    """Return what histories and messages call a reward: its `name`, or its class's or function's."""
    return getattr(reward, "name", None) or getattr(reward, "__name__", None) or type(reward).__name__


def numbered(names):
    """Return the names as a list, each once: the second of one name with a 2 behind it, and so on."""
    taken = set(names)
    for index, name in enumerate(names):
        if name in names[:index]:
            free = (f"{name} {n}" for n in count(2))
            names = [*names[:index], next(name for name in free if name not in taken), *names[index + 1 :]]
            taken.add(names[index])
    return names


def checked(reward, scores, images):
    """Return a reward's scores of images (B, ..) as (B,), float32 or wider on their device, or raise ValueError."""
    if not torch.is_tensor(scores) or scores.shape != images.shape[:1]:
        found = tuple(scores.shape) if torch.is_tensor(scores) else type(scores).__name__
        expected = f"one score per picture, a tensor of shape ({len(images)},)"
        raise ValueError(f"{name_of(reward)} returned {found}; expected {expected}")
    return scores.to(images.device, torch.promote_types(scores.dtype, torch.float32))


def _require_differentiable(reward):
    """Raise ValueError, naming the reward or the part of it, unless all that counts is differentiable."""
    if getattr(reward, "differentiable", True):
        return
    for part in getattr(reward, "counted", ()):
        _require_differentiable(part)
    raise ValueError(
        f"{name_of(reward)} is not differentiable, but this solver needs its gradient. Use a solver that needs none:"
        " Zeroth-Order (Hybrid-1, Hybrid-2 or ZO-SGD), ZeNO or Search"
    )
