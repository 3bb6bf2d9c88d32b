"""Patches of the model by other nodes and packs: what they may do to a search, and which are refused.

A noise must have one picture, whatever was sampled before and whatever else is in its call, and a gradient needs steps
that stand alone. What is known by name is refused before the model is called; what is not, `Probe` finds out.
"""

import inspect

import torch

from ..core.memory import is_out_of_memory

# Relative difference of a picture's result beside other pictures above which they are mixed. A call of the same shape
# rounds the same, whatever the precision.
MIXED = 3e-5

# Where that is not so: above the rounding of kernels that differ with the batch, or add up in any order, in float32 and
# in half precision, and of activations that are quantised by the largest of a batch.
ROUNDED, CHANGED, ROUNDED_HALF = 3e-5, 1e-3, 1e-2


def has_cache(model_options):
    """Whether EasyCache or LazyCache is in the model: they skip steps, going by the mean over a batch's rows."""
    return "easycache" in model_options.get("transformer_options", {})


def refuse_clips(model, model_options, shape):
    """Raise ValueError where a latent's pictures are the frames of one clip, or its frames have noise in common.

    A search takes each picture of a batch for itself, and each number of a noise.

    Args:
        model: the comfy model.
        model_options: of the guider.
        shape: (B, C, H, W) or (B, C, F, H, W), of the latent.
    """
    windows = model_options.get("context_handler")
    dim = getattr(windows, "dim", None)
    temporal = model.model_config.unet_config.get("use_temporal_attention")
    if temporal or dim == 0:
        looks = f"{type(model).__name__} looks" if temporal else "context windows over the batch look"
        raise ValueError(
            f"the pictures of this batch ({shape[0]}) are the frames of one clip, for {looks} at them together;"
            " expected pictures that do not depend on each other. Set iterations to 0, or use a model of pictures or"
            " one whose latent has a dimension for frames (Wan, Hunyuan Video)"
        )
    if getattr(windows, "freenoise", False) and shape[dim] > windows.context_length:
        raise ValueError(
            "the context windows' freenoise gives later frames the noise of earlier ones, and would do so again with a"
            " noise that a search found; expected frames with a noise of their own. Switch freenoise off"
        )


def refuse_a_state(model_options):
    """Raise RuntimeError for patches that go by earlier steps: the backward pass runs each step alone."""
    named = []
    if has_cache(model_options):
        named.append(getattr(model_options["transformer_options"]["easycache"], "name", "EasyCache"))
    for function in filter(inspect.isfunction, model_options.get("sampler_pre_cfg_function", ())):
        held = _held(function)
        if "running_avg" in held and held.get("momentum"):
            named.append("APG with a momentum")
    if named:
        raise RuntimeError(
            f"{named[0]} is in the model, which goes by earlier steps: a state that the backward pass does not have;"
            " expected steps that stand alone. Remove it (or set the momentum to 0), or use a solver that needs no"
            " gradient (ZeNO, Search, Zeroth-Order's zo-sgd)"
        )


def _held(function):
    """Return what a function holds of the functions around it, by name; what none of them has assigned is None."""
    names, cells = function.__code__.co_freevars, function.__closure__ or ()
    return {name: _content(cell) for name, cell in zip(names, cells, strict=True)}


def _content(cell):
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


class Probe:
    """A few calls of the model in the middle of its schedule, to find out what another pack's patch may do.

    Args:
        run: a `ComfyRun`.
    """

    def __init__(self, run):
        self._run = run
        self._x, self._sigma = run.halfway()
        model = run.guider.inner_model
        half = model.get_dtype().itemsize < 4
        self._rounded, self._changed = (ROUNDED_HALF, ROUNDED_HALF) if half else (ROUNDED, CHANGED)
        quantised = any(hasattr(weight, "__tensor_flatten__") for weight in model.parameters())
        self._mixed = ROUNDED_HALF if quantised else MIXED
        self._other = self._x.flip(-1) + self._sigma
        self._alone = self._denoised(self._x)

    def keeps_a_state(self):
        """Whether the same call gives another result the second time."""
        return self._differs(self._denoised(self._x), self._alone, self._changed)

    def couples_pictures(self):
        """Whether a picture of the batch depends on what the others are."""
        first = torch.arange(len(self._x), device=self._x.device) < len(self._x) // 2
        for kept in (first, ~first):
            mixed = torch.where(kept.reshape(-1, *[1] * (self._x.ndim - 1)), self._x, self._other)
            if self._differs(self._denoised(mixed)[kept], self._alone[kept], self._mixed):
                return True
        return False

    def mixes_candidates(self):
        """Whether a picture depends on how many more are in its call, or no more than a batch may be in one."""
        try:
            together, again = (self._denoised(torch.cat([self._x, beside])) for beside in (self._other, -self._other))
        except (RuntimeError, IndexError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            return True
        together, again = together[: len(self._x)], again[: len(self._x)]
        return self._differs(together, self._alone, self._rounded) or self._differs(together, again, self._mixed)

    @torch.no_grad()
    def _denoised(self, x):
        return self._run.denoise(x, self._sigma.expand(len(x)))

    @staticmethod
    def _differs(found, expected, tolerance):
        return bool((found - expected).norm() > tolerance * expected.norm())


def with_empty_cache(model_options, model_sampling):
    """Return the options with EasyCache or LazyCache as before a sampling run; ComfyUI begins one a node, not a run."""
    if not has_cache(model_options):
        return model_options
    options = model_options["transformer_options"]
    empty = options["easycache"].clone().prepare_timesteps(model_sampling)
    return {**model_options, "transformer_options": {**options, "easycache": empty}}
