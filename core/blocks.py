"""Gradients block by block: what a network's way back needs is made again, one block at a time.

A U-Net, a transformer or a decoder is a row of blocks. Autograd keeps every intermediate result of all of them. Here it
keeps what goes into each block; on the way back a block runs once more, now with a graph, is differentiated and freed:

    forward    x_1 --block 1--> x_2 --block 2--> x_3         kept: x_1, x_2
    backward   d x_3 --block 2 again from x_2--> d x_2 --block 1 again from x_1--> d x_1

The second run must be the first one's twin, so it gets what that one had: its inputs, the weights that were in place,
the random numbers, the autocast. What a block may do that would make its gradient wrong is found out as it runs:

    it keeps a state, in itself or elsewhere     its second result is not its first: it is left whole from then on
    its result depends on x in a hidden way      its result has a gradient though its inputs have none: it is left whole
    it changes an input in place                 the input's version is another: it is given a copy
    it writes into a list or dict it is given    what is written there is a result, like what it returns
"""

import contextlib
import logging
from dataclasses import dataclass
from functools import partial

import torch
from torch.autograd.function import once_differentiable

from .in_place import CHANGED
from .precision import global_generators, outside_autocast, wide

log = logging.getLogger(__name__)

CONTAINERS = torch.nn.ModuleList, torch.nn.Sequential, torch.nn.ModuleDict

# A module is a block, and not a row of smaller ones, where those leave out more than this part of its layers.
LEFT_OUT = 0.25

# Along each dimension, how many of a result's entries are compared with those of the second run.
COMPARED = 8

# What is looked into for tensors.
LOOKED_INTO = dict, list, tuple

# The largest relative difference of a block's two results that is taken for rounding, as `SampleMap.rerun_tolerance`.
LIKE = 0.02


def blocks_of(network):
    """Return the blocks that a network is made of, as it is written, whoever wrote it.

    A block is what stands in a ModuleList, Sequential or ModuleDict with two or more layers in it: a residual block of
    a U-Net or VAE, a transformer's block. Where such a one is itself a row of blocks (diffusers' down blocks, a spatial
    transformer), those are the blocks. What is of a block's class is a block wherever it stands.

    Example:
        >>> def block():
        ...     return torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
        >>> class Residual(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.up, self.down = torch.nn.Linear(2, 4), torch.nn.Linear(4, 2)
        >>> network = torch.nn.ModuleDict({"first": torch.nn.Linear(2, 2), "row": torch.nn.Sequential(Residual())})
        >>> blocks_of(network) == [network["row"][0]]
        True

    Args:
        network: an nn.Module.

    Returns:
        list of nn.Modules, none of them inside of another.
    """
    classes = {type(block) for block in _in_containers(network)}
    return list(dict.fromkeys(_of_classes(network, classes)))


def _in_containers(module, in_container=False):
    """Return the blocks in `module`, itself among them where it stands in a container."""
    listed = isinstance(module, CONTAINERS)
    inside = [block for child in module.children() for block in _in_containers(child, listed)]
    if listed or not in_container or _layers(module) < 2:
        return inside
    return inside if sum(map(_layers, inside)) >= (1 - LEFT_OUT) * _layers(module) else [module]


def _layers(module):
    return sum(bool(part._parameters) for part in module.modules())


def _of_classes(module, classes):
    if type(module) in classes:
        return [module]
    return [block for child in module.children() for block in _of_classes(child, classes)]


class Blocks:
    """The blocks of a map's networks, and what is known of each.

    Example:
        >>> class Residual(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.up, self.down = torch.nn.Linear(2, 64), torch.nn.Linear(64, 2)
        ...     def forward(self, x):
        ...         return x + self.down(torch.tanh(self.up(x)))
        >>> network = torch.nn.Sequential(Residual(), Residual()).requires_grad_(False)
        >>> x = torch.ones(1, 2, requires_grad=True)
        >>> (expected,) = torch.autograd.grad(network(x).sum(), x)
        >>> blocks = Blocks([network])
        >>> with blocks.checkpointed():
        ...     y = network(x).sum()
        >>> torch.equal(torch.autograd.grad(y, x)[0], expected), blocks.unlike()
        (True, [])

    Attributes:
        networks: the nn.Modules.
        all: a `_Block` for each block of theirs.
        run: called as run(part) for a block's second run, returns part(); a caller may have more to do there.
        reruns: (`_Block`, relative difference of its second run's results from its first's), since they were last read.
    """

    def __init__(self, networks, run=None):
        self.networks, self.run, self.reruns = tuple(networks), run or _called, []
        self.all = [_Block(module, self) for network in networks for module in blocks_of(network)]

    @contextlib.contextmanager
    def checkpointed(self):
        """Let autograd keep of each block its inputs alone, for the graphs that are made inside of the context."""
        with contextlib.ExitStack() as replaced:
            for block in self.all:
                replaced.enter_context(block.forward_by(block))
            yield

    @contextlib.contextmanager
    def counted(self, saved):
        """Let saved.through(block, *args, **kwargs) run each block, inside of the context."""
        with contextlib.ExitStack() as replaced:
            for block in self.all:
                replaced.enter_context(block.forward_by(partial(saved.through, block)))
            yield

    def unlike(self):
        """Leave whole from now on what did not repeat itself since this was last asked; return the classes' names.

        All second runs are compared here at once: each reading makes the host wait for the device.
        """
        reruns, self.reruns = self.reruns, []
        if not reruns:
            return []
        blocks, differences = zip(*reruns, strict=True)
        found = torch.stack([difference.to(differences[0].device) for difference in differences]).tolist()
        unlike = [block for block, difference in zip(blocks, found, strict=True) if difference > LIKE]
        for block in unlike:
            block.leave_whole("its second run gives another result")
        return sorted({block.name for block in unlike})


def _called(part):
    return part()


class _Block:
    """One block, called in the place of its module's forward.

    Attributes:
        module: the nn.Module.
        forward: its own.
        whole: whether autograd shall have it as it is.
        copied: numbers of the tensors in its arguments that it changes in place; None before its first call.
        weights: (dict, name) of every parameter and buffer in it.
    """

    def __init__(self, module, blocks):
        self.module, self.blocks, self.whole, self.copied = module, blocks, False, None
        stores = [store for part in module.modules() for store in (part._parameters, part._buffers)]
        self.weights = [(store, name) for store in stores for name, tensor in store.items() if tensor is not None]

    @property
    def name(self):
        return type(self.module).__name__

    @contextlib.contextmanager
    def forward_by(self, function):
        """Call `function` for the forward of this one module, which is `forward` meanwhile, and give it back."""
        attributes = vars(self.module)
        own = {"forward": attributes["forward"]} if "forward" in attributes else {}
        self.forward, attributes["forward"] = self.module.forward, function
        try:
            yield
        finally:
            del attributes["forward"]
            attributes.update(own)

    def leave_whole(self, why):
        if not self.whole:
            log.info("a %s is differentiated as it is, not block by block: %s", self.name, why)
        self.whole = True

    def __call__(self, *args, **kwargs):
        if self.whole or not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        call = _Call(self, (args, kwargs))
        outcome = call.first() if call.moving else None
        if outcome is None:
            return self.forward(*args, **kwargs)
        moving = [call.tensors[number] for number in call.moving]
        return call.handed_on(outcome, _Differentiated.apply(call, outcome, *moving))


class _Differentiated(torch.autograd.Function):
    """One call of a block in autograd's graph: a node that holds what went in, and runs the block when it is asked."""

    @staticmethod
    def forward(ctx, call, outcome, *moving):
        ctx.call = call
        ctx.save_for_backward(*moving)
        ctx.set_materialize_grads(False)
        # Autograd refuses to let views that come from here be changed in place.
        return tuple(tensor.clone() if tensor._is_view() else tensor for tensor in outcome.made)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        leaves, made = ctx.call.again(ctx.saved_tensors)
        pairs = zip(made, gradients, strict=True)
        pairs = [(each, gradient) for each, gradient in pairs if gradient is not None and each.requires_grad]
        if not pairs:
            return None, None, *(None for _ in leaves)
        results, incoming = zip(*pairs, strict=True)
        return None, None, *torch.autograd.grad(results, leaves, incoming, allow_unused=True)


@dataclass(frozen=True)
class _Given:
    """Stands for a tensor that a block is given."""

    number: int


@dataclass(frozen=True)
class _Made:
    """Stands for a tensor that a block makes."""

    number: int


@dataclass(frozen=True)
class _Outcome:
    """What one run of a block has done.

    Attributes:
        made: list of the new tensors.
        result: what it returned, a `_Given` or `_Made` in place of each tensor.
        written: number of a list or dict in its arguments -> what that holds now, likewise; of those that changed.
        changed: numbers of the given tensors that it changed in place.
        lost: whether one of those is not among what it made.
    """

    made: list
    result: object
    written: dict
    changed: set
    lost: bool

    @property
    def hides(self):
        """What of the outcome a second run would not show, a sentence; '' where all is in sight."""
        found = []
        mapped(self.result, lambda leaf: found.append(leaf) or leaf)
        if not all(leaf is None or isinstance(leaf, (_Given, _Made, bool, int, float, str)) for leaf in found):
            return "it returns what is neither a tensor nor a list, tuple or dict of them"
        if any(tensor.requires_grad for tensor in self.made):
            return "its result depends on more than it is given, or its weights have gradients of their own"
        if self.lost:
            return "it changes in place what it does not return"
        return ""


class _Call:
    """One call of a block: its first run, and all that a second one needs to be the same.

    Attributes:
        tensors: those in the arguments, each once; let go of after the first run.
        layout: the arguments, with a `_Given` in place of each tensor.
        boxes: the lists and dicts in the layout, and `originals`, those that it copies, which are let go of too.
        moving: numbers of the tensors that have a gradient; `still` holds the others by their numbers.
    """

    def __init__(self, block, arguments):
        self.block, self.tensors, numbers, known = block, [], {}, {}

        def numbered(leaf):
            if not torch.is_tensor(leaf):
                return leaf
            if id(leaf) not in numbers:
                numbers[id(leaf)] = _Given(len(self.tensors))
                self.tensors.append(leaf)
            return numbers[id(leaf)]

        self.layout = mapped(arguments, numbered, known)
        boxes = [pair for pair in known.values() if type(pair[0]) is not tuple]
        self.originals, self.boxes = [original for original, _ in boxes], [copy for _, copy in boxes]
        self.moving = [number for number, tensor in enumerate(self.tensors) if tensor.requires_grad]
        self.still = {number: each for number, each in enumerate(self.tensors) if not each.requires_grad}

    def first(self):
        """Run the block with its inputs held constant; return the `_Outcome`, or None where it must be left whole."""
        block, device = self.block, self.tensors[self.moving[0]].device
        self.weights = [store[name] for store, name in block.weights]
        self.autocast, self.generators = _autocast_of(device.type), global_generators(device)
        self.states = _states_of(self.generators)
        outcome = self._run([tensor.detach() for tensor in self.tensors])
        if block.copied is None:
            block.copied = outcome.changed
        if outcome.changed - block.copied:
            block.copied |= outcome.changed
            raise RuntimeError(f"a tensor that a {block.name} is given was {CHANGED}")
        if outcome.hides:
            block.leave_whole(outcome.hides)
            _set_states(self.generators, self.states)
            return None
        if all(map(torch.equal, self.states, _states_of(self.generators))):
            self.states = None  # it has drawn none
        self.versions = self._versions()
        self.shown = [_some_of(tensor) for tensor in outcome.made]
        return outcome

    def handed_on(self, outcome, made):
        """Give the block's caller what the first run made, with `made` in place of its tensors; return its result."""
        own = {id(original): (original, original) for original in self.originals}
        kinds = {_Given: self.tensors, _Made: made}

        def tensor_of(leaf):
            return kinds[type(leaf)][leaf.number] if type(leaf) in kinds else leaf

        for number, content in outcome.written.items():
            original, content = self.originals[number], mapped(content, tensor_of, dict(own))
            original.clear()
            put = original.extend if isinstance(original, list) else original.update
            put(content)
        result = mapped(outcome.result, tensor_of, own)
        self.tensors = self.originals = None  # autograd alone says when they are freed
        return result

    def again(self, saved):
        """Run the block once more, with a graph; return the leaves of that, and the tensors that it made."""
        if self._versions() != self.versions:
            self.block.leave_whole("what it goes by is changed in place later")
            raise RuntimeError(f"a tensor that a {self.block.name} goes by was {CHANGED}")
        leaves = [tensor.detach().requires_grad_() for tensor in saved]
        tensors = self.still | dict(zip(self.moving, leaves, strict=True))
        tensors = [tensors[number] for number in range(len(tensors))]
        with torch.enable_grad(), self.autocast(), self._weights_of_then(), self._random_numbers_of_then():
            made = self.block.blocks.run(partial(self._run, tensors)).made
        shown = [_some_of(tensor) for tensor in made]
        self.block.blocks.reruns.append((self.block, _difference(self.shown, shown)))
        return leaves, made

    def _run(self, tensors):
        """Run the block with these tensors and return the `_Outcome`."""
        copied = range(len(tensors)) if self.block.copied is None else self.block.copied
        inputs = [each.clone() if number in copied else each for number, each in enumerate(tensors)]
        versions, known = list(map(_version, inputs)), {}
        arguments = mapped(self.layout, lambda leaf: inputs[leaf.number] if isinstance(leaf, _Given) else leaf, known)
        result = self.block.forward(*arguments[0], **arguments[1])
        changed = {number for number, each in enumerate(inputs) if _version(each) != versions[number]}
        return self._outcome(inputs, known, result, changed)

    def _outcome(self, inputs, known, result, changed):
        # What was changed in place is a tensor that the block has made.
        stands = {id(tensor): _Given(number) for number, tensor in enumerate(inputs) if number not in changed}
        made = []

        def stand_in(leaf):
            if not torch.is_tensor(leaf):
                return leaf
            if id(leaf) not in stands:
                stands[id(leaf)] = _Made(len(made))
                made.append(leaf)
            return stands[id(leaf)]

        def as_given(leaf):
            if type(leaf) in LOOKED_INTO:
                return known[id(leaf)][1]
            return inputs[leaf.number] if isinstance(leaf, _Given) else leaf

        copies = [known[id(box)][1] for box in self.boxes]
        own = {id(copy): (copy, original) for copy, original in zip(copies, self.originals or copies, strict=True)}
        result, written = mapped(result, stand_in, dict(own)), {}
        for number, (box, copy) in enumerate(zip(self.boxes, copies, strict=True)):
            if not _holds(copy, [(key, as_given(item)) for key, item in _entries(box)]):
                written[number] = mapped(type(copy)(copy), stand_in, dict(own))
        lost = not {id(inputs[number]) for number in changed} <= {id(tensor) for tensor in made}
        return _Outcome(made, result, written, changed, lost)

    def _versions(self):
        return list(map(_version, (*self.weights, *self.still.values())))

    @contextlib.contextmanager
    def _weights_of_then(self):
        """Put the weights in place that the first run had: hooks of prompts change them between calls."""
        now = [store[name] for store, name in self.block.weights]
        try:
            self._set(self.weights)
            yield
        finally:
            self._set(now)

    def _set(self, weights):
        for (store, name), weight in zip(self.block.weights, weights, strict=True):
            store[name] = weight

    @contextlib.contextmanager
    def _random_numbers_of_then(self):
        """Let the block draw the random numbers of its first run, where it drew any."""
        if self.states is None:
            yield
            return
        now = _states_of(self.generators)
        try:
            _set_states(self.generators, self.states)
            yield
        finally:
            _set_states(self.generators, now)


def mapped(value, change, known=None):
    """Return `value` with new dicts, lists and tuples, and in them change(leaf) for everything else.

    What is in two places stays one, and what holds itself holds itself.

    Example:
        >>> given = {"a": [1, 2]}
        >>> mapped(given, lambda leaf: leaf + 1), given
        ({'a': [2, 3]}, {'a': [1, 2]})

    Args:
        value: of any type.
        change: leaf -> leaf.
        known: a dict, id of a dict, list or tuple -> (itself, what stands for it); those that are met are added.
    """
    known, kind = {} if known is None else known, type(value)
    if kind not in LOOKED_INTO:
        return change(value)
    if id(value) in known:
        return known[id(value)][1]
    copy = kind()
    known[id(value)] = value, copy
    if kind is dict:
        copy.update((key, mapped(item, change, known)) for key, item in value.items())
    elif kind is list:
        copy.extend(mapped(item, change, known) for item in value)
    else:
        copy = tuple(mapped(item, change, known) for item in value)
        known[id(value)] = value, copy
    return copy


def tensors_in(value):
    """Return the tensors in dicts, lists and tuples, in the order in which they stand there.

    Example:
        >>> tensors_in({"a": [torch.zeros(2), "b"]})
        [tensor([0., 0.])]
    """
    found = []
    mapped(value, lambda leaf: found.append(leaf) if torch.is_tensor(leaf) else None)
    return found


def _entries(box):
    return list(box.items() if isinstance(box, dict) else enumerate(box))


def _holds(box, entries):
    """Whether a list or dict holds these entries, the very same objects in this order."""
    found = _entries(box)
    same = (key == old_key and item is old for (key, item), (old_key, old) in zip(found, entries, strict=False))
    return len(found) == len(entries) and all(same)


def _version(tensor):
    """Return how often a tensor was changed in place; 0 of one that does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _states_of(generators):
    return [generator.get_state() for generator in generators]


def _set_states(generators, states):
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


def _autocast_of(device_type):
    """Return what makes a context with the autocast that is on now."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return partial(torch.autocast, device_type, torch.get_autocast_dtype(device_type))
    return partial(outside_autocast, device_type)


def _some_of(tensor):
    """Return a copy of a few of a tensor's entries, spread over all of it."""
    steps = tuple(slice(None, None, -(-size // COMPARED) or 1) for size in tensor.shape)
    return wide(tensor.detach()[steps]).clone()


def _difference(first, again):
    """Return the largest relative difference of two runs' results, by their norms, 0-dim."""
    if [each.shape for each in first] != [each.shape for each in again]:
        raise RuntimeError(
            "a block of the model gives a result of another shape when it is run again: it keeps a state between calls."
            " Remove the patch that does so, or let memory be 'fast'"
        )
    differences = [
        # What is not finite counts as 0: a picture that breaks is ended elsewhere.
        (new - old).nan_to_num(0.0, 0.0, 0.0).norm() / old.nan_to_num(0.0, 0.0, 0.0).norm().clamp(min=1e-30)
        for old, new in zip(first, again, strict=True)
    ]
    return torch.stack([each.float() for each in differences]).max()
