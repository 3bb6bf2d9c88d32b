"""Gradients of networks that change in place what autograd has saved, as Flux, ControlNet and FreeU_V2 do."""

import contextlib
import logging
import weakref

import torch

log = logging.getLogger(__name__)

CHANGED = "modified by an inplace operation"


class InPlace:
    """Which stages of a sampling run change in place what their gradient needs; those are differentiated with copies.

    Autograd notices such a change in the backward pass, and raises. The stage alone is then run again while PyTorch
    keeps copies of what is about to be changed. To watch for that costs time with every operation (see docs/costs.md),
    so a stage is differentiated without until its first error, and with copies from then on.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> def gradient():
        ...     y = x * 3
        ...     z = y * y  # saves y
        ...     y.add_(1)  # and here y is changed
        ...     return torch.autograd.grad(z.sum(), x)[0]
        >>> stages = InPlace()
        >>> stages.differentiate("model", gradient)
        tensor([18., 18.])
        >>> stages.found
        {'model'}

    Attributes:
        found: the names of the stages that need copies.
    """

    def __init__(self):
        self.found = set()

    def differentiate(self, stage, gradient):
        """Return gradient(), a function that runs `stage` with a graph and goes back through it; maybe called twice."""
        if stage not in self.found:
            try:
                return gradient()
            except RuntimeError as error:
                if CHANGED not in str(error):
                    raise
            # Out here, where the error no longer holds on to the first run's graph.
            log.info("the %s changes tensors in place that its gradient needs: copies are kept", stage)
            self.found.add(stage)
        with copies_kept():
            return gradient()


@contextlib.contextmanager
def copies_kept():
    """Let tensors be changed in place that autograd has saved: a copy of each is kept, by PyTorch's own means.

    PyTorch knows a saved tensor by its id, address and version. Once it is copied nothing holds on to it, and another
    tensor may get all three of a freed one: PyTorch (seen in 2.14) then takes the copy for its, and the gradient is
    wrong without a word. So what is copied is forgotten at once. Its version has changed: nobody asks for it again.
    """
    with torch.autograd.graph.allow_mutation_on_saved_tensors() as context:
        context.tid_to_weakhandle = _Handles()
        context.cloned = _Copies(context.tid_to_weakhandle)
        yield


class _Handles(weakref.WeakValueDictionary):
    """Name of a saved tensor -> PyTorch's handle of it, which learns the name."""

    def __setitem__(self, name, handle):
        handle.name = name
        super().__setitem__(name, handle)


class _Copies(weakref.WeakKeyDictionary):
    """Handle -> copy; whoever has one loses the name.

    Args:
        handles: the _Handles.
    """

    def __init__(self, handles):
        super().__init__()
        self.handles = handles

    def __setitem__(self, handle, copy):
        super().__setitem__(handle, copy)
        self.handles.pop(handle.name, None)
