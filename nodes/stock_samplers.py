"""ComfyUI's SAMPLERs as core's `SamplerMap` takes samplers: those of k-diffusion's kind, differentiated as they stand.

What ComfyUI's `KSAMPLER` gives to its function is given here too; only the network's calls and the noises come from
elsewhere. Which noises a function asks for is found out by a trial on a tiny latent (`core.try_sampler`).
"""

import inspect
import json
from dataclasses import dataclass, field

import comfy.samplers
import torch
from comfy.k_diffusion import sampling as k_sampling

from .. import core


@dataclass
class StockSampler:
    """A SAMPLER in one run of a guider: (model, x, sigmas, noise_sampler, callback) -> x.

    Attributes:
        sampler: a `comfy.samplers.KSAMPLER`.
        guider: whose model it samples.
        model_options: for the guider; a sampler may add to them.
        seed: of the run.
        sigmas: (T + 1,), of the run.
        asks_for_uncond: whether it needs the unconditional result too, as those of the CFG++ kind do.
        traits: its `core.SamplerTraits` at these sigmas.

    Raises:
        ValueError: it cannot be searched, and why.
    """

    sampler: comfy.samplers.KSAMPLER
    guider: object
    model_options: dict
    seed: int
    sigmas: torch.Tensor
    asks_for_uncond: bool = field(default=False, init=False)
    traits: core.SamplerTraits = field(init=False)

    def __post_init__(self):
        if getattr(type(self.sampler), "sample", None) is not comfy.samplers.KSAMPLER.sample:
            raise ValueError(
                f"the sampler is {type(self.sampler).__name__}, which samples in a way of its own; expected one of"
                " KSamplerSelect or of the nodes for one sampler each (SamplerDPMPP_2M_SDE ..)"
            )
        brownian = mentions("BrownianTreeNoiseSampler", self.sampler.sampler_function)
        try:
            self.traits = core.try_sampler(self, self.sigmas, brownian, _wavy_twice)
        except core.CannotBeSearchedError as error:
            raise ValueError(f"the sampler {self.name} cannot be searched: {error}") from error

    def __call__(self, model, x, sigmas, noise_sampler, callback):
        function, options = self.sampler.sampler_function, dict(self.sampler.extra_options)
        if "noise_sampler" in inspect.signature(function).parameters:
            options["noise_sampler"] = noise_sampler
        extra_args = {"model_options": dict(self.model_options), "seed": self.seed, "denoise_mask": None}
        asked = _Model(self, sigmas, model)
        x = function(asked, x, sigmas, extra_args=extra_args, callback=callback, disable=True, **options)
        # As KSAMPLER ends, by the sigmas that the function leaves: uni_pc sets the last one to 0.001.
        return self.guider.inner_model.model_sampling.inverse_noise_scaling(sigmas[-1], x)

    def refuse_a_wrong_gradient(self):
        """Raise ValueError where the sampler's gradient must not be used."""
        if self.traits.wrong_gradient:
            raise ValueError(
                f"the sampler {self.name} cannot be searched by its gradient: {self.traits.wrong_gradient}. Use a"
                " solver that needs none (ZeNO, Search, Zeroth-Order's zo-sgd), or another sampler"
            )

    @property
    def name(self):
        """Its name in KSamplerSelect, or that of its function."""
        for name in comfy.samplers.SAMPLER_NAMES:
            stock = comfy.samplers.sampler_object(name)
            if _same_function(stock, self.sampler) and stock.inpaint_options == self.sampler.inpaint_options:
                return name
        function = self.sampler.sampler_function
        return getattr(function, "__qualname__", type(function).__name__)

    @property
    def settings(self):
        """What tells it from other samplers, JSON types, for `core.SamplerMap.sampler_settings`."""
        options = {key: _told(value) for key, value in sorted(self.sampler.extra_options.items())}
        return {"sampler": self.name} | ({"sampler_options": options} if options else {})

    def first_noises(self, shape):
        """Return the noises (L, *shape) that the sampler would draw itself, on the CPU.

        Those without a tree are drawn from seed + 1, as ComfyUI 0.33 does on a CPU.
        """
        traits = self.traits
        if not traits.brownian:
            every = core.Noise.randn(shape, len(traits.intervals), self.seed).injected
            return every[list(traits.audible)]
        levels = self.sigmas[self.sigmas > 0].cpu()
        tree = k_sampling.BrownianTreeNoiseSampler(
            torch.zeros(shape), levels.min(), levels.max(), seed=self.seed, cpu=True
        )
        drawn = [tree(torch.tensor(high), torch.tensor(low)) for high, low in traits.cells]
        return torch.stack(drawn) if drawn else torch.zeros(0, *shape)

    def first_kept(self, noise):
        """Return what ddim noises the kept part of an inpainting with; None: x_T, as all others do."""
        if not self.sampler.inpaint_options.get("random", False):
            return None
        return core.Noise.randn(noise.shape, 0, self.seed + 1).initial.to(noise)


class _Model(comfy.samplers.KSamplerX0Inpaint):
    """What a sampler knows as the model: it looks at it for ComfyUI's, and calls it.

    Samplers of the CFG++ kind ask for the unconditional result by a hook of their own; it then comes behind denoised,
    in as many channels again.
    """

    def __init__(self, stock, sigmas, call):
        super().__init__(stock.guider, sigmas)
        self.stock, self.call = stock, call

    def __call__(self, x, sigma, denoise_mask=None, model_options=None, seed=None):
        hooks = hooks_of(model_options or {})[len(hooks_of(self.stock.model_options)) :]
        self.stock.asks_for_uncond |= bool(hooks)
        denoised, *uncond = self.call(x, sigma).split(x.shape[1], dim=1)
        for hook in hooks:
            denoised = hook({"denoised": denoised, "uncond_denoised": uncond[0]})
        return denoised


def hooks_of(model_options):
    """Return the functions that are told each guided result."""
    return model_options.get("sampler_post_cfg_function", [])


def named(settings):
    """Return the SAMPLER that a noise's settings name.

    Raises:
        ValueError: it is none of this ComfyUI, or has options that no file can hold.
    """
    name, options = settings["sampler"], settings.get("sampler_options", {})
    if name not in comfy.samplers.SAMPLER_NAMES or any(map(_is_told, options.values())):
        raise ValueError(
            f"the noise was searched with the sampler {name}, which its settings alone cannot make anew; connect the"
            " same one to Replay Noise's sampler"
        )
    stock = comfy.samplers.sampler_object(name)
    return comfy.samplers.KSAMPLER(stock.sampler_function, options, stock.inpaint_options)


def mentions(word, function):
    """Whether a function's code has the name `word` in it, or that of a function which it calls by its name."""
    found, left = set(), [function]
    while left:
        function = inspect.unwrap(left.pop())
        if not inspect.isfunction(function) or function in found:
            continue
        found.add(function)
        words = function.__code__.co_names
        if word in words:
            return True
        left += [function.__globals__[name] for name in words if callable(function.__globals__.get(name))]
    return False


def _same_function(stock, sampler):
    """Whether two SAMPLERs have one function; some of ComfyUI's are made anew with each SAMPLER."""
    codes = [getattr(inspect.unwrap(each.sampler_function), "__code__", None) for each in (stock, sampler)]
    return codes[0] is not None and codes[0] is codes[1]


def _wavy_twice(x, sigma):
    return torch.cat([core.wavy(x, sigma), core.wavy(x + 1, sigma)], dim=1)


def _told(value):
    """Return an option as JSON types: a function as a table that tells it from others."""
    if callable(value):
        cells = [str(cell.cell_contents) for cell in getattr(value, "__closure__", None) or ()]
        return {"function": getattr(value, "__qualname__", type(value).__name__), "of": cells}
    return json.loads(json.dumps(value, default=str))


def _is_told(value):
    return isinstance(value, dict) and "function" in value
