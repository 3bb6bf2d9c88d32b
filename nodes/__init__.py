"""ComfyUI nodes: the only part of the pack that imports comfy.

    sampler          the DNO Sampler nodes, in KSampler's place
    ask              DNO Ask: a person in the place of a reward
    search_sampler   the search as a SAMPLER, for nodes of other packs
    search           a search inside ComfyUI's sampling: what the sampler nodes run
    comfy_map        ComfyUI's sampling as a `core.SampleMap`; the way of one noise tensor is written at its top
    stock_samplers   ComfyUI's own samplers, as core's `SamplerMap` takes them
    gradients        what makes ComfyUI's models differentiable for the duration of a search
    weights, recast  tensors that autograd accepts; weights that are stored in few bits
    hooks            each prompt's own LoRAs, as gradients and repeated runs need them
    patches          what other nodes' patches may do: refused, or found out by a few calls before a search
    solvers          how the noise is changed
    regularizers     what keeps it probable
    rewards/         what is searched for
    noise            save, load, replay and judge noises
    report           what a search did: curves, trajectory, diagnosis
    embedded_model   the small model that ships with the pack
    names            names of files in workflows
    requirements     packages that may be missing, and how to install them
    page             what a person sees of a search while it runs
    sockets          the pack's own types of links
"""

from comfy_api.latest import ComfyExtension

from . import requirements
from .ask import DNOAsk
from .embedded_model import DNOLoadEmbeddedModel
from .noise import DNOLoadNoise, DNONoiseFromBatch, DNONoiseProbability, DNOReplayNoise, DNOSaveNoise, DNOVariations
from .page import offer_to_stop
from .regularizers import DNONormRegularizer, DNOPictureRegularizer, DNOProbabilityRegularizer
from .report import DNODiagnostics, DNOReport, DNOTrajectory
from .rewards import REWARDS
from .sampler import DNOSampler, DNOSamplerAdvanced
from .search_sampler import DNOSearchSampler
from .solvers import (
    DNOSolverFast,
    DNOSolverGradient,
    DNOSolverLGD,
    DNOSolverSearch,
    DNOSolverTilt,
    DNOSolverTrust,
    DNOSolverZeNO,
    DNOSolverZerothOrder,
)

NODES = [
    DNOSampler,
    DNOSamplerAdvanced,
    DNOSearchSampler,
    DNOAsk,
    DNOSolverGradient,
    DNOSolverTrust,
    DNOSolverTilt,
    DNOSolverFast,
    DNOSolverZerothOrder,
    DNOSolverZeNO,
    DNOSolverSearch,
    DNOSolverLGD,
    DNOProbabilityRegularizer,
    DNONormRegularizer,
    DNOPictureRegularizer,
    *REWARDS,
    DNOReport,
    DNOTrajectory,
    DNODiagnostics,
    DNOSaveNoise,
    DNOLoadNoise,
    DNONoiseFromBatch,
    DNOVariations,
    DNOReplayNoise,
    DNONoiseProbability,
    DNOLoadEmbeddedModel,
]


class Extension(ComfyExtension):
    """What ComfyUI asks the pack's `comfy_entrypoint` for."""

    async def get_node_list(self):
        requirements.warn()
        offer_to_stop()  # here, for ComfyUI 0.3.75 asks for nothing else
        return NODES
