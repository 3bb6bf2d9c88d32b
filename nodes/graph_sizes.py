"""How much memory the graphs of a search take, told to ComfyUI, which knows nothing of graphs.

ComfyUI estimates what running a network takes. What autograd keeps of that network is in proportion to it, whatever the
size of the picture: so much was counted in the latest search by a network of its class. Before there was one, the
largest proportions count of SD 1.5, SDXL, SD3 and Flux at their sizes and of their VAEs (docs/costs.md).
"""

from dataclasses import dataclass

from ..core.memory import DECODER, STEP, Plan

FIRST = {STEP: (20.0, 2.5), DECODER: (2.7, 1.25)}
"""Stage -> what is kept whole, and by blocks, of each byte that ComfyUI estimates for running it."""

_counted = {}


def of(stage, network, running):
    """Return the bytes that a graph of a stage takes, whole and made block by block.

    Example:
        >>> import torch
        >>> of(STEP, torch.nn.Identity(), 100)
        (2000.0, 250.0)

    Args:
        stage: STEP or DECODER.
        network: the nn.Module that runs in it.
        running: bytes that ComfyUI estimates for running it without a graph.
    """
    whole, by_blocks = _counted.get((stage, type(network)), FIRST[stage])
    return whole * running, by_blocks * running


def remember(stage, network, running, size):
    """Take down the `core.memory.Size` that was counted of a stage for which ComfyUI estimates `running` bytes."""
    if running > 0 and size.whole > 0:
        _counted[stage, type(network)] = size.whole / running, size.by_blocks / running


@dataclass
class Stages:
    """What the stages of one search take beside weights: what earlier searches say, until this one has counted.

    Attributes:
        estimated: stage -> the network that runs in it, and the bytes that ComfyUI estimates for that without a graph.
        plan: the `core.memory.Plan` of the search, once there is one.
    """

    estimated: dict
    plan: Plan | None = None

    def sizes(self, stage):
        """Return the bytes that a graph of a stage takes, whole and made block by block."""
        counted = self.plan and self.plan.sizes.get(stage)
        return (counted.whole, counted.by_blocks) if counted else of(stage, *self.estimated[stage])

    def needed(self, stage):
        """Return the bytes that the stage's next graph takes, as the plan makes it; before there is one, whole."""
        whole, by_blocks = self.sizes(stage)
        return by_blocks if self.plan is not None and stage in self.plan.by_blocks else whole

    def remember(self):
        """Take down for later searches what this one has counted."""
        for stage, size in self.plan.sizes.items():
            if stage in self.estimated:
                remember(stage, *self.estimated[stage], size)
