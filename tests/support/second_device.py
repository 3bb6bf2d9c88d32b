"""A second device in every test run: a pretend GPU, `pretend:0`, its memory the host's and its kernels the CPU's.

    from second_device import PRETEND, counting, jitter, without_float64

    x = torch.randn(2, 3).to(PRETEND)      # a plain torch.Tensor, with autograd, views and optimisers as ever
    x + torch.randn(2, 3)                  # RuntimeError, as on CUDA: two devices
    with counting() as counts:
        x.sum().item()
    counts.synchronisations                # Counter({'_local_scalar_dense': 1})

PyTorch leaves one device type, PrivateUse1, to others. One fallback serves all its operations: it refuses what CUDA
refuses (tensors of two devices, another device's generator), runs the CPU's kernel on the same memory, and gives the
results back as the device's. Importing this makes the device, which a process has from then on or not at all, so that
`conftest` does it before autograd has counted the devices; where PyTorch lacks the hook, `MISSING` says so.
"""

import contextlib
import functools
from collections import Counter
from dataclasses import dataclass, field

import torch

try:
    from torch.utils import backend_registration

    _setup = backend_registration._setup_privateuseone_for_python_backend
    MISSING = ""
except (ImportError, AttributeError):
    MISSING = f"torch {torch.__version__} cannot make a device in Python; 2.14 can"

DOUBLE = (torch.float64, torch.complex128)

# What makes the host wait for the device, besides copies; indexing by booleans is a `nonzero` first.
WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive",
    "bincount", "_linalg_eigh", "_linalg_svd", "linalg_qr", "is_nonzero",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
PRODUCTS = {"convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm", "addmv", "mv", "dot"}

# What autocast lowers the precision of.
LOWERED = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "conv1d", "conv2d", "convolution")

# Here PyTorch has a composite kernel which a real device overrides by one of its own: the CPU's is taken.
OVERRIDDEN = ("native_group_norm", "native_layer_norm", "native_batch_norm")


@dataclass
class Counts:
    """What was seen since the counting began.

    Attributes:
        synchronisations: operation -> how often it made the host wait.
        operations: how many ran in all.
        bytes: of the tensors alive now, and `peak`, the most that ever were; relative to the beginning.
        largest_copy: bytes of the largest tensor that went from the host to the device or back.
    """

    synchronisations: Counter = field(default_factory=Counter)
    operations: int = 0
    bytes: int = 0
    peak: int = 0
    largest_copy: int = 0

    def wait(self, name):
        self.synchronisations[name] += 1

    def hold(self, size):
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


@dataclass
class _State:
    float64: bool = True
    jitter: float = 0.0
    counts: Counts = field(default_factory=Counts)


_state = _State()


@contextlib.contextmanager
def without_float64():
    """Refuse float64 on the device, as MPS does."""
    with _set("float64", False):
        yield


@contextlib.contextmanager
def jitter(size):
    """Make every convolution and matrix product off by `size`, relative, another time otherwise: a GPU's may differ."""
    with _set("jitter", size):
        yield


@contextlib.contextmanager
def counting():
    """Yield the Counts of what runs inside; bytes of tensors that were alive before are not in it."""
    with _set("counts", Counts()):
        yield _state.counts


@contextlib.contextmanager
def _set(name, value):
    before = getattr(_state, name)
    setattr(_state, name, value)
    try:
        yield
    finally:
        setattr(_state, name, before)


def _is_ours(value):
    return isinstance(value, torch.Tensor) and value.device.type == "pretend"


class _Held:
    """Counts a storage's bytes for as long as it lives, where they were counted first."""

    def __init__(self, size):
        self.size, self.counts = size, _state.counts
        self.counts.hold(size)

    def __del__(self):
        self.counts.hold(-self.size)


def _attach(storage, memory):
    """Let a storage of the device own the CPU storage whose memory is its own."""
    storage._memory, storage._held = memory, _Held(memory.nbytes())
    return storage


def _storage_over(memory):
    return _attach(torch._C._construct_storage_from_data_pointer(memory.data_ptr(), PRETEND, memory.nbytes()), memory)


def _place(tensor, storage, like):
    """Make a tensor of the device a view of `storage` with the layout of the CPU tensor `like`."""
    layout = like.storage_offset(), like.size(), like.stride()
    torch.ops.aten.set_.source_Storage_storage_offset.redispatch(_CPU, tensor, storage, *layout)
    return tensor


def _on_cpu(tensor):
    """Return the CPU tensor over the same memory."""
    storage = tensor.untyped_storage()
    if not hasattr(storage, "_memory"):  # PyTorch's own, of an empty tensor
        _attach(storage, torch.UntypedStorage(storage.nbytes()))
    alias = torch.empty(0, dtype=tensor.dtype, device="cpu")
    return alias.set_(storage._memory, tensor.storage_offset(), tensor.size(), tensor.stride())


def _on_device(result, hosts):
    """Return a CPU result as a tensor of the device: a view of the first of `hosts` whose memory it shares."""
    _refuse_double(result.dtype)
    memory, storage, normal = result.untyped_storage(), None, False
    for ours, alias in hosts:
        normal |= not ours.is_inference()
        if alias.untyped_storage()._cdata == memory._cdata:
            storage = ours.untyped_storage()
    # A view of a normal tensor is a normal one, in inference mode too.
    inference = torch.is_inference_mode_enabled() and not (storage is not None and normal)
    with torch.inference_mode(inference):
        empty = torch._C._acc.create_empty_tensor([0], result.dtype)
        return _place(empty, _storage_over(memory) if storage is None else storage, result)


def _refuse_double(dtype):
    if dtype in DOUBLE and not _state.float64:
        raise TypeError(f"Cannot convert a MPS Tensor to {dtype} dtype as the MPS framework doesn't support float64")


class _Call:
    """One operation's arguments, those of the device as aliases on the CPU."""

    def __init__(self, name):
        self.name, self.hosts, self.foreign = name, [], []

    def convert(self, value, listed=False):
        if isinstance(value, torch.Tensor):
            return self._tensor(value, listed)
        if type(value) in (list, tuple):
            return type(value)(self.convert(item, True) for item in value)
        if isinstance(value, torch.device):
            return torch.device("cpu") if value.type == "pretend" else value
        if isinstance(value, torch.Generator) and value.device.type != "pretend":
            raise RuntimeError(f"Expected a 'pretend' device type for generator but found '{value.device.type}'")
        return None if isinstance(value, torch.Generator) else value

    def _tensor(self, value, listed):
        if not _is_ours(value):
            self.foreign.append((value, listed))
            return value
        for ours, alias in self.hosts:
            if ours is value:
                return alias
        self.hosts.append((value, _on_cpu(value)))
        return self.hosts[-1][1]

    def refuse_two_devices(self):
        """Raise RuntimeError unless what lies elsewhere is a number, or indices."""
        for value, listed in self.foreign if self.hosts else ():
            index = listed and self.name in INDEXING
            number = value.ndim == 0 and not listed and self.name not in ("gather", "index_select", "embedding")
            if not (index or number or value.device.type == "meta"):
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, pretend:0 and"
                    f" {value.device}! ({self.name} of {tuple(value.shape)})"
                )

    def result(self, value):
        if type(value) in (list, tuple):
            return type(value)(self.result(item) for item in value)
        if not isinstance(value, torch.Tensor) or value.device.type != "cpu":
            return value
        for ours, alias in self.hosts:
            if alias is value:
                return ours
        return _on_device(value, self.hosts)

    def follow(self):
        """Let the device's tensors follow their aliases that the operation gave another size or memory."""
        for ours, alias in self.hosts:
            memory, storage = alias.untyped_storage(), ours.untyped_storage()
            if memory._cdata != storage._memory._cdata or memory.data_ptr() != storage.data_ptr():
                _place(ours, _storage_over(memory), alias)
            elif alias.shape != ours.shape or alias.stride() != ours.stride():
                _place(ours, storage, alias)


def _as_declared(operation, args):
    """Return the arguments with a tensor for each number that stands where the operation takes a tensor."""
    for value, argument in zip(args, operation._schema.arguments, strict=False):
        number = isinstance(value, (int, float)) and isinstance(argument.type, torch.TensorType)
        yield torch.tensor(value) if number else value


def _run(operation, *args, **kwargs):
    """Run the CPU's kernel: the fallback of all operations."""
    name = operation.name().removeprefix("aten::").partition(".")[0]
    call, counts = _Call(name), _state.counts
    args = [call.convert(value) for value in _as_declared(operation, args)]
    kwargs = {key: call.convert(value) for key, value in kwargs.items()}
    call.refuse_two_devices()
    counts.operations += 1
    if name in WAITING:
        counts.wait(name)
    found = operation(*args, **kwargs)
    if _state.jitter and name in PRODUCTS:
        _jitter(found if isinstance(found, tuple) else (found,))
    call.follow()
    return call.result(found)


def _jitter(results):
    for result in results:
        if result is not None and result.is_floating_point():
            noise = torch.randn(result.shape, dtype=torch.float32, device="cpu")
            result.copy_(result.float() * (1 + _state.jitter * noise))


def _copy(source, target, non_blocking=False):
    for tensor in (source, target):
        if _is_ours(tensor):
            _refuse_double(tensor.dtype)
    _state.counts.operations += 1
    if not (_is_ours(source) and _is_ours(target)):
        _state.counts.wait("to the CPU" if _is_ours(source) else "from the CPU")
        _state.counts.largest_copy = max(_state.counts.largest_copy, source.nbytes)
    aliases = [_on_cpu(tensor) if _is_ours(tensor) else tensor for tensor in (target, source)]
    aliases[0].copy_(aliases[1])
    return target


def _copy_resized(source, target):
    return _copy(source, target.resize_(source.shape))


def _set_storage(tensor, storage, offset=0, size=None, stride=()):
    size = [storage.nbytes() // tensor.element_size()] if size is None else size
    like = torch.empty(0, dtype=tensor.dtype, device="meta").new_empty(size)
    like = like.as_strided(size, stride or like.stride(), offset)
    return _place(tensor, storage, like)


def _convolution(*args):
    return _run(torch.ops.aten.convolution.default, *args)


def _convolution_backward(gradient, x, weight, *rest):
    return _run(torch.ops.aten.convolution_backward.default, gradient, x, weight, [gradient.shape[1]], *rest)


def _lowered(operation, *args, **kwargs):
    """Run an operation in autocast's dtype, as PyTorch's own devices do."""
    dtype = torch.get_autocast_dtype("pretend")
    cast = [value.to(dtype) if _is_ours(value) and value.is_floating_point() else value for value in args]
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
        return operation(*cast, **kwargs)


class _Module:
    """What PyTorch asks `torch.pretend`."""

    is_initialized = is_available = staticmethod(lambda: True)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = synchronize = empty_cache = staticmethod(lambda *args: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.float16, torch.bfloat16])
    get_rng_state = staticmethod(lambda device=None: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=None: torch.set_rng_state(state))


def _clone_storage(original, storage):
    return _storage_over(storage._memory.clone()) if storage.device.type == "pretend" else original(storage)


def _make():
    """Make the device; return it, and the libraries, without which its operations would be gone."""
    _setup("pretend", _Module)
    clone = torch.UntypedStorage.clone
    torch.UntypedStorage.clone = lambda storage: _clone_storage(clone, storage)
    keys = ("PrivateUse1", "AutocastPrivateUse1")
    libraries = {(name, key): torch.library.Library(name, "IMPL", key) for name in ("_", "aten") for key in keys}
    libraries["_", "PrivateUse1"].fallback(_run)
    libraries["_", "AutocastPrivateUse1"].fallback(torch.library.fallthrough_kernel)
    for name in LOWERED:
        kernel = functools.partial(_lowered, getattr(torch.ops.aten, name).default)
        libraries["aten", "AutocastPrivateUse1"].impl(name, kernel)
    aten = libraries["aten", "PrivateUse1"]
    for name in OVERRIDDEN:
        aten.impl(name, functools.partial(_run, getattr(torch.ops.aten, name).default))
    aten.impl("_copy_from", _copy)
    aten.impl("_copy_from_and_resize", _copy_resized)
    aten.impl("set_.source_Storage", _set_storage)
    aten.impl("set_.source_Storage_storage_offset", _set_storage)
    aten.impl("convolution_overrideable", _convolution)
    aten.impl("convolution_backward_overrideable", _convolution_backward)
    return torch.device("pretend", 0), libraries


if not MISSING:
    _CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    PRETEND, _libraries = _make()
else:
    PRETEND = None
