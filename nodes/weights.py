"""Tensors that autograd accepts, over the storage of ComfyUI's own.

ComfyUI runs every node in `torch.inference_mode()`: weights, schedules, statistics of latents and conditionings are
inference tensors, which autograd refuses to save. A new tensor object over the same storage is accepted and costs
nothing (`renewed`). So that is what a search puts in place of a model's tensors (`rewrap`). Conditionings and options,
which are small, are copied instead (`thaw`). What hangs where neither finds it, such as the mask that a patch holds in
a closure, is renewed whenever an operation takes it (`Renewal`).
"""

import logging

import torch
from torch.overrides import TorchFunctionMode

log = logging.getLogger(__name__)

BORN_IN_INFERENCE = "Inference tensors cannot be saved for backward"
WRITTEN_INTO = "functions with out=... arguments don't support automatic differentiation"


def rewrap(module):
    """Replace a module's inference tensors by normal ones over the same storage: no copy, no gradient of their own.

    Replaced are parameters, buffers, tensors in other attributes of its parts, and those of a model's latent format.
    Two kinds stay, since `recast` keeps them from autograd. Quantised weights that are normal tensors cannot be moved
    in inference mode, so that ComfyUI could never free their memory. What layers in ComfyUI's dynamic video memory hold
    is a part of its bookkeeping.
    """
    known = {}
    for part in module.modules():
        if hasattr(part, "_v"):  # in dynamic video memory
            continue
        for tensors in (part._parameters, part._buffers):
            tensors.update({name: _once(tensor, known) for name, tensor in tensors.items()})
        _rewrap_attributes(part, known)
    if hasattr(module, "latent_format"):
        _rewrap_attributes(module.latent_format, known)


def _rewrap_attributes(thing, known):
    for name, value in vars(thing).items():
        if name not in ("_parameters", "_buffers", "_modules"):
            vars(thing)[name] = mapped(value, lambda tensor: _once(tensor, known), known)


def _once(tensor, known):
    """Return a tensor renewed where it needs it; the same for the same one, since parts of a model share weights."""
    if tensor is None or is_quantised(tensor) or not (tensor.is_inference() or tensor.requires_grad):
        return tensor
    return known.setdefault(id(tensor), renewed(tensor))


def is_quantised(tensor):
    """Whether a tensor wraps others that its numbers are made of."""
    return hasattr(tensor, "__tensor_flatten__")


@torch.inference_mode(False)
def renewed(tensor):
    """Return a normal tensor, without gradient, over the storage of an inference tensor.

    Quantised tensors are made anew of the tensors that they wrap, or as what they are of their own bytes.
    """
    if is_quantised(tensor):
        names, context = tensor.__tensor_flatten__()
        inner = {name: renewed(getattr(tensor, name)) for name in names}
        plain = type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
    else:
        plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        plain.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
        plain = plain.as_subclass(type(tensor.data))
    if isinstance(tensor, torch.nn.Parameter):
        plain = torch.nn.Parameter(plain, requires_grad=False)
    plain.__dict__.update({name: value for name, value in tensor.__dict__.items() if name not in plain.__dict__})
    return plain


def thaw(value):
    """Return `value` with the inference tensors in its dicts, lists, tuples and conditioning objects copied."""
    return mapped(value, lambda tensor: tensor.clone() if tensor.is_inference() else tensor)


def mapped(value, change, known=None):
    """Return `value` with change(tensor) for each tensor in its dicts, lists, tuples and conditioning objects.

    What holds no tensor that changes is returned itself. What is in two places stays one, and what holds itself holds
    itself as it was.

    Args:
        value: of any type.
        change: tensor -> tensor.
        known: what the dicts, lists and tuples around `value` became, by their ids.
    """
    known = {} if known is None else known
    if isinstance(value, torch.Tensor):
        return change(value)
    if type(value) in (dict, list, tuple):
        if id(value) not in known:
            known[id(value)] = value  # for the time that its items are looked at
            known[id(value)] = _with_items_mapped(value, change, known)
        return known[id(value)]
    if hasattr(type(value), "_copy_with") and hasattr(value, "cond"):
        return value._copy_with(mapped(value.cond, change, known))
    return value


def _with_items_mapped(value, change, known):
    if type(value) is dict:
        items = {key: mapped(item, change, known) for key, item in value.items()}
        return items if any(items[key] is not value[key] for key in value) else value
    items = type(value)(mapped(item, change, known) for item in value)
    return items if any(new is not old for new, old in zip(items, value, strict=True)) else value


class Renewal:
    """Runs a part of a model that is differentiated; where autograd refuses an operation, in a form that it accepts.

    Every inference tensor is then renewed as an operation takes it, and a result that would be written into a given
    tensor (out=, in HiDream O1) is made first and then copied there. To look at each operation costs time (see
    docs/costs.md), so a part runs without until autograd first refuses one, is then run again, and from then on runs so
    wherever it is differentiated.
    """

    def __init__(self):
        self.needed = False

    def __call__(self, part, *args):
        """Return part(*args)."""
        if not torch.is_grad_enabled():
            return part(*args)
        if not self.needed:
            try:
                return part(*args)
            except RuntimeError as error:
                if not any(words in str(error) for words in (BORN_IN_INFERENCE, WRITTEN_INTO)):
                    raise
            log.info("the model's operations are put in the form that autograd accepts: tensors out of reach, or out=")
            self.needed = True
        with _Accepted():
            return part(*args)


class _Accepted(TorchFunctionMode):
    """Gives each operation normal tensors for inference tensors, but for the one that it changes, its first.

    Changed outside of inference mode that one raises an error, and must: a gradient that went into a new tensor would
    be lost for whoever reads the old one.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = kwargs.get("out")
        if isinstance(out, torch.Tensor):
            found = self.__torch_function__(function, types, args, {**kwargs, "out": None})
            return out.copy_(found)
        name = getattr(function, "__name__", "")
        changes = name.startswith(("__set", "__i")) or name.endswith("_") and not name.endswith("__")
        changed = args[:1] if changes else ()
        args, kwargs = mapped((args[len(changed) :], kwargs), _renewed_if_inference)
        return function(*changed, *args, **kwargs)


def _renewed_if_inference(tensor):
    return renewed(tensor) if tensor.is_inference() else tensor
