"""Which models of a search are in memory: all of them while they fit together, else those of the stage that runs.

    model --denoise--> latent --VAE--> pictures --towers--> scores

A search goes through these stages forwards and backwards, many times. While all models fit, each is loaded once, whole,
and stays. Where they do not, each stage loads what it runs; ComfyUI moves the others out, and what does not even fit
alone it leaves in part outside (`recast` differentiates that). Results are the same, and moving takes time.
"""

import contextlib
import logging
import time

import comfy.model_management as mm
import torch

from .weights import rewrap

log = logging.getLogger(__name__)

_now = []
"""The `Residency` of the search that runs, or none."""


@contextlib.contextmanager
def of_a_search():
    """Yield the `Residency` of the search that begins; until it ends, towers are loaded by it."""
    _now.append(Residency())
    try:
        yield _now[-1]
    finally:
        _now.pop()


def load_tower(patcher, memory_required):
    """Load a reward's network whole, as the search that runs can have it in memory; `memory_required` is beside it."""
    if _now:
        _now[-1].beside(patcher, memory_required)
    else:
        load([patcher], memory_required, force_full_load=True)
        rewrap(patcher.model)


@torch.inference_mode()
def load(patchers, memory_required, **how):
    """Load models as ComfyUI's own nodes do: in inference mode, since moving its tensors outside of it breaks them."""
    mm.load_models_gpu(patchers, memory_required=memory_required, **how)


class Residency:
    """The models of one search.

    Tensors of a model that is loaded here are made fit for autograd. They stay so when the search is over: they are the
    same storage, and in inference mode as good as before.

    Attributes:
        together: whether all are in memory at once, so that there is nothing to load before a stage.
        loads, seconds: how often a stage had to load its models, and how long that took in all.
    """

    def __init__(self):
        self.together, self.loads, self.seconds = True, 0, 0.0
        self._patchers, self._towers, self._beside = [], [], 0  # the bytes that graphs of the search's models take
        self._latest, self._in_turns = None, lambda: None

    def when_in_turns(self, tell):
        """Call tell() if the models take turns already, or else once they begin to."""
        self._in_turns = tell
        if not self.together:
            tell()

    def begin(self, patchers, memory_required):
        """Load the models of a search if they fit together, else none yet.

        Args:
            patchers: ComfyUI's, of all but the rewards.
            memory_required: ways to search -> the bytes that each takes beside the weights, the dearest first.

        Returns:
            the first way for which all fit together, or the last.
        """
        self._patchers = list(dict.fromkeys(patchers))
        fitting = (way for way, size in memory_required.items() if self._fit(self._patchers, size))
        way = next(fitting, list(memory_required)[-1])
        self._beside = memory_required[way]
        self._load_together(self._patchers, self._beside)
        return way

    def beside(self, tower, memory_required):
        """Load a reward's network beside the models of the search; where it does not fit, in their place.

        It must fit beside the other networks of the reward too, and leave the room that the search's own graphs take.
        A search that has not begun, since it differentiates none of its models, loads each of them before it runs.
        """
        if not self._patchers:
            load([tower], memory_required, force_full_load=True)
            _rewrap([tower])
            return
        self._towers = list(dict.fromkeys([*self._towers, tower]))
        if self.together:
            self._load_together([*self._towers, *self._patchers], max(memory_required, self._beside))
        self._enter([tower], memory_required, force_full_load=True)

    def stage(self, patchers, memory_required, whole=False):
        """Return a function to call before each run of a stage, which loads its models where not all are in memory.

        Args:
            patchers: ComfyUI's, of the models that it runs.
            memory_required: () -> bytes, beside the weights; asked each time, since a search learns what it takes.
            whole: for a network that cannot run from outside of the device's memory.
        """

        def enter():
            if not self.together:
                self._enter(patchers, memory_required(), force_full_load=whole)

        return enter

    def _load_together(self, patchers, memory_required):
        self.together = self._fit(patchers, memory_required)
        if self.together:
            load(patchers, memory_required, force_full_load=True)
            self.together = all(map(_is_whole, patchers))  # ComfyUI may have been told to keep none in memory
        if self.together:
            _rewrap(patchers)
        else:
            log.info("the models of this search are not in memory together: each is loaded when it runs")
            self._in_turns()

    def _fit(self, patchers, memory_required):
        """Whether models fit into memory together once others have been moved out."""
        if mm.vram_state in (mm.VRAMState.HIGH_VRAM, mm.VRAMState.SHARED):
            return True  # there is no other memory to move models to
        missing = {}
        for patcher in patchers:
            missing[patcher.load_device] = missing.get(patcher.load_device, 0) + _missing(patcher)
        beside = max(mm.minimum_inference_memory(), memory_required + mm.extra_reserved_memory())
        return all(
            _makes_room(device, weights + beside, patchers)
            for device, weights in missing.items()
            if device != torch.device("cpu")
        )

    def _enter(self, patchers, memory_required, **how):
        if self.together or (self._latest == (patchers, memory_required) and all(map(_is_loaded, patchers))):
            return
        begun = time.monotonic()
        load(patchers, memory_required, **how)
        _rewrap(patchers)
        self._latest = patchers, memory_required
        self.loads, self.seconds = self.loads + 1, self.seconds + time.monotonic() - begun


def _rewrap(patchers):
    for patcher in patchers:
        for each in (patcher, *patcher.model_patches_models()):  # which ComfyUI loads with it
            rewrap(each.model)


@torch.inference_mode()
def _makes_room(device, size, patchers):
    """Move out others than these patchers until so many bytes are free; return whether they are."""
    if mm.get_free_memory(device) < size:
        ours = [loaded for loaded in mm.current_loaded_models if loaded.model in patchers]
        mm.free_memory(size, device, keep_loaded=ours)
    return mm.get_free_memory(device) >= size


def _missing(patcher):
    """Return the bytes of a model's weights that are not in its device's memory."""
    return max(patcher.model_size() - patcher.loaded_size(), 0)


def _is_whole(patcher):
    """Whether all of a model's weights are in memory, and stay while they are in use."""
    if getattr(patcher, "is_dynamic", bool)() or getattr(patcher.model, "model_lowvram", False):
        return False
    return _is_loaded(patcher)


def _is_loaded(patcher):
    """Whether a model is in memory, maybe in part."""
    return any(loaded.model is patcher for loaded in mm.current_loaded_models)
