"""Stock sampling, with the injected noises taken from a DNO_NOISE instead of the sampler's own generator."""

from unittest import mock

import comfy.sample
import comfy.samplers
import torch
from comfy.k_diffusion import sampling as k_sampling


class DNOTestStockSampler:
    """KSampler, but it starts from the initial noise of `noise`, and its noise_sampler returns the injected ones."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL",),
                "seed": ("INT", {"default": 0, "max": 0xFFFFFFFFFFFFFFFF}),
                "steps": ("INT", {"default": 6}),
                "cfg": ("FLOAT", {"default": 8.0}),
                "sampler_name": (comfy.samplers.KSampler.SAMPLERS,),
                "scheduler": (comfy.samplers.KSampler.SCHEDULERS,),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "denoise": ("FLOAT", {"default": 1.0}),
                "eta": ("FLOAT", {"default": 1.0}),
                "noise": ("DNO_NOISE",),
            }
        }

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "sample"
    CATEGORY = "tests"

    def sample(
        self, model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise, eta, noise
    ):
        sigmas = comfy.samplers.KSampler(model, steps, model.load_device, sampler_name, scheduler, denoise).sigmas
        injected = iter(noise.injected.clone())
        options = {"eta": eta, "noise_sampler": lambda sigma, sigma_next: next(injected)}
        sampler = comfy.samplers.ksampler(sampler_name, options)
        samples = comfy.sample.sample_custom(
            model, noise.initial.clone(), cfg, sampler, sigmas, positive, negative, latent_image["samples"],
            noise_mask=latent_image.get("noise_mask"), disable_pbar=True, seed=seed,
        )  # fmt: skip
        return ({**latent_image, "samples": samples},)


def newer_noise_sampler(x, seed=None):
    """As ComfyUI 0.33 draws on a CPU; 0.3.75 begins with x_T again."""
    generator = torch.Generator().manual_seed(seed + 1)
    return lambda sigma, sigma_next: torch.randn(x.size(), dtype=x.dtype, generator=generator)


class WithNewerNoise(comfy.samplers.Sampler):
    def __init__(self, stock):
        self.stock = stock

    def sample(self, model_wrap, sigmas, *args, **kwargs):
        with mock.patch.object(k_sampling, "default_noise_sampler", newer_noise_sampler):
            # uni_pc sets the last of them to 0.001, for all nodes that have the same.
            return self.stock.sample(model_wrap, sigmas.clone(), *args, **kwargs)


class DNOTestNewerNoise:
    """A stock SAMPLER with the injected noises that newer ComfyUIs draw."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"sampler": ("SAMPLER",)}}

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "wrap"
    CATEGORY = "tests"

    def wrap(self, sampler):
        return (WithNewerNoise(sampler),)


NODES = (DNOTestStockSampler, DNOTestNewerNoise)
