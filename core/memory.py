"""How much of a pullback's graphs is kept, and how they are made: the memory of a search with gradients.

Per step of a run, in units of its network's call:

    fast    graphs kept from the forward to the backward pass     time 2     memory: every step's graph
    step    each step run again on the way back                   time 3     one step's graph
    low     run again, and block by block (`blocks.py`)           time 4     the blocks' inputs, and one block's graph

"auto", or a number of GiB, takes the fastest of these that fits. In the first run it counts what autograd would keep of
one step and of the decoder, by saving nothing but its size (`Saved`). After the first iteration, when all that a search
needs is in memory, it looks at what is free, and keeps as many steps' graphs as fit: whole ones, or where not even one
fits, those of blocks. Whatever the setting, memory that runs out moves it down by one row (`Plan.lower`). A decoder of
which not even a block's graph fits goes back in tiles (`tiles.py`), whose gradient is not quite the whole one's.
"""

import contextlib
import logging
import math
import weakref
from dataclasses import dataclass

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from .blocks import tensors_in

log = logging.getLogger(__name__)

GIB = 2**30

SETTINGS = "fast", "step", "low", "auto"

# Of the free memory, the part that graphs may take: a reward has a graph too, and allocators lose some between tensors.
SHARE = 0.8

STEP, DECODER, GUIDED = "step", "decoder", "guided step"
"""What is differentiated at once: a step's network, the decoder, or both together (`guided.py`)."""

# Sides in latents, of 512 and 256 pixels of an 8-fold VAE.
TILES = 64, 32


def is_out_of_memory(error):
    """Return whether `error` says that a device has no memory left, in the words of any of PyTorch's backends."""
    if isinstance(error, torch.cuda.OutOfMemoryError):  # since PyTorch 2.5 every backend's, but for MPS
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error).lower()


def free_bytes(device):
    """Return the bytes that are free for new tensors on a CUDA device; None for others, of which it is not known."""
    device = torch.device(device)
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def check_memory(memory):
    """Raise ValueError unless `memory` is one of `SETTINGS`, a number of GiB above 0, or None."""
    number = isinstance(memory, (int, float)) and not isinstance(memory, bool)
    if memory is None or memory in SETTINGS or (number and 0 < memory < math.inf):
        return
    raise ValueError(f"memory is {memory!r}; expected one of {', '.join(SETTINGS)}, or a number of GiB above 0")


@dataclass(frozen=True)
class Size:
    """Bytes that autograd keeps of one stage.

    Attributes:
        whole: of the stage as it is.
        inputs: made block by block, of what is outside of blocks, and their inputs.
        block: of the largest block by itself.
    """

    whole: int
    inputs: int
    block: int

    @property
    def by_blocks(self):
        """The most that is kept at once when it goes back block by block."""
        return self.inputs + self.block

    def beside(self, other):
        """Return the `Size` of this stage and another one whose graphs are there at once."""
        return Size(self.whole + other.whole, self.inputs + other.inputs, max(self.block, other.block))


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Counts what autograd would keep of the graphs made inside of the context; it keeps nothing, nor can it go back.

    Tensors that share a storage count once, as they take memory once. Weights, which are there anyway, do not count.

    Example:
        >>> x = torch.ones(1000, requires_grad=True)
        >>> with Saved() as saved:
        ...     y = x.exp().sin()  # each keeps 4000 bytes: exp its result and sin its argument, which are the same
        >>> saved.size.whole
        4000

    Args:
        blocks: a `Blocks`, to count by blocks too, or None.
    """

    def __init__(self, blocks=None):
        super().__init__(self._pack, self._unpack)
        self._inputs, self._outside, self._inside, self._now = {}, {}, [], None
        networks = () if blocks is None else blocks.networks
        weights = [each for network in networks for each in (*network.parameters(), *network.buffers())]
        weights = [weight for weight in weights if not hasattr(weight, "__tensor_flatten__")]
        self._weights = {StorageWeakRef(weight.untyped_storage()) for weight in weights}

    def __enter__(self):
        super().__enter__()
        return self

    def _unpack(self, _):
        raise RuntimeError("this graph was made to count what it keeps, and kept nothing; make another to go back")

    def _pack(self, tensor):
        self._count(tensor, self._outside if self._now is None else self._inside[self._now])

    def _count(self, tensor, place):
        weight = isinstance(tensor, torch.nn.Parameter) or isinstance(tensor._base, torch.nn.Parameter)
        if weight or hasattr(tensor, "__tensor_flatten__"):  # quantised ones are weights too
            return
        storage = tensor.untyped_storage()
        # Held on to, a reference keeps what would be kept apart from what comes in a freed one's place.
        key = StorageWeakRef(storage)
        if key not in self._weights:
            place[key] = storage.nbytes()

    def through(self, block, *args, **kwargs):
        """Run a block and count what it keeps apart from the rest, but for its inputs."""
        if block.whole:
            return block.forward(*args, **kwargs)
        for tensor in tensors_in((args, kwargs)):
            if tensor.requires_grad:
                self._count(tensor, self._inputs)
        self._now = len(self._inside)
        self._inside.append({})
        try:
            return block.forward(*args, **kwargs)
        finally:
            self._now = None

    @property
    def size(self):
        """The `Size` of what was counted."""
        whole, kept = dict(self._outside), self._outside | self._inputs
        for inside in self._inside:
            whole |= inside
        alone = [sum(size for key, size in inside.items() if key not in kept) for inside in self._inside]
        return Size(sum(whole.values()), sum(kept.values()), max(alone, default=0))


class Plan:
    """How a map's pullbacks make the graphs of their stages, and how many they keep; it learns as they run.

    Example:
        >>> plan = Plan()
        >>> plan.follow("fast")
        >>> plan.kept
        inf
        >>> plan.lower(STEP), plan.kept  # as where memory has run out
        (True, 0)
        >>> plan.lower(STEP)  # the map's networks are not known, so there are no blocks
        False

    Args:
        blocks: the `Blocks` of the networks that a step calls, or None.
        decoder_blocks: of those that decode, or None.
        free: () -> the bytes that are free for graphs, or None where it is not known.

    Attributes:
        memory: the setting that it follows, as `SampleMap.memory`.
        kept: of how many of a run's last steps the graphs are kept.
        by_blocks: the stages, of `STEP`, `DECODER` and `GUIDED`, that are differentiated block by block.
        sizes: stage -> `Size`, where it was counted.
        tile: side of the tiles, in latents, that the decoder goes back in; None: whole.
        longest: side of the latent, in latents; 0 where the decoder cannot go back in tiles, see `tiles.fits`.
        always_counts: whether stages are counted once under every setting that keeps no graph, for who wants to know.
        runs: the `Pullback`s that are not over.
    """

    def __init__(self, blocks=None, decoder_blocks=None, free=lambda: None):
        self._blocks, self._free = {STEP: _known(blocks), DECODER: _known(decoder_blocks)}, free
        self._blocks[GUIDED], self._counting = [*self._blocks[STEP], *self._blocks[DECODER]], False
        self.memory, self.kept, self.by_blocks, self.sizes, self._settled = None, 0, set(), {}, True
        self.tile, self.longest, self.always_counts, self.runs = None, 0, False, weakref.WeakSet()

    def follow(self, memory):
        """Begin anew with a setting, unless it is followed already; what graphs are kept under another, let go of."""
        if memory == self.memory:
            return
        for run in self.runs:
            run.graphs.clear()
        self.memory, self.sizes, self._settled = memory, {}, memory in ("fast", "step", "low")
        self.kept = math.inf if memory == "fast" else 0
        self.by_blocks = {STEP, DECODER, GUIDED} if memory == "low" else set()
        self.tile = None

    def counts(self, stage):
        """Whether the next graph of a stage shall be made by `counted`."""
        wanted = not self._settled or (self.always_counts and not self.kept)
        return wanted and stage not in self.sizes

    def counted(self, stage, run):
        """Return run(), which makes a graph that cannot go back; what autograd would keep decides how others are."""
        (blocks,) = self._blocks[stage] or [None]
        self._counting = True
        try:
            with Saved(blocks) as saved, contextlib.nullcontext() if blocks is None else blocks.counted(saved):
                result = run()
        finally:
            self._counting = False
        self.note(stage, saved.size)
        return result

    def note(self, stage, size):
        """Take down the `Size` of a stage; where that is not settled, one that does not fit goes block by block."""
        self.sizes[stage], room = size, None if self._settled else self._room()
        if room is not None and size.whole > room:
            self.by_blocks.add(stage)
        if room is not None and stage == DECODER and size.by_blocks > room:
            self.tile = self._smaller_tile()

    @contextlib.contextmanager
    def graph(self, stage):
        """Make the graph of a stage inside of this context."""
        with contextlib.ExitStack() as replaced:
            if stage in self.by_blocks and not self._counting:
                for blocks in self._blocks[stage]:
                    replaced.enter_context(blocks.checkpointed())
            yield

    def settle(self):
        """Decide how many graphs are kept from now on; called when an iteration is over and all else in memory."""
        room = None if self._settled else self._room()
        self._settled = True
        if room is None or STEP not in self.sizes:
            return
        step, decoder = self.sizes[STEP], self.sizes.get(DECODER, Size(0, 0, 0))
        each, beside = (step.inputs, step.block) if STEP in self.by_blocks else (step.whole, 0)
        beside = max(beside, decoder.by_blocks if DECODER in self.by_blocks else decoder.whole)
        self.kept = max(int((room - beside) // max(each, 1)), 0)
        log.info(
            "a step's graph takes %.2f GiB and the decoder's %.2f, %.2f GiB are free for them: %s",
            step.whole / GIB, decoder.whole / GIB, room / GIB, self._in_words(),
        )  # fmt: skip

    def _in_words(self):
        kept = "all" if self.kept == math.inf else self.kept
        how = f"{' and '.join(sorted(self.by_blocks))} block by block" if self.by_blocks else "each whole"
        words = f"{kept} steps' graphs are kept, {how}"
        return words if self.tile is None else f"{words}, the decoder in tiles of {self.tile} latents"

    def _room(self):
        """Return the bytes that graphs may take, or None where it is not known."""
        if self.memory != "auto":
            return self.memory * GIB
        free = self._free()
        return None if free is None else SHARE * free

    def lower(self, stage=None):
        """Take less memory from now on, in a stage where one is named; return whether there was a way."""
        if self.kept and stage != GUIDED:  # whose runs keep none
            self.kept = 0
        elif stage not in self.by_blocks and any(blocks.all for blocks in self._blocks.get(stage, ())):
            self.by_blocks.add(stage)
        elif stage == DECODER and self._smaller_tile() != self.tile:
            self.tile = self._smaller_tile()
        else:
            return False
        log.warning("out of memory: from now on %s", self._in_words())
        return True

    def _smaller_tile(self):
        """Return the largest side of a tile that is smaller than the latest, and than the latent; or the latest."""
        longest = self.longest if self.tile is None else self.tile
        return next((side for side in TILES if side < longest), self.tile)

    def retried(self, run, let_go, stage=None):
        """Return run(); where memory runs out, of run() again after let_go(), for as long as there is less to take.

        `stage` is the one that it makes graphs of, if any.
        """
        while True:
            try:
                return run()
            except RuntimeError as error:
                if not is_out_of_memory(error) or not self.lower(stage):
                    raise
            let_go()  # out here, where the error no longer holds on to what it was made of

    def unlike(self):
        """Return the names of blocks that did not repeat themselves; they are left whole from now on."""
        return [name for blocks in self._blocks[GUIDED] for name in blocks.unlike()]


def _known(blocks):
    return [] if blocks is None else [blocks]
