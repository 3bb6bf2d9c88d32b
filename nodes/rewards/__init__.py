"""Reward nodes: each gives one DNO_REWARD, a `reward(images, prompts) -> scores`.

    pixels        judge the pixels alone: brightness, contrast, colour, a JPEG's size ..
    layout        judge where shapes stand, a palette, a symmetry
    iqa           the metrics of the package pyiqa, for whom has it
    consistency   knows the embedded model's pictures
    belief        asks the model that is searched; to watch
    networks      read a file of the user's; `files` lists the files and lets ComfyUI manage their networks
    onnx          likewise, any network in an ONNX file
    text          likewise, a recogniser of text lines
    vlm           likewise, a vision-language model in a folder
    combine       several as one
    score         what a reward thinks of pictures that are there already; `gate` parts them
"""

from .belief import DNOBelief
from .combine import DNOCombineRewards
from .consistency import DNOConsistencyReward
from .gate import DNOGate
from .iqa import DNOIQAReward
from .layout import DNOLayoutReward, DNOPaletteReward, DNOSymmetryReward
from .networks import (
    DNOAestheticReward,
    DNOAestheticV25Reward,
    DNOCLIPScoreReward,
    DNOCycleReward,
    DNODINOv2SimilarityReward,
    DNODirectionReward,
    DNOFaceReward,
    DNOHPSReward,
    DNOImageReward,
    DNOImageSimilarityReward,
    DNOLPIPSReward,
    DNOMPSReward,
    DNOPickScoreReward,
)
from .onnx import DNOONNXReward
from .pixels import (
    DNOBrightnessReward,
    DNOColorReward,
    DNOContrastReward,
    DNOJPEGReward,
    DNOSaturationReward,
    DNOSharpnessReward,
)
from .score import DNOPickBest, DNOScoreImages
from .text import DNOTextReward
from .vlm import DNOVLMJudgeReward

REWARDS = [
    DNOBrightnessReward,
    DNOConsistencyReward,
    DNOJPEGReward,
    DNOHPSReward,
    DNOPickScoreReward,
    DNOMPSReward,
    DNOImageReward,
    DNOCycleReward,
    DNOCLIPScoreReward,
    DNOAestheticReward,
    DNOAestheticV25Reward,
    DNOImageSimilarityReward,
    DNODINOv2SimilarityReward,
    DNOFaceReward,
    DNOLPIPSReward,
    DNODirectionReward,
    DNOVLMJudgeReward,
    DNOTextReward,
    DNOONNXReward,
    DNOContrastReward,
    DNOSaturationReward,
    DNOSharpnessReward,
    DNOColorReward,
    DNOPaletteReward,
    DNOSymmetryReward,
    DNOLayoutReward,
    DNOIQAReward,
    DNOBelief,
    DNOCombineRewards,
    DNOScoreImages,
    DNOPickBest,
    DNOGate,
]
