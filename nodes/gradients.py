"""Gradients inside a running ComfyUI: what a search switches off or on while it runs, and puts back.

Tensors that autograd accepts are made in `weights.py`, models are loaded by `residency.py`. Which ComfyUI versions and
settings stand in the way all the same, and what to do about each, is said by `refuse_undifferentiable` and `explained`.
"""

import contextlib
import sys

import comfy.model_management as mm
import comfy.ops
import torch
from comfy.ldm.modules.attention import attention_pytorch

NO_FORMULA = (
    "no autograd formula", "derivative for", "does not have a grad_fn", "inference tensors cannot be saved",
    "inplace update to inference tensor", "is a view and is being modified inplace", "leaf variable that requires grad",
    "don't support automatic differentiation",
)  # fmt: skip


@contextlib.contextmanager
def gradients_enabled(of_models=True):
    """Leave inference mode, allow gradients, and restore all on exit.

    Args:
        of_models: ask the models for their plain operations, which can be differentiated.
    """
    training = getattr(mm, "in_training", None)
    plain = plain_kernels() if of_models else contextlib.nullcontext()
    with torch.inference_mode(False), torch.enable_grad(), explained(), plain:
        try:
            if of_models and training is not None:
                # Flux, Lumina, LTX and others then avoid fused kernels that have no backward pass (ComfyUI 0.33).
                mm.in_training = True
            yield
        finally:
            if training is not None:
                mm.in_training = training


@contextlib.contextmanager
def plain_kernels():
    """Put comfy_kitchen's plain functions in the place of its fused kernels, and those back on exit (ComfyUI 0.33).

    Rotary positions and norms are computed by kernels without a backward pass, in ERNIE-Image, Cosmos Predict 2, Anima
    and JoyImage whatever ComfyUI is told. The plain functions that the kernels are tested against have one.
    """
    kitchen, plain = (sys.modules.get(name) for name in ("comfy_kitchen", "comfy_kitchen.backends.eager"))
    names = [name for name in dir(plain) if ("rope" in name or "adaln" in name) and callable(getattr(plain, name))]
    fused = {name: getattr(kitchen, name) for name in names if hasattr(kitchen, name)}
    try:
        for name in fused:
            setattr(kitchen, name, getattr(plain, name))
        yield
    finally:
        for name, kernel in fused.items():
            setattr(kitchen, name, kernel)


@contextlib.contextmanager
def explained():
    """Say what it means for the user when autograd meets an operation that it cannot differentiate."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if not any(words in str(error).lower() for words in NO_FORMULA):
            raise
        raise RuntimeError(
            "this model or reward cannot be differentiated in this ComfyUI version: it uses an operation without a"
            f" backward pass, or weights loaded in inference mode ({str(error).splitlines()[0]}). Remove nodes that"
            " patch the model (attention, quantisation, caches), try another checkpoint format, or use another model or"
            " reward"
        ) from error


def with_plain_attention(model_options):
    """Set PyTorch's own attention: others have no backward pass or, worse, detach without a word."""
    override = {"optimized_attention_override": lambda _, *args, **kwargs: attention_pytorch(*args, **kwargs)}
    options = {**model_options.get("transformer_options", {}), **override}
    return {**model_options, "transformer_options": options}


def without_dynamic_memory(patcher):
    """Return a patcher of the same model that ComfyUI's dynamic video memory does not manage, where its loader has one.

    Weights that stay between calls need not be made again in each backward pass.
    """
    if not getattr(patcher, "is_dynamic", bool)():
        return patcher
    try:
        return patcher.clone(disable_dynamic=True)
    except RuntimeError:  # this loader has none
        return patcher


def refuse_undifferentiable(patcher):
    """Raise RuntimeError for models whose gradients would be missing or silently wrong, and say what to do."""
    if getattr(patcher, "get_additional_models_with_key", lambda _: [])("multigpu"):
        raise RuntimeError(
            "the model is split over several GPUs, whose copies run without gradients; expected one GPU."
            " Remove the multi-GPU node before the DNO Sampler, or use DNO Solver (ZeNO) or (Search), which take none"
        )
    kinds = tuple(getattr(comfy.ops, name).Linear for name in ("fp8_ops", "cublas_ops") if hasattr(comfy.ops, name))
    if any(isinstance(module, kinds) for module in patcher.model.modules()):
        raise RuntimeError(
            "the model was loaded for fast float8 or cuBLAS arithmetic, which has no backward pass."
            " Load it with weight_dtype fp8_e4m3fn instead of fp8_e4m3fn_fast, and start ComfyUI without --fast; or use"
            " DNO Solver (ZeNO) or (Search), which take no gradient"
        )


@contextlib.contextmanager
def watched_for_gradients(model):
    """Raise as soon as the network inside `model` returns a result without gradient though its input has one.

    The sampler alone would not notice: denoised = x - sigma * output has a gradient by x even if the output has none.

    Args:
        model: a `comfy.model_base.BaseModel`.

    Yields:
        expect: call expect(True) before a call whose result must have a gradient, expect(False) before others.
    """
    expected = [False]

    def check(_module, _args, output):
        outputs = output if isinstance(output, (list, tuple)) else [output]
        if expected[0] and not any(part.requires_grad for part in outputs):
            raise RuntimeError(
                "the gradient is lost inside the model: its network ran under no_grad or inference_mode, or a patch"
                " detached its result. Remove nodes that cache, compile or replace the model's network, or ask their"
                " author to leave gradients on"
            )

    hook = model.diffusion_model.register_forward_hook(check)
    try:
        yield lambda expect: expected.__setitem__(0, expect)
    finally:
        hook.remove()
