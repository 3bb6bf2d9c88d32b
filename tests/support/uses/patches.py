"""Uses of the model's patches: other parametrisations, guidance, attention, caches, windows."""

from dataclasses import replace

import torch

from .pictures import mask
from .setting import Use, flow, latent, plain, prompt, random, stock, transformer

LOUD, ZERO_SNR = 2e-4, 1e-3
"""Rounding of float32 where x begins at 120 and 500 times the picture, and at 4500 times: four times what was found."""

CACHE = {"reuse_threshold": 5.0, "start_percent": 0.15, "end_percent": 0.95}


def patch(node, group, start=plain, name=None, idle=False, **inputs):
    """Return the use of one node that patches the model."""
    return Use(name or node, group, lambda setting: setting.patched(node, **inputs), start, idle=idle)


def large():
    """Return the plain setting with pictures of 128 pixels, which HyperTile and ToMe have something to do with."""
    return plain().but(latent=latent(height=16, width=16))


def one():
    """Return the plain setting with one picture: some nodes of ComfyUI take no more."""
    return plain().but(latent=latent(batch=1))


def six():
    """Return the plain setting with six steps, enough for caches to skip some."""
    return plain().but(steps=6)


class ImagePrompt:
    """What IP-Adapter packs do: the attention to a picture's words is added to that to the text's.

    Args:
        strength: of the picture.
        mask: (1, H, W), where it counts; or None.
    """

    def __init__(self, strength, mask=None):
        self.strength, self.mask = strength, mask

    def __call__(self, out, extra_options):
        rows, tokens, width = out.shape
        added = self.strength * torch.tanh(out.roll(1, dims=-1))
        if self.mask is not None:
            side = int(tokens**0.5)
            small = torch.nn.functional.interpolate(self.mask[None], (side, side)).reshape(1, tokens, 1)
            added = added * small
        return out + added


def image_prompted(setting, mask=None):
    model = setting.model.clone()
    model.set_model_attn2_output_patch(ImagePrompt(0.5, mask))
    return setting.but(model=model)


def image_tokens(setting):
    """Return the setting with a picture's words beside the text's in the attention."""
    words = random(1, 3, 16, seed=37)

    def add(q, k, v, extra_options):
        more = words.expand(len(k), -1, -1)
        return q, torch.cat([k, more], dim=1), torch.cat([v, more], dim=1)

    model = setting.model.clone()
    model.set_model_attn2_patch(add)
    return setting.but(model=model)


def operated(setting, node, **inputs):
    operation = stock(node, **inputs)
    return setting.patched("LatentApplyOperationCFG", operation=operation)


def four():
    return plain().but(latent=latent(batch=4))


def windows(name, dim, schedule="standard_static", **inputs):
    """Return the use of windows over a dimension of the latent: 0 is the batch, 3 the width.

    Over the batch they do nothing to a model whose pictures do not see each other, but for their noise.
    """
    length, start = (2, four) if dim == 0 else (4, one)
    sizes = {"dim": dim, "context_length": length, "context_overlap": length // 2}
    title = f"ContextWindowsManual, {name}"
    idle = dim == 0 and not inputs
    return patch("ContextWindowsManual", "Windows", start, title, idle, context_schedule=schedule, **sizes, **inputs)


def sampling(node, kind, rounding=1e-5, **inputs):
    """Return the use of a node that makes the model predict something else."""
    made = patch(node, "Parametrisations", name=", ".join([f"{node}, {kind}", *inputs]), sampling=kind, **inputs)
    return replace(made, rounding=rounding)


def skipping(node, **inputs):
    """Return the use of a node that skips layers of transformers; the tiny one's VAE is rough, so are its slopes."""
    inputs = {"start_percent": 0.0, **inputs}
    return Use(node, "Guidance", lambda setting: setting.patched(node, **inputs), transformer, slope=3e-3)


SAMPLINGS = [
    *(sampling("ModelSamplingDiscrete", kind) for kind in ("v_prediction", "lcm", "x0", "img_to_img")),
    sampling("ModelSamplingDiscrete", "v_prediction", ZERO_SNR, zsnr=True),
    *(
        sampling("ModelSamplingContinuousEDM", kind, LOUD)
        for kind in ("v_prediction", "edm", "edm_playground_v2.5", "eps", "cosmos_rflow")
    ),
    sampling("ModelSamplingContinuousV", "v_prediction", LOUD),
    patch("ModelSamplingSD3", "Parametrisations", shift=2.0),
    patch("ModelSamplingAuraFlow", "Parametrisations"),
    patch("ModelSamplingFlux", "Parametrisations", width=64, height=64),
    patch("ModelSamplingLTXV", "Parametrisations"),
    patch("ModelSamplingStableCascade", "Parametrisations"),
    patch("ModelNoiseScale", "Parametrisations", flow, noise_scale=1.5),
]

PATCHES = [
    patch("RescaleCFG", "Guidance"),
    patch("PerturbedAttentionGuidance", "Guidance"),
    patch("SelfAttentionGuidance", "Guidance"),
    skipping("SkipLayerGuidanceSD3", layers="0", end_percent=1.0),
    skipping("SkipLayerGuidanceDiT", double_layers="0", single_layers="", end_percent=1.0),
    skipping("SkipLayerGuidanceDiTSimple", double_layers="0", single_layers=""),
    patch("TCFG", "Guidance"),
    patch("APG", "Guidance", name="APG, momentum 0", norm_threshold=1.0),
    patch("APG", "Guidance", name="APG, momentum 0.5", norm_threshold=1.0, momentum=0.5),
    patch("CFGZeroStar", "Guidance"),
    patch("CFGNorm", "Guidance"),
    patch("CFGOverride", "Guidance", cfg=1.5, start_percent=0.0, end_percent=0.5),
    patch("RenormCFG", "Guidance", one, renorm_cfg=0.5),
    patch("PerpNeg", "Guidance", empty_conditioning=prompt(15)),
    patch("Mahiro", "Guidance"),
    patch("NAGuidance", "Guidance"),
    patch("VideoLinearCFGGuidance", "Guidance"),
    patch("VideoTriangleCFGGuidance", "Guidance"),
    patch("FreSca", "Guidance", freq_cutoff=2),
    patch("Epsilon Scaling", "Guidance", scaling_factor=1.05),
    patch("TemporalScoreRescaling", "Guidance", one),
    Use("LatentApplyOperationCFG, tonemap", "Guidance", lambda s: operated(s, "LatentOperationTonemapReinhard")),
    Use(
        "LatentApplyOperationCFG, sharpen",
        "Guidance",
        lambda s: operated(s, "LatentOperationSharpen", sharpen_radius=1, alpha=0.3),
    ),
    patch("FreeU", "Network"),
    patch("FreeU_V2", "Network"),
    patch("PatchModelAddDownscale", "Network", end_percent=0.6),
    patch("UNetSelfAttentionMultiply", "Network", q=1.2, out=0.9),
    patch("UNetCrossAttentionMultiply", "Network", k=1.2, out=0.9),
    patch("UNetTemporalAttentionMultiply", "Network", self_structural=1.2, cross_structural=0.9),
    patch("ModelAttentionBackend", "Network", idle=True, attention="pytorch attention"),
    patch("HyperTile", "Network", large, "HyperTile, always the same tiles", tile_size=32, swap_size=1),
    patch("HyperTile", "Network", large, "HyperTile, random tiles", tile_size=32, swap_size=4),
    patch("TomePatchModel", "Network", large, ratio=0.5),
    patch("EasyCache", "Network", six, **CACHE),
    patch("LazyCache", "Network", six, **CACHE),
    Use("words of a picture in the attention", "Network", image_tokens),
    Use("IP-Adapter-like", "Network", image_prompted),
    Use("IP-Adapter-like with a mask", "Network", lambda s: image_prompted(s, mask())),
    windows("over the width", 3),
    windows("over the width, uniform", 3, "looped_uniform"),
    windows("over the batch", 0),
    windows("over the batch, uniform", 0, "looped_uniform"),
    windows("over the batch, free noise", 0, freenoise=True),
]
