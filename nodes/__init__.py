"""ComfyUI nodes: the only part of the pack that imports comfy."""

from comfy_api.latest import ComfyExtension

from .embedded import DNOLoadEmbeddedModel
from .report import DNOReport, DNOTrajectory
from .rewards import DNOBrightnessReward, DNOConsistencyReward
from .sampler import DNOSampler
from .solvers import DNOProbabilityRegularizer, DNOSolverGradient

NODES = [
    DNOSampler,
    DNOSolverGradient,
    DNOProbabilityRegularizer,
    DNOBrightnessReward,
    DNOConsistencyReward,
    DNOReport,
    DNOTrajectory,
    DNOLoadEmbeddedModel,
]


class Extension(ComfyExtension):
    """What ComfyUI asks the pack's `comfy_entrypoint` for."""

    async def get_node_list(self):
        return NODES
