"""Stock sampling, with the injected noises taken from a DNO_NOISE instead of the sampler's own generator."""

import comfy.sample
import comfy.samplers


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


NODES = (DNOTestStockSampler,)
