"""Counts the bytes of all tensors that are alive while a block runs, by watching every operation."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts storages that operations make inside of the block, for as long as something holds them.

    Attributes:
        now: bytes alive.
        peak: the most that were alive at once.
    """

    def __init__(self):
        super().__init__()
        self.now, self.peak, self._known = 0, 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        for leaf in tree_leaves(found):
            if torch.is_tensor(leaf) and leaf.untyped_storage()._cdata not in given:
                self._count(leaf.untyped_storage())
        return found

    def _count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key):
        self.now -= self._known.pop(key)
