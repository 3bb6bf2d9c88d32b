"""Gradients inside a running ComfyUI, without a copy of the weights.

ComfyUI runs every node in `torch.inference_mode()`: weights, schedules and conditionings are inference tensors, which
autograd refuses to save. Leaving the mode is not enough; the tensors must be made anew. For weights that is free: a
new tensor object over the same storage (`rewrap`). Conditionings are small and copied (`thaw`).

Which ComfyUI versions and settings stand in the way, and what to do about each, is said by `refuse_undifferentiable`
and `explained`.
"""

import contextlib
import logging

import comfy.model_management as mm
import comfy.ops
import torch
from comfy.ldm.modules.attention import attention_pytorch

log = logging.getLogger(__name__)

_searching = []
"""The models that the search now running differentiates: they stay in memory whole until its last backward pass."""

NO_FORMULA = (
    "no autograd formula", "derivative for", "does not have a grad_fn", "inference tensors cannot be saved",
    "inplace update to inference tensor", "is a view and is being modified inplace", "leaf variable that requires grad",
)  # fmt: skip
CHANGED_IN_PLACE = "modified by an inplace operation"


@contextlib.contextmanager
def gradients_enabled(of_models=True):
    """Leave inference mode, allow gradients, and restore all on exit.

    Args:
        of_models: ask the models for their plain operations, which can be differentiated.
    """
    training = getattr(mm, "in_training", None)
    with torch.inference_mode(False), torch.enable_grad(), explained():
        try:
            if of_models and training is not None:
                # Flux, Lumina, LTX and others then avoid fused kernels that have no backward pass (ComfyUI 0.33).
                mm.in_training = True
            yield
        finally:
            _searching.clear()
            if training is not None:
                mm.in_training = training


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


def keeping_what_is_changed(search):
    """Return search(), where a model may change in place what autograd has saved, as FreeU_V2 and Flux do.

    Copies are then kept of what is changed. To watch for that costs some 0.1 ms an operation (measured on a CPU: a tiny
    network takes 6 times as long, a middling one 1.3 times), so a search begins without, and begins anew where autograd
    finds, in its first backward pass, that the model needs it.
    """
    try:
        return search()
    except RuntimeError as error:
        if CHANGED_IN_PLACE not in str(error):
            raise
    # Out here the error no longer holds on to the first try's graphs.
    log.info("the model changes tensors in place that its gradient needs: the search begins anew and keeps copies")
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        return search()


def load_together(patchers, memory_required):
    """Load the models of a search fully and at once, and make their weights fit for autograd.

    Args:
        patchers: ComfyUI's, of all models of the search.
        memory_required: bytes, beside the weights.

    Raises:
        RuntimeError: a model's weights do not stay in memory whole, so that saved ones could be overwritten.
    """
    _searching[:] = patchers
    _load_whole(patchers, memory_required)
    for loaded in mm.current_loaded_models:
        if loaded.model is not None:
            rewrap(loaded.model.model)


def load_beside(patcher, memory_required):
    """Load one more model, which may move out others but none that is differentiated; raise as `load_together` does."""
    _load_whole([patcher, *_searching], memory_required)
    rewrap(patcher.model)


@torch.inference_mode()
def load(patchers, memory_required, **how):
    """Load models as ComfyUI's own nodes do: in inference mode, since moving its tensors outside of it breaks them."""
    mm.load_models_gpu(patchers, memory_required=memory_required, **how)


def _load_whole(patchers, memory_required):
    load(patchers, memory_required, force_full_load=True)
    for patcher in patchers:
        if getattr(patcher.model, "model_lowvram", False):
            raise RuntimeError(
                f"{type(patcher.model).__name__} is only partly in GPU memory; expected all of it, since offloaded"
                " weights are overwritten before the backward pass reads them. Start ComfyUI without --lowvram or"
                " --novram, free memory, use a smaller model, or a solver that differentiates none (ZeNO, Search)"
            )


def rewrap(module):
    """Replace a module's inference tensors by normal ones over the same storage: no copy, no gradient of their own."""
    renewed = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and (tensor.is_inference() or tensor.requires_grad):
                    tensors[name] = renewed.setdefault(id(tensor), _renew(tensor, name))


@torch.inference_mode(False)
def _renew(tensor, name):
    if type(tensor.data) is not torch.Tensor:
        raise RuntimeError(
            f"the weight {name} is stored as {type(tensor.data).__name__}; expected plain tensors, since quantised"
            " ones cannot be differentiated. Load a checkpoint in float8, float16, bfloat16 or float32"
        )
    plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    plain.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    if isinstance(tensor, torch.nn.Parameter):
        plain = torch.nn.Parameter(plain, requires_grad=False)
    plain.__dict__.update(tensor.__dict__)
    return plain


def thaw(value):
    """Return `value` with the inference tensors in its dicts, lists, tuples and conditioning objects copied."""
    if isinstance(value, torch.Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {key: thaw(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(thaw(item) for item in value)
    if hasattr(value, "_copy_with") and hasattr(value, "cond"):
        return value._copy_with(thaw(value.cond))
    return value


def with_plain_attention(model_options):
    """Set PyTorch's own attention: others have no backward pass or, worse, detach without a word."""
    override = {"optimized_attention_override": lambda _, *args, **kwargs: attention_pytorch(*args, **kwargs)}
    options = {**model_options.get("transformer_options", {}), **override}
    return {**model_options, "transformer_options": options}


def with_resident_weights(patcher):
    """Return a patcher whose weights stay in memory: ComfyUI's dynamic ones may be overwritten while in use.

    Raises:
        RuntimeError: the loader of this model knows no other way.
    """
    if not getattr(patcher, "is_dynamic", bool)():
        return patcher
    try:
        return patcher.clone(disable_dynamic=True)
    except RuntimeError as error:
        raise RuntimeError(
            f"{type(patcher.model).__name__} keeps its weights in dynamic video memory; expected weights that stay."
            " Start ComfyUI with --disable-dynamic-vram"
        ) from error


def refuse_dynamic_weights(patcher):
    """Raise RuntimeError where the weights of a model that is loaded already may be overwritten while in use."""
    if getattr(patcher, "is_dynamic", bool)():
        raise RuntimeError(
            f"{type(patcher.model).__name__} keeps its weights in dynamic video memory; expected weights that stay. Use"
            " a DNO Sampler node, which asks for that, or start ComfyUI with --disable-dynamic-vram"
        )


def refuse_undifferentiable(patcher):
    """Raise RuntimeError for models whose gradients would be missing or silently wrong, and say what to do."""
    if getattr(patcher, "get_additional_models_with_key", lambda _: [])("multigpu"):
        raise RuntimeError(
            "the model is split over several GPUs, whose copies run without gradients; expected one GPU."
            " Remove the multi-GPU node before the DNO Sampler"
        )
    kinds = tuple(getattr(comfy.ops, name).Linear for name in ("fp8_ops", "cublas_ops") if hasattr(comfy.ops, name))
    if any(isinstance(module, kinds) for module in patcher.model.modules()):
        raise RuntimeError(
            "the model was loaded for fast float8 or cuBLAS arithmetic, which has no backward pass."
            " Load it with weight_dtype fp8_e4m3fn instead of fp8_e4m3fn_fast, and start ComfyUI without --fast"
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
