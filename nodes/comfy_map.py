"""ComfyUI's sampling as a `core.SampleMap`: what a guider hands to a sampler, put together as core wants it.

ComfyUI does what it does for every sampler: it loads and patches the model, prepares conditionings, ControlNets, masks
and hooks, then calls `OptimizedSampler.sample` (`search.py`). Everything here happens inside that call. One noise
tensor's way there, and its gradient's way back:

    DNOSampler.execute              x_T by `comfy.sample.prepare_noise`, the settings as an `Optimization`
    OptimizedSampler.sample         called by the guider: out of inference mode, models loaded, a `ComfyRun` made
    Optimization.search             the SampleMap by `ComfyRun.sample_map`; w_1, w_2, .. by `ComfyRun.first_noise`
    core.optimize                   the loop; each step of the solver asks `Problem.trial` or `Problem.candidates`
    SampleMap.pullback              forward, through the three below
      ComfyRun.start                x at the first sigma, with the img2img latent
      ComfyRun.denoise              the guider's network calls, once a step; w_i enters after each (`sde_step`)
      decode_raw                    the picture, which the reward scores (`exact`: and d score / d picture, if accepted)
    Pullback.__call__               back: decode_raw's VJP, each step's by `ComfyRun.denoise` again, start's
    TrustAscent.step                the Noise of gradients turns the noise; around again
    found                           the best's latent, picture, noise and history are the node's outputs
"""

from dataclasses import dataclass, field
from functools import partial

import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import comfy.utils
import torch

from .. import core
from ..core.precision import repeatable
from . import patches
from .stock_samplers import StockSampler
from .weights import Renewal


def stays():
    """Load nothing: it is in memory."""


@dataclass
class ComfyRun:
    """What ComfyUI hands to a sampler, as the pieces of a `core.SampleMap`.

    Attributes:
        guider: the comfy guider, callable as (x, sigma, model_options=, seed=) -> denoised.
        sigmas: (T + 1,).
        noise: (B, C, H, W), unit variance, x_T of the seed, until `Optimization.search` sets it to what the kept part
            of an inpainting is noised with.
        latent_image: (B, C, H, W) in the model's own scale.
        denoise_mask: (B, C, H, W), 1 where the picture is made anew; or None.
        model_options: for the guider.
        seed: for the guider.
        expect_gradient: told before each call whether its result must have a gradient.
        load: called before each run, to load the guider's models.
        to_keyframes: told each call's sigma first, to set the keyframes of the prompts' hooks.
        repeats: whether a noise must sample to the same latent each time, whatever a patch draws; plain sampling need
            not, and gives what KSampler gives.
        renewal: runs the guider where it is differentiated.
        stock: the sampler in place of the map's own steps, a `StockSampler`; None: `core.sde_step`.
        load_again: called before each call, where a reward is asked between calls and may have moved the models out.
        decoder_blocks: the `core.Blocks` of the VAE, or None.
        resident: the `Residency` of its search, or None.
        stages: the `graph_sizes.Stages` of its search, or None.
    """

    guider: object
    sigmas: torch.Tensor
    noise: torch.Tensor
    latent_image: torch.Tensor
    denoise_mask: torch.Tensor | None
    model_options: dict
    seed: int
    expect_gradient: object = staticmethod(lambda expect: None)
    load: object = staticmethod(stays)
    to_keyframes: object = staticmethod(lambda sigma: None)
    repeats: bool = True
    renewal: Renewal = field(default_factory=Renewal)
    stock: StockSampler | None = None
    load_again: object = staticmethod(stays)
    decoder_blocks: core.Blocks | None = None
    resident: object = None
    stages: object = None

    @property
    def model_sampling(self):
        return self.guider.inner_model.model_sampling

    @property
    def schedule(self):
        """The sigmas with the family and factor of noise of ComfyUI's own `euler_ancestral` for this model."""
        flow = isinstance(self.model_sampling, comfy.model_sampling.CONST)
        if flow and self.sigmas[0] > 1:
            raise ValueError(
                f"the noise levels of this flow model reach {float(self.sigmas[0]):.3g}; expected at most 1. Models"
                " that turn a picture into another without noise (FlowRVS) leave nothing to search: use KSampler"
            )
        s_noise = getattr(self.model_sampling, "noise_scale", 1.0) if flow else 1.0
        return core.Schedule(self.sigmas.tolist(), "flow_rf" if flow else "vp", s_noise)

    def start(self, noise):
        """Return x at the first sigma, as `KSAMPLER.sample` begins; step caches begin anew with every run."""
        self.load()
        self.model_options = patches.with_empty_cache(self.model_options, self.model_sampling)
        most = comfy.samplers.Sampler().max_denoise(self.guider, self.sigmas)
        return self.model_sampling.noise_scaling(self.sigmas[0], noise, self._rows(self.latent_image, noise), most)

    def denoise(self, x, sigma):
        """Return the guider's denoised, with the kept part of an inpainting put in as `KSamplerX0Inpaint` does."""
        return self._denoised(x, sigma, self.model_options)

    def denoise_twice(self, x, sigma):
        """Return denoised, and behind it in as many channels the guider's unconditional result."""
        found = []

        def keep(results):
            found[:] = [results["uncond_denoised"]]
            return results["denoised"]

        options = comfy.model_patcher.set_model_options_post_cfg_function(
            dict(self.model_options), keep, disable_cfg1_optimization=True
        )
        return torch.cat([self._denoised(x, sigma, options), *found], dim=1)

    def unguided(self, x, sigma):
        """Return denoised by the guider's positive conditioning alone, and by its negative, None where it has none.

        What the guider makes of the two, and what patches make of that, is left out; what belongs to a conditioning (a
        ControlNet, an area, hooks) or changes the model itself is not.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.expect_gradient(x.requires_grad and torch.is_grad_enabled())
        self.load()
        self.load_again()
        self.to_keyframes(sigma)
        guider = self.guider
        conds = [guider.conds[name] for name in ("positive", "negative") if guider.conds.get(name)]
        options = patches.with_empty_cache(self.model_options, self.model_sampling)
        ask = partial(comfy.samplers.calc_cond_batch, guider.inner_model, conds)
        with repeatable(x.device, ("patches of the model", float(sigma[0]))):
            found = self.renewal(ask, x, sigma, options)
        return found[0], found[1] if len(found) > 1 else None

    def _denoised(self, x, sigma, model_options):
        self.expect_gradient(x.requires_grad and torch.is_grad_enabled())
        self.load_again()
        self.to_keyframes(sigma)
        model = comfy.samplers.KSamplerX0Inpaint(self.guider, self.sigmas)
        model.latent_image, model.noise = self._rows(self.latent_image, x), self._rows(self.noise, x)
        mask = self._rows(self.denoise_mask, x)
        # Only then is sigma read, which makes the host wait for the device.
        key = ("patches of the model", float(sigma[0])) if self.repeats else None
        with repeatable(x.device, key):
            return self.renewal(partial(model, model_options=model_options, seed=self.seed), x, sigma, mask)

    def halfway(self):
        """Return a sample such as the model may meet in the middle of the schedule, and its noise level."""
        sigma = self.sigmas[len(self.sigmas) // 2 - 1].to(self.noise)
        with torch.no_grad():
            return self.start(self.noise) * (sigma / self.sigmas[0]), sigma

    def finish(self, x):
        return self.model_sampling.inverse_noise_scaling(self.sigmas[-1], x)

    @property
    def networks(self):
        """What a call runs: the model, and what its prompts bring along, such as ControlNets."""
        patchers = [self.guider.model_patcher, *getattr(self.guider, "loaded_models", ())]
        return [patcher.model for patcher in patchers]

    def sample_map(self, eta, decode=None, **settings):
        settings |= {
            "blocks": core.Blocks(self.networks, self.renewal), "decoder_blocks": self.decoder_blocks,
            "free_memory": partial(comfy.model_management.get_free_memory, self.guider.model_patcher.load_device),
            "start": self.start, "decode": decode, "mask": self.denoise_mask,
            "model": core.fingerprint(self.guider.inner_model.diffusion_model),
            # What is left noisy is not for the reward's eyes.
            "judge_denoised": bool(self.sigmas[-1] > 0),
            "unguided": self.unguided if getattr(self.guider, "conds", {}).get("positive") else None,
        }  # fmt: skip
        shape = tuple(self.noise.shape)
        if self.stock is None:
            return core.SampleMap(self.denoise, self.schedule, shape, eta, finish=self.finish, **settings)
        denoise = self.denoise_twice if self.stock.asks_for_uncond else self.denoise
        return core.SamplerMap(
            denoise, self.schedule, shape, **settings, sampler=self.stock, traits=self.stock.traits,
            sampler_settings=self.stock.settings,
        )  # fmt: skip

    def first_noise(self, injected, settings):
        """Return iteration 0's noise: x_T as the guider got it, the rest as the stock sampler draws them on a CPU."""
        kept = None
        if self.stock is None:
            drawn = core.Noise.randn(self.noise.shape, injected, self.seed).injected
        else:
            drawn, kept = self.stock.first_noises(self.noise.shape), self.stock.first_kept(self.noise)
        return core.Noise(self.noise.float(), drawn.to(self.noise.device), settings, kept)

    @staticmethod
    def _rows(tensor, x):
        """Repeat a batch for candidates: x has q * B rows, candidate-major."""
        if tensor is None or tensor.shape[0] == x.shape[0]:
            return tensor
        return comfy.utils.repeat_to_batch_size(tensor, x.shape[0])


@dataclass(frozen=True)
class Guide:
    """A VAE that decodes for a solver's guidance alone, in the place of core's `guide_decode` until a run makes it one.

    Attributes:
        vae: the comfy VAE.
    """

    vae: object


def decode_raw(vae, autoencoder, model, load, every, latent):
    """Decode a latent in the model's scale to images in [0, 1], not clamped, differentiable.

    `VAE.decode` is the same but for the clamp; it falls back to an undifferentiable tiled decode when memory is short.

    Args:
        vae: the comfy VAE.
        autoencoder: its network.
        model: the comfy model that the latent is of.
        load: called first, to load the VAE.
        every: of a video, each how many frames one is kept.
        latent: (B, C, H, W), or (B, C, F, H, W) of a video model.

    Returns:
        (B, 3, H, W), or of a video of several frames (B, F, 3, H, W).
    """
    load()
    latent = seen_by(vae, model.process_latent_out(latent.float()))
    # Some decoders draw noise of their own (LTX).
    with repeatable(vae.device, ("decoder",)):
        raw = autoencoder.decode(latent.to(device=vae.device, dtype=vae.vae_dtype)).float()
    if raw.ndim == 5:
        raw = raw[:, :, 0] if raw.shape[2] == 1 else raw[:, :, ::every].movedim(2, 1)
    if _clamps(vae.process_output, raw):
        return (raw + 1) / 2
    # Straight through: the values of process_output, the gradient of the identity. The clone is for 0.33: it works in
    # place.
    return raw + (vae.process_output(raw.detach().clone()) - raw.detach())


def seen_by(vae, latent):
    """Return a latent as the VAE decodes it: a VAE of pictures sees the one frame of a video model's latent."""
    return latent[:, :, 0] if latent.ndim == 5 and getattr(vae, "latent_dim", 2) == 2 else latent


def _clamps(process_output, raw):
    probe = torch.tensor([-3.0, 0.5, 3.0], device=raw.device)
    return torch.equal(process_output(probe.clone()), ((probe + 1) / 2).clamp(0, 1))
