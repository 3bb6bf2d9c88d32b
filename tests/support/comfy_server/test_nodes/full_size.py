"""A random checkpoint of Stable Diffusion 1.5's full size, for what only shows there: memory."""

from pathlib import Path

import comfy.model_base
import comfy.supported_models
import folder_paths
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "context_dim": 768,
    "use_spatial_transformer": True, "legacy": False, "adm_in_channels": None, "use_linear_in_transformer": False,
    "use_temporal_attention": False,
}  # fmt: skip
VAE = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
CLIP = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)


def shapes():
    """Name -> shape of every tensor of the checkpoint, without allocating the networks."""
    with torch.device("meta"):
        config = comfy.supported_models.SD15(UNET)
        config.set_inference_dtype(torch.float32, None)
        parts = {
            "model.diffusion_model.": comfy.model_base.BaseModel(config, device="meta").diffusion_model,
            "first_stage_model.": AutoencoderKL(ddconfig=VAE, embed_dim=4),
            "cond_stage_model.transformer.": CLIPTextModel(CLIP),
        }
    return {prefix + name: tensor.shape for prefix, part in parts.items() for name, tensor in part.state_dict().items()}


def random_tensor(shape):
    scale = 1.0 if len(shape) < 2 else torch.Size(shape[1:]).numel() ** -0.5
    return (scale * torch.randn(shape)).half()


class DNOTestFullSizeCheckpoint:
    """Write it where CheckpointLoaderSimple finds it; tell its size."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING", {})}}

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "write"
    CATEGORY = "tests"

    def write(self, name):
        folder = Path(folder_paths.get_folder_paths("checkpoints")[0])
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: random_tensor(shape) for key, shape in shapes().items() if "position_ids" not in key}
        save_file(tensors, folder / name)
        return {"ui": {"bytes": [(folder / name).stat().st_size]}}


NODES = (DNOTestFullSizeCheckpoint,)
