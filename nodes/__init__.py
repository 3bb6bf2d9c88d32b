"""ComfyUI nodes: the only part of the pack that imports comfy."""

from comfy_api.latest import ComfyExtension

from .rewards import DNOBrightnessReward
from .sampler import DNOSampler
from .solvers import DNOProbabilityRegularizer, DNOSolverGradient

NODES = [
    DNOSampler,
    DNOSolverGradient,
    DNOProbabilityRegularizer,
    DNOBrightnessReward,
]


class Extension(ComfyExtension):
    """What ComfyUI asks the pack's `comfy_entrypoint` for."""

    async def get_node_list(self):
        return NODES
