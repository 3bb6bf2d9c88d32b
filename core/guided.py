"""Gradients in the middle of a sampling run, of the picture that one step promises: what LGD and Tilt go by.

    x --denoise--> denoised --decode--> images --reward--> scores
    d scores / d images --decode's VJP--> d denoised --the step's VJP--> d x

A `Pullback` has one stage's graph at a time, since it comes back to each. Here the step's graph waits while the decoder
and the reward go back, so the two are one stage to the `Plan`, `GUIDED`: whole where both fit together, and where they
do not, or memory runs out, both block by block. The step is never run again for its gradient.
"""

from functools import partial

import torch

from .memory import DECODER, GUIDED, STEP
from .sample_map import LOST_GRADIENT, vjp


def guidance(sample_map, x, index, by_images, around=None, decode=None, of_model=True):
    """Return the denoised of a step, and the gradient of what its picture is judged by.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> x = sample_map.start(sample_map.randn(seed=0).initial)
        >>> denoised, gradient = guidance(sample_map, x, 0, by_images=torch.ones_like)  # of the sum of all pixels
        >>> torch.equal(denoised, x / 2), gradient.unique()
        (True, tensor([0.5000]))

    Args:
        sample_map: a SampleMap that takes its steps itself.
        x: (B, ..), the sample at step `index`.
        by_images: images (n B, ..), candidate-major, without graph -> the gradient by them, of that shape.
        around: (n, B, ..), what is added to the denoised before it is decoded; None: it is decoded once, as it is.
        decode: latent -> images; None: the map's.
        of_model: whether the gradient is by x, back through the model; else by the denoised, and the model is only run.

    Returns:
        denoised: (B, ..), without graph.
        gradient: (B, ..), the sum over candidates.
    """
    plan, stage = sample_map.plan, GUIDED if of_model else DECODER
    step = partial(_denoised, sample_map, x, index, of_model)
    decoded = partial(_decoded, sample_map, around, decode or sample_map.decode)
    if plan.counts(stage):
        _count(plan, step, decoded, of_model)

    def gradient():
        with plan.graph(stage):
            x, denoised = step()
            guesses, images = decoded(denoised)
        back = vjp(images, guesses, by_images(images.detach()))
        back = back.unflatten(0, (-1, len(denoised))).sum(dim=0)
        return denoised.detach(), vjp(denoised, x, back) if of_model else back

    found = plan.retried(lambda: sample_map.in_place.differentiate("guided step", gradient), lambda: None, stage)
    if plan.unlike():
        return guidance(sample_map, x, index, by_images, around, decode, of_model)
    return found


def _count(plan, step, decoded, of_model):
    """Let the plan know what autograd would keep of the step and of the decoder, and decide by both together."""
    denoised = plan.counted(STEP, step)[1] if of_model else step()[1]
    plan.counted(DECODER, partial(decoded, denoised))
    if of_model:
        plan.note(GUIDED, plan.sizes[STEP].beside(plan.sizes[DECODER]))


def _denoised(sample_map, x, index, of_model):
    """Return x as a leaf of autograd's graph, and the denoised that depends on it; without graph if not `of_model`."""
    x = x.detach().requires_grad_(of_model)
    with torch.set_grad_enabled(of_model):
        denoised = sample_map.denoise(x, x.new_full((len(x),), sample_map.schedule.sigmas[index]))
    if of_model and not denoised.requires_grad:
        raise RuntimeError(LOST_GRADIENT.format(stage=f"model (step {index + 1} of {sample_map.schedule.steps})"))
    return x, denoised


def _decoded(sample_map, around, decode, denoised):
    """Return what is decoded, (n B, ..), as a leaf of a graph of its own, and its images."""
    guesses = denoised.detach() if around is None else (denoised.detach() + around).flatten(0, 1)
    guesses = guesses.detach().requires_grad_()
    with torch.enable_grad():
        images = decode(sample_map.to_latent(guesses))
    if not images.requires_grad:
        raise RuntimeError(LOST_GRADIENT.format(stage="decoder"))
    return guesses, images
