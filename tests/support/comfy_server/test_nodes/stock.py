"""Stock sampling, with the injected noises taken from a DNO_NOISE instead of the sampler's own generator."""

import functools
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


def euler(model, x, sigmas, **given):
    """Not ComfyUI's sampler of this name."""
    return k_sampling.sample_heun(model, x, sigmas, **given)


@functools.wraps(k_sampling.sample_euler)
def like_euler(model, x, sigmas, *args, **given):
    return k_sampling.sample_heun(model, x, sigmas, *args, **given)


def through_a_module(model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None):
    return k_sampling.sample_dpmpp_sde(model, x, sigmas, extra_args, callback, disable, noise_sampler=noise_sampler)


class AsAnObject:
    def __call__(self, model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None):
        return through_a_module(model, x, sigmas, extra_args, callback, disable, noise_sampler)


def hides_its_noises(model, x, sigmas, **given):
    return k_sampling.sample_dpmpp_sde(model, x, sigmas, **given)


def with_a_cfg_function(model, x, sigmas, extra_args=None, **given):
    options = {**extra_args["model_options"], "sampler_cfg_function": lambda args: args["uncond"]}
    return k_sampling.sample_euler(model, x, sigmas, {**extra_args, "model_options": options}, **given)


def with_an_option_in_place(model, x, sigmas, extra_args=None, **given):
    extra_args["model_options"]["transformer_options"]["mine"] = 1
    return k_sampling.sample_euler(model, x, sigmas, extra_args, **given)


def with_other_hooks_only(model, x, sigmas, extra_args=None, **given):
    options = {**extra_args["model_options"], "sampler_post_cfg_function": []}
    return k_sampling.sample_euler(model, x, sigmas, {**extra_args, "model_options": options}, **given)


def without_a_word(model, x, sigmas, callback=None, **given):
    return k_sampling.sample_euler(model, x, sigmas, **given)


def with_an_option(model, x, sigmas, extra_args=None, callback=None, disable=None, scale=None):
    return k_sampling.sample_euler(model, x, sigmas, extra_args, callback, disable)


def unfinished():
    """Return a function that holds a variable which has no value yet."""

    def scale():
        return later

    if scale is None:
        later = 1.0
    return scale


ODD = {
    "euler": euler, "like euler": like_euler, "module": through_a_module, "object": AsAnObject(),
    "partial": functools.partial(k_sampling.sample_dpmpp_sde, r=0.4), "hides": hides_its_noises,
    "cfg function": with_a_cfg_function, "in place": with_an_option_in_place, "hooks": with_other_hooks_only,
    "no callback": without_a_word, "unfinished": functools.partial(with_an_option, scale=unfinished()),
}  # fmt: skip


class DNOTestOddSampler:
    """A SAMPLER of another pack."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": (list(ODD),)}}

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self, kind):
        return (comfy.samplers.KSAMPLER(ODD[kind]),)


class DNOTestKeptBySampler:
    """What hangs on a SAMPLER after `latent` was sampled with it."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"sampler": ("SAMPLER",), "latent": ("LATENT",)}}

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "tell"
    CATEGORY = "tests"

    def tell(self, sampler, latent):
        return {"ui": {"kept": [], "attributes": sorted(key for key, value in vars(sampler).items() if value)}}


NODES = (DNOTestStockSampler, DNOTestNewerNoise, DNOTestOddSampler, DNOTestKeptBySampler)
