"""ComfyUI nodes: the only part of the pack that imports comfy."""

from comfy_api.latest import ComfyExtension

from .combine import DNOCombineRewards
from .embedded import DNOLoadEmbeddedModel
from .noise import DNOLoadNoise, DNONoiseFromBatch, DNONoiseProbability, DNOReplayNoise, DNOSaveNoise
from .pixel_rewards import DNOColorReward, DNOContrastReward, DNOSaturationReward, DNOSharpnessReward
from .regularizers import DNONormRegularizer, DNOProbabilityRegularizer
from .report import DNODiagnostics, DNOReport, DNOTrajectory
from .reward_models import (
    DNOAestheticReward,
    DNOCLIPScoreReward,
    DNOCycleReward,
    DNODirectionReward,
    DNOHPSReward,
    DNOImageReward,
    DNOImageSimilarityReward,
    DNOPickScoreReward,
)
from .rewards import DNOBrightnessReward, DNOConsistencyReward, DNOJPEGReward
from .sampler import DNOSampler, DNOSamplerAdvanced
from .score import DNOPickBest, DNOScoreImages
from .solvers import DNOSolverGradient, DNOSolverLGD, DNOSolverSearch, DNOSolverZeNO, DNOSolverZerothOrder

NODES = [
    DNOSampler,
    DNOSamplerAdvanced,
    DNOSolverGradient,
    DNOSolverZerothOrder,
    DNOSolverZeNO,
    DNOSolverSearch,
    DNOSolverLGD,
    DNOProbabilityRegularizer,
    DNONormRegularizer,
    DNOBrightnessReward,
    DNOConsistencyReward,
    DNOJPEGReward,
    DNOHPSReward,
    DNOPickScoreReward,
    DNOImageReward,
    DNOCycleReward,
    DNOCLIPScoreReward,
    DNOAestheticReward,
    DNOImageSimilarityReward,
    DNODirectionReward,
    DNOContrastReward,
    DNOSaturationReward,
    DNOSharpnessReward,
    DNOColorReward,
    DNOCombineRewards,
    DNOScoreImages,
    DNOPickBest,
    DNOReport,
    DNOTrajectory,
    DNODiagnostics,
    DNOSaveNoise,
    DNOLoadNoise,
    DNONoiseFromBatch,
    DNOReplayNoise,
    DNONoiseProbability,
    DNOLoadEmbeddedModel,
]


class Extension(ComfyExtension):
    """What ComfyUI asks the pack's `comfy_entrypoint` for."""

    async def get_node_list(self):
        return NODES
