"""The contract of a reward, and the ways to ask one: `score` without gradient, `exact` with.

    reward(images, prompts) -> scores

images are (B, 3, H, W) RGB, nominally [0, 1] and not clamped; prompts is a list of B strings or None; scores are (B,),
each of its own picture. Any callable of this form is a reward. It judges a video, (B, F, 3, H, W), frame by frame: the
score is the mean over the F frames, and memory is that of one. What a reward may have besides:

    name             what histories and messages call it, else its __name__ or its class's
    differentiable   False where the scores carry no gradient; True is assumed
    stand_in         words for messages: what to take in its place where a gradient is needed
    image_gradient   (images, prompts) -> scores, d_images: `exact` by its own means, such as one part after another
    counted          the parts that `image_gradient` differentiates, to be named where one cannot be
    part_scores      (images, prompts) -> name -> (B,), each part's own, for the history
    remarks          (images) -> sentences, what the user should know of the pictures that a search has found
    part_settings    name -> JSON types, what each part counts, for the history
    of_latents       True where it judges the latents (B, ..) instead of their pictures; it can only be watched

A reward gets a copy of the pictures, which it may change. It is not asked about a picture with a NaN or an infinity in
it, which it might not notice: such a picture's score is -inf, and its gradient 0.
"""

from itertools import count

import torch

from .limits import Stopped
from .memory import is_out_of_memory
from .precision import outside_autocast, wide
from .words import first_line

INTERRUPTION = "InterruptProcessingException"
"""What ComfyUI's interruption is called: the core does not know its class."""


class NotFiniteError(ValueError):
    """A picture, its reward or a gradient is NaN or infinite."""


class RewardError(RuntimeError):
    """A reward raised an error; the message names it, the cause is chained."""


class RefusedByRewardError(RewardError, ValueError):
    """A reward raised a ValueError, whose message speaks for itself: this one's is the same; the cause is chained.

    Attributes:
        reward: its name.
    """

    def __init__(self, text, reward=""):
        super().__init__(text)
        self.reward = reward


class LostGradientError(RewardError):
    """A reward's scores do not depend on the pictures for autograd: no search along its gradient can begin."""


def score(reward, images, prompts=None):
    """Return reward(images, prompts) without gradient, checked: (B,) float32 or wider on the images' device.

    The score of a picture that is not finite is -inf.
    """
    if is_video(images) and not judges_latents(reward):
        return torch.stack([score(reward, frame, prompts) for frame in images.unbind(1)]).mean(dim=0)
    finite = finite_pictures(images)
    with torch.no_grad():
        scores = checked(reward, asked(reward, reward, shown(images, finite), prompts), images)
        return torch.where(finite, scores, -torch.inf)


def part_scores(reward, images, prompts=None):
    """Return name -> (B,), the scores of a reward's parts, where it has a method `part_scores`; else {}."""
    if not callable(getattr(reward, "part_scores", None)):
        return {}
    if not is_video(images) or judges_latents(reward):
        return asked(reward, reward.part_scores, images, prompts)
    frames = [asked(reward, reward.part_scores, frame, prompts) for frame in images.unbind(1)]
    return {name: torch.stack([frame[name] for frame in frames]).mean(dim=0) for name in frames[0]}


def remarks(reward, images):
    """Return the sentences that a reward, where it has a method `remarks`, has to say of pictures, each once."""
    if not callable(getattr(reward, "remarks", None)):
        return []
    frames = images.unbind(1) if is_video(images) else [images]
    return list(dict.fromkeys(sentence for frame in frames for sentence in reward.remarks(frame)))


def judges_latents(reward):
    """Whether what is watched asks for the latents, (B, C, H, W) or (B, C, F, H, W), instead of their pictures."""
    return getattr(reward, "of_latents", False)


def is_video(images):
    """Whether images are videos, (B, F, 3, H, W), and not pictures, (B, 3, H, W)."""
    return images.ndim == 5


def finite_pictures(images):
    """Return (B,) booleans: which of the pictures (B, ..) are finite."""
    return images.isfinite().flatten(1).all(dim=1)


def shown(images, finite):
    """Return a copy of the images (B, ..), black where they are not `finite` (B,)."""
    return torch.where(finite.view(-1, *[1] * (images.ndim - 1)), images.detach(), 0.0)


def asked(reward, function, *args):
    """Return function(*args) of a reward; what it raises becomes a RewardError, which says which reward it was.

    Rewards of others can raise anything, and a search that one of them ends keeps what it has found. Passed on as they
    are: out of memory; a RewardError and a NotFiniteError of a part; a FileNotFoundError, which names the file; what
    interrupts, `Stopped` and ComfyUI's InterruptProcessingException, an Exception in its older versions.

    Args:
        reward: whose name the message has.
        function: the reward itself, or a method of it.
        args: for it.
    """
    try:
        return function(*args)
    except Exception as error:
        says_it = (RewardError, NotFiniteError, FileNotFoundError, Stopped)
        interrupts = any(kind.__name__ == INTERRUPTION for kind in type(error).__mro__)
        if is_out_of_memory(error) or isinstance(error, says_it) or interrupts:
            raise
        if isinstance(error, ValueError) and str(error):
            raise RefusedByRewardError(str(error), name_of(reward)) from error
        raise RewardError(f"the reward {name_of(reward)} failed: {type(error).__name__}: {error}") from error


def why_failed(error):
    """Return in one line which reward has failed, and why."""
    name = getattr(error, "reward", "")
    return first_line(error) if not name or name in str(error) else f"the reward {name} failed: {first_line(error)}"


def exact(reward, images, prompts=None):
    """Score the images and differentiate the scores by autograd, also when called in inference mode.

    Args:
        reward: a reward whose `differentiable` is true.
        images: (B, 3, H, W), or of videos (B, F, 3, H, W).
        prompts: length B or None.

    Returns:
        scores: (B,), detached; -inf of a picture that is not finite.
        d_images: the shape of images, each picture's own gradient, float32 or wider; 0 for one that is not finite.

    Raises:
        ValueError: the reward declares that it is not differentiable, or returns the wrong shape.
        RewardError: the reward raised an error of its own, or returned scores without gradient.
    """
    require_differentiable(reward)
    finite = finite_pictures(images)
    if is_video(images):
        found = [exact(reward, frame, prompts) for frame in images.unbind(1)]
        d_images = torch.stack([gradient for _, gradient in found], dim=1) / len(found)
        return torch.stack([scores for scores, _ in found]).mean(dim=0), shown(d_images, finite)
    by_own_means = callable(getattr(reward, "image_gradient", None))
    with torch.inference_mode(False), torch.enable_grad():
        ask = _own_gradient if by_own_means else _gradient_by_autograd
        scores, d_images = ask(reward, shown(images, finite), prompts)
    scores = torch.where(finite, scores.detach(), -torch.inf)
    return scores, shown(d_images, finite)


def _own_gradient(reward, images, prompts):
    """Return the scores and the gradient that a reward's `image_gradient` gives, checked."""
    scores, d_images = asked(reward, reward.image_gradient, images, prompts)
    if not torch.is_tensor(d_images) or d_images.shape != images.shape:
        found = tuple(d_images.shape) if torch.is_tensor(d_images) else type(d_images).__name__
        told = f"{name_of(reward)}'s image_gradient gave {found}; expected {tuple(images.shape)}"
        raise RefusedByRewardError(told, name_of(reward))
    return checked(reward, scores, images), wide(d_images.detach())


def _gradient_by_autograd(reward, images, prompts):
    """Return a reward's scores and their gradient by the images."""
    images = leaf(images)
    # Of a copy: a reward may change its pictures in place, which no leaf of a graph allows.
    scores = checked(reward, asked(reward, reward, images.clone(), prompts), images)
    if not scores.requires_grad:
        raise LostGradientError(
            f"{name_of(reward)} lost the gradient: its scores do not depend on the images for autograd. It must not"
            " detach, round or convert them, or enter no_grad or inference_mode"
        )
    with outside_autocast(images.device.type):  # it would round the gradients of a float32 graph too
        (d_images,) = asked(reward, torch.autograd.grad, scores, images, torch.ones_like(scores))
    return scores, d_images


def leaf(images):
    """Return a copy to differentiate by: no inference tensor; float32 or wider, since half loses small gradients."""
    return wide(images.detach()).clone().requires_grad_()


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
        raise RefusedByRewardError(f"{name_of(reward)} returned {found}; expected {expected}", name_of(reward))
    return wide(scores.to(images.device))


def require_differentiable(reward):
    """Raise ValueError, naming the reward or the part of it, unless all that counts is differentiable."""
    if getattr(reward, "differentiable", True):
        return
    for part in getattr(reward, "counted", ()):
        require_differentiable(part)
    stand_in = getattr(reward, "stand_in", None)
    raise ValueError(
        f"{name_of(reward)} is not differentiable, but this solver needs its gradient."
        f" {f'Take {stand_in}, or use' if stand_in else 'Use'} a solver that needs none:"
        " Zeroth-Order (Hybrid-1, Hybrid-2 or ZO-SGD), ZeNO or Search"
    )
