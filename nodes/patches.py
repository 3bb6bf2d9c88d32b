"""Patches of the model that keep a state or draw random numbers: made repeatable, so that a noise has one picture."""

import contextlib

import torch

from ..core.precision import mixed_seed


def has_cache(model_options):
    """Whether EasyCache or LazyCache is in the model: they skip steps, going by the mean over a batch's rows."""
    return "easycache" in model_options.get("transformer_options", {})


def changes_guidance(model_options):
    """Whether a patch works on the guided result, such as VideoLinearCFGGuidance: it may mix the rows of a batch."""
    return any(model_options.get(f"sampler_{name}_function") for name in ("pre_cfg", "cfg", "post_cfg"))


def refuse_a_cache(model_options):
    """Raise RuntimeError where steps may be skipped: the backward pass runs each again, and would find another."""
    if has_cache(model_options):
        name = getattr(model_options["transformer_options"]["easycache"], "name", "EasyCache")
        raise RuntimeError(
            f"{name} is in the model, which skips steps by a state that the backward pass does not have; expected none."
            " Remove it, or use a solver that needs no gradient (ZeNO, Search, Zeroth-Order's zo-sgd)"
        )


def with_empty_cache(model_options, model_sampling):
    """Return the options with EasyCache or LazyCache as before a sampling run; ComfyUI begins one a node, not a run."""
    if not has_cache(model_options):
        return model_options
    options = model_options["transformer_options"]
    empty = options["easycache"].clone().prepare_timesteps(model_sampling)
    return {**model_options, "transformer_options": {**options, "easycache": empty}}


@contextlib.contextmanager
def repeatable(device, key):
    """Let random numbers of the global generators be those that `key` decides, and leave the generators as found.

    ToMe and HyperTile draw some in every call of the model: a noise would sample to another latent each time. With None
    as the key they draw on, as under KSampler.
    """
    if key is None:
        yield
        return
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(mixed_seed(*key))
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
