"""Tiny random-weight versions of every model family that ComfyUI supports, and what is measured of them."""

from . import pictures, unets, videos

VERSION = "version"
"""In place of a family's name: tell of this ComfyUI."""
FAMILIES = [*unets.FAMILIES, *pictures.FAMILIES, *videos.FAMILIES]

SOUND = "makes sound, which rewards of pictures do not judge"
SHAPES = "makes 3-D shapes, which rewards of pictures do not judge"
NESTED = "makes video and sound in one nested latent, which the DNO Sampler refuses"
NO_SAMPLER = "looks at pictures and samples nothing"
NOT_TRIED = {
    "StableAudio": SOUND, "StableAudio3": SOUND, "ACEStep": SOUND, "ACEStep15": SOUND, "MiniMaxMusic3": SOUND,
    "Hunyuan3Dv2": SHAPES, "Hunyuan3Dv2mini": SHAPES, "Hunyuan3Dv2_1": SHAPES, "TripoSplat": SHAPES, "Trellis2": SHAPES,
    "LTXAV": NESTED, "MiniMaxH3": NESTED,
    "RT_DETR_v4": NO_SAMPLER, "SAM3": NO_SAMPLER, "SAM31": NO_SAMPLER, "DepthAnything3": NO_SAMPLER,
}  # fmt: skip
"""Classes of `comfy.supported_models` without a family here, and why."""
