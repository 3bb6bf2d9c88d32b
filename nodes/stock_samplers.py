"""ComfyUI's SAMPLERs as core's `SamplerMap` takes samplers: those of k-diffusion's kind, differentiated as they stand.

What ComfyUI's `KSAMPLER` gives to its function is given here too; only the network's calls and the noises come from
elsewhere. Which noises a function asks for is found out by a trial on a tiny latent (`core.try_sampler`).
"""

import contextlib
import inspect
import json
import re
from dataclasses import dataclass, field

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.k_diffusion import sampling as k_sampling

from .. import core
from ..core.sampler_trial import SHAPE


@dataclass
class StockSampler:
    """A SAMPLER in one run of a guider: (model, x, sigmas, noise_sampler, callback) -> x.

    Attributes:
        sampler: a `comfy.samplers.KSAMPLER`.
        guider: whose model it samples.
        model_options: for the guider; a sampler may add functions after CFG to them, and nothing else.
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
        brownian = self._draws_from_a_tree()
        try:
            if brownian and not self._takes_noises:
                raise core.CannotBeSearchedError(
                    "it draws from a Brownian tree of its own; expected one that takes a noise_sampler"
                )
            judge_denoised = bool(self.sigmas[-1] > 0)
            self.traits = core.try_sampler(self, self.sigmas, brownian, _wavy_twice, judge_denoised)
        except core.CannotBeSearchedError as error:
            raise ValueError(f"the sampler {self.name} cannot be searched: {error}") from error

    def __call__(self, model, x, sigmas, noise_sampler, callback):
        function, options = self.sampler.sampler_function, dict(self.sampler.extra_options)
        if self._takes_noises:
            options["noise_sampler"] = noise_sampler
        # Copied deep enough for `_Model` to see what the sampler changes.
        model_options = comfy.model_patcher.create_model_options_clone(self.model_options)
        extra_args = {"model_options": model_options, "seed": self.seed, "denoise_mask": None}
        asked = _Model(self, sigmas, model)
        x = function(asked, x, sigmas, extra_args=extra_args, callback=callback, disable=True, **options)
        # As KSAMPLER ends, by the sigmas that the function leaves: uni_pc sets the last one to 0.001.
        return self.guider.inner_model.model_sampling.inverse_noise_scaling(sigmas[-1], x)

    @property
    def _takes_noises(self):
        return "noise_sampler" in inspect.signature(self.sampler.sampler_function).parameters

    def _draws_from_a_tree(self):
        """Whether the sampler, where it is given no noise_sampler, makes a Brownian tree to draw its noises from.

        Seen in a run on a tiny latent. Whatever else goes wrong in that, `core.try_sampler` will find and say.
        """
        sigmas = self.sigmas.clone()
        with _trees_noticed() as noticed, torch.random.fork_rng(devices=[]), contextlib.suppress(Exception):
            self(_wavy_twice, sigmas[0] * torch.ones(SHAPE).to(sigmas), sigmas, None, lambda step: None)
        return bool(noticed)

    def refuse_a_wrong_gradient(self):
        """Raise ValueError where the sampler's gradient must not be used."""
        if self.traits.wrong_gradient:
            raise ValueError(
                f"the sampler {self.name} cannot be searched by its gradient: {self.traits.wrong_gradient}. Use a"
                " solver that needs none (ZeNO, Search, Zeroth-Order's zo-sgd), or another sampler"
            )

    @property
    def name(self):
        """Its name in KSamplerSelect, or that of its function with its module's, as a pack may call one "euler" too."""
        for name in comfy.samplers.SAMPLER_NAMES:
            stock = comfy.samplers.sampler_object(name)
            if _same_function(stock, self.sampler) and stock.inpaint_options == self.sampler.inpaint_options:
                return name
        return _name_in_module(self.sampler.sampler_function)

    @property
    def settings(self):
        """What tells it from other samplers, JSON types, for `core.SamplerMap.sampler_settings`."""
        options = dict(getattr(self.sampler.sampler_function, "keywords", {}))  # of a functools.partial
        options |= self.sampler.extra_options
        options = {key: _told(value) for key, value in sorted(options.items())}
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
        hooks = added_hooks(model_options or {}, self.stock.model_options)
        if denoise_mask is not None:
            raise core.CannotBeSearchedError("it calls the model with a mask of its own; use another sampler")
        self.stock.asks_for_uncond |= bool(hooks)
        denoised, *uncond = self.call(x, sigma).split(x.shape[1], dim=1)
        for hook in hooks:
            denoised = hook({"denoised": denoised, "uncond_denoised": uncond[0]})
        return denoised


def added_hooks(options, given):
    """Return the functions that a sampler adds after CFG, by the options that it calls the model with.

    Raises:
        CannotBeSearchedError: it changes anything else in what it was given. That would have to be changed again in
            each call of the backward pass, when the sampler has gone on.
    """
    after_cfg = "sampler_post_cfg_function"
    before, hooks = given.get(after_cfg, []), options.get(after_cfg, [])
    rest = (options.keys() | given.keys()) - {after_cfg, "disable_cfg1_optimization"}
    changed = [name for name in rest if not _same_options(options.get(name), given.get(name))]
    if not _same_options(hooks[: len(before)], before):
        changed.append(after_cfg)
    if changed:
        raise core.CannotBeSearchedError(
            f"it calls the model with other options than it was given ({', '.join(sorted(map(str, changed)))}), which"
            " a search cannot do; expected functions after CFG at most. Use another sampler, or set by a node for the"
            " model what this one sets"
        )
    return hooks[len(before) :]


def _same_options(ours, given):
    """Whether two options are the same objects, in dictionaries and lists that may be copies."""
    if isinstance(ours, dict) and isinstance(given, dict):
        return ours.keys() == given.keys() and all(_same_options(ours[name], given[name]) for name in ours)
    if isinstance(ours, list) and isinstance(given, list):
        return len(ours) == len(given) and all(map(_same_options, ours, given))
    return ours is given


def named(settings):
    """Return the SAMPLER that a noise's settings name.

    Raises:
        ValueError: it is none of this ComfyUI, or has options that no file can hold.
    """
    name, options = settings["sampler"], settings.get("sampler_options", {})
    if name not in comfy.samplers.SAMPLER_NAMES or any(map(_is_told, options.values())):
        raise ValueError(
            f"the noise was searched with the sampler {name}, which its settings alone cannot make anew; connect the"
            " same one to DNO Replay Noise's sampler"
        )
    stock = comfy.samplers.sampler_object(name)
    return comfy.samplers.KSAMPLER(stock.sampler_function, options, stock.inpaint_options)


@contextlib.contextmanager
def _trees_noticed():
    """Give a list that gets an entry where a Brownian tree is made, which ends the run that makes it."""
    noticed, tree = [], k_sampling.torchsde.BrownianTree
    init = tree.__init__

    def notice(self, *args, **kwargs):
        noticed.append(type(self))
        raise RuntimeError("a Brownian tree was made")

    tree.__init__ = notice
    try:
        yield noticed
    finally:
        tree.__init__ = init


def _same_function(stock, sampler):
    """Whether two SAMPLERs have one function; some of ComfyUI's are made anew with each SAMPLER."""
    ours, theirs = sampler.sampler_function, stock.sampler_function
    if ours is theirs:
        return True
    # What wraps another function may be anything: the code of a decorator, as torch.no_grad()'s, is shared by many.
    codes = [None if hasattr(each, "__wrapped__") else getattr(each, "__code__", None) for each in (ours, theirs)]
    return codes[0] is not None and codes[0] is codes[1]


def _name_in_module(function):
    """Return a function's name behind that of its module, without the folder that ComfyUI puts into names of packs."""
    function = getattr(function, "func", function)  # of a functools.partial
    named = function if hasattr(function, "__qualname__") else type(function)
    module = re.split(r"[/\\]", str(named.__module__))[-1]
    return f"{module}.{named.__qualname__}"


def _wavy_twice(x, sigma):
    return torch.cat([core.wavy(x, sigma), core.wavy(x + 1, sigma)], dim=1)


def _told(value):
    """Return an option as JSON types: a function as a table that tells it from others."""
    if callable(value):
        cells = [_held(cell) for cell in getattr(value, "__closure__", None) or ()]
        return {"function": getattr(value, "__qualname__", type(value).__name__), "of": cells}
    return json.loads(json.dumps(value, default=str))


def _held(cell):
    try:
        return str(cell.cell_contents)
    except ValueError:
        return "nothing yet"


def _is_told(value):
    return isinstance(value, dict) and "function" in value
