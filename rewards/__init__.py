"""Rewards: `reward(images, prompts) -> scores`, higher is better.

What images, prompts and scores are, and what a reward may have besides, is said in `core.scoring`.

Any callable is one, so a reward of your own needs no class:

    def warmth(images, prompts=None):
        return (images[:, 0] - images[:, 2]).mean(dim=(1, 2))

    core.optimize(sample_map, warmth, noise)
    core.optimize(sample_map, rewards.Combine([warmth, rewards.Contrast()], weights=[1, 0.5]), noise)

It is called by its `__name__` and held to be differentiable; set `warmth.differentiable = False` where its scores carry
no gradient.

One picture's way to its score, and back to the gradient by the picture:

    core.scoring.exact
      Combine.image_gradient        part by part: scores and gradients add up
        Jittered.image_gradient     crop by crop
          TowerReward.__call__      Preprocess -> ClipTower.image_embeds -> a cosine          (HPS, PickScore, ..)
                                    Preprocess -> VisionTower.embed -> a cosine               (DINOv2, SigLIP)
          ImageReward.__call__      BlipTower.judge: Preprocess, both towers, the head
          MPS.__call__              MpsTower.judge: Preprocess, both towers, what the patches read, a cosine
          FaceSimilarity.__call__   FaceDetector -> a Frame, cropped -> FaceNetTower or OnnxTower -> a cosine
          ONNX.__call__             OnnxPixels -> OnnxTower's network, operator by operator -> a number of its output
          LPIPS.__call__            LpipsTower.features of picture and reference -> a distance
          ShownText.__call__        a box, OnnxPixels -> OnnxTower's network -> CTC
          VLMJudge.__call__         8 bits -> VlmTower.answers: processor, model, logits of yes and no; no gradient
            networks.run            out of and into float32, whatever the network's dtype
"""

from .aesthetic import Aesthetic, AestheticV25
from .blip_tower import BlipTower
from .clip import HPS, CLIPScore, Directions, PickScore, Similarity
from .clip_tower import ClipTower
from .combine import Combine, in_parity, typical
from .consistency import Consistency
from .dinov2 import DINOv2Similarity
from .face import FaceSimilarity
from .facenet_tower import FaceNetTower
from .image_reward import CycleReward, ImageReward
from .iqa import IQA
from .jitter import Jittered
from .jpeg import JPEG, JPEGProxy
from .layout import Layout, Palette, Symmetry
from .lpips import LPIPS
from .lpips_tower import LpipsTower
from .mps import MPS
from .mps_tower import MpsTower
from .mtcnn import FaceDetector
from .onnx import ONNX, OnnxPixels
from .onnx_tower import OnnxTower
from .pixels import Brightness, ColorTarget, Contrast, Saturation, Sharpness
from .shown_text import ShownText
from .towers import load_tower
from .vision_tower import VisionTower
from .vlm_judge import HPSv3, VLMJudge
from .vlm_tower import VlmTower

__all__ = [
    "DINOv2Similarity",
    "HPS",
    "HPSv3",
    "JPEG",
    "LPIPS",
    "MPS",
    "ONNX",
    "Aesthetic",
    "AestheticV25",
    "BlipTower",
    "Brightness",
    "CLIPScore",
    "ClipTower",
    "ColorTarget",
    "Combine",
    "Consistency",
    "Contrast",
    "CycleReward",
    "Directions",
    "FaceDetector",
    "FaceNetTower",
    "FaceSimilarity",
    "IQA",
    "ImageReward",
    "JPEGProxy",
    "Jittered",
    "Layout",
    "LpipsTower",
    "MpsTower",
    "OnnxPixels",
    "OnnxTower",
    "Palette",
    "PickScore",
    "Saturation",
    "Sharpness",
    "ShownText",
    "Similarity",
    "Symmetry",
    "VLMJudge",
    "VisionTower",
    "VlmTower",
    "in_parity",
    "load_tower",
    "typical",
]
