"""Tiny random models of every family, in the layouts ComfyUI itself uses, made without a download."""

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.taesd.taesd
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.wan.vae import WanVAE
from comfy.nested_tensor import NestedTensor

CONTEXT = 16


class ResultHalfDetached(UNetModel):
    """An invented network of a family that nobody has tried: half of its result has no gradient."""

    def forward(self, *args, **kwargs):
        first, second = super().forward(*args, **kwargs).chunk(2, dim=1)
        return torch.cat([first, second.detach()], dim=1)


class InputHalfDetached(UNetModel):
    """Another one, which looks at half of its input without a gradient."""

    def forward(self, x, *args, **kwargs):
        first, second = x.chunk(2, dim=1)
        return super().forward(torch.cat([first, second.detach()], dim=1), *args, **kwargs)


NETWORKS = {"result half detached": ResultHalfDetached, "input half detached": InputHalfDetached}
"""Networks of the families in place of ComfyUI's own."""
FAMILIES = {
    "eps": comfy.model_base.ModelType.EPS,
    "v": comfy.model_base.ModelType.V_PREDICTION,
    "flow": comfy.model_base.ModelType.FLOW,
    **dict.fromkeys(NETWORKS, comfy.model_base.ModelType.EPS),
}
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0],
    "context_dim": CONTEXT,
    "use_spatial_transformer": True,
    "legacy": False,
    "adm_in_channels": None,
}


def fill(module: torch.nn.Module, seed: int) -> None:
    """Draw every parameter: ComfyUI's layers skip initialisation, so they hold whatever the memory held."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.ndim < 2:
            values = torch.randn(parameter.shape, generator=generator) / 20 + (name.endswith("weight"))
        else:
            values = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
        parameter.data.copy_(values)


def unet(family: str, seed: int, dtype=torch.float32) -> comfy.model_patcher.ModelPatcher:
    config = comfy.supported_models.SD15(dict(UNET))
    config.set_inference_dtype(dtype, torch.float32 if dtype != torch.float32 else None)
    network = NETWORKS.get(family, UNetModel)
    model = comfy.model_base.BaseModel(config, model_type=FAMILIES[family], unet_model=network)
    fill(model.diffusion_model, seed)
    # A random network is rougher than a trained one: differences would not show its gradient.
    model.diffusion_model.out[-1].weight.data.mul_(0.1)
    load, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model, load_device=load, offload_device=offload)


def another_vae(channels: int) -> comfy.sd.VAE:
    """A VAE whose number of channels ComfyUI finds in its weights."""
    model = comfy.taesd.taesd.TAESD(latent_channels=channels)
    fill(model, 0)
    return comfy.sd.VAE(sd=model.state_dict())


def vae(seed: int) -> comfy.sd.VAE:
    sizes = {
        "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 1, 1], "num_res_blocks": 0, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    config = {"params": {"ddconfig": sizes, "embed_dim": 4}}
    model = AutoencoderKL(**config["params"])
    fill(model, seed)
    # Random weights give pixels of variance 1; a picture's are mostly within [-1, 1].
    model.decoder.conv_out.weight.data.mul_(0.3)
    return comfy.sd.VAE(sd=model.state_dict(), config=config)


def video_transformer(seed: int) -> comfy.model_patcher.ModelPatcher:
    """Return a tiny Wan 2.1, whose latents are (B, 16, F, H, W)."""
    sizes = {"dim": 48, "num_heads": 4, "ffn_dim": 64, "num_layers": 2, "text_dim": CONTEXT, "freq_dim": 32}
    config = comfy.supported_models.WAN21_T2V({"image_model": "wan2.1", "model_type": "t2v", **sizes})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({})
    fill(model.diffusion_model, seed)
    load, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model, load_device=load, offload_device=offload)


def video_vae(seed: int) -> comfy.sd.VAE:
    """Return a tiny Wan 2.1 autoencoder: F latent frames are 4 F - 3 pictures."""
    sizes = {"dim": 8, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": []}
    model = WanVAE(**sizes, temperal_downsample=[False, True, True], dropout=0.0)
    fill(model, seed)
    model.decoder.head[-1].weight.data.mul_(0.3)
    return comfy.sd.VAE(sd=model.state_dict())


class DNOTestVideoModel:
    """A tiny random video model, with conditionings and an autoencoder."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": ("INT", {"default": 0})}}

    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "VAE")
    FUNCTION = "load"
    CATEGORY = "tests"

    def load(self, seed):
        generator = torch.Generator().manual_seed(seed + 1)
        positive, negative = (torch.randn(1, 7, CONTEXT, generator=generator) for _ in range(2))
        return video_transformer(seed), [[positive, {}]], [[negative, {}]], video_vae(seed + 2)


class DNOTestModel:
    """A tiny random model of one family, with conditionings and an autoencoder."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "family": (list(FAMILIES),),
                "seed": ("INT", {"default": 0}),
                "dtype": (["float32", "float16", "bfloat16"], {"default": "float32"}),
                "vae_channels": ("INT", {"default": 4}),
            }
        }

    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "VAE")
    FUNCTION = "load"
    CATEGORY = "tests"

    def load(self, family, seed, dtype, vae_channels):
        generator = torch.Generator().manual_seed(seed + 1)
        positive, negative = (torch.randn(1, 7, CONTEXT, generator=generator) for _ in range(2))
        model = unet(family, seed, getattr(torch, dtype))
        autoencoder = vae(seed + 2) if vae_channels == 4 else another_vae(vae_channels)
        return model, [[positive, {}]], [[negative, {}]], autoencoder


class DNOTestLatent:
    """A random latent, for img2img; with a mask, for inpainting; with batch indices."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "batch": ("INT", {"default": 1}),
                "channels": ("INT", {"default": 4}),
                "size": ("INT", {"default": 8}),
                "scale": ("FLOAT", {"default": 1.0}),
                "mask": (["none", "half", "soft"], {"default": "none"}),
                "batch_index": ("STRING", {"default": ""}),
                "dims": ("INT", {"default": 4}),
                "frames": ("INT", {"default": 2}),
            }
        }

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self, batch, channels, size, scale, mask, batch_index, dims, frames):
        shape = (batch, channels, size, size) if dims == 4 else (batch, channels, frames, size, size)
        latent = {"samples": scale * torch.randn(shape, generator=torch.Generator().manual_seed(5))}
        if mask != "none":
            latent["noise_mask"] = torch.zeros(1, 8 * size, 8 * size)
            latent["noise_mask"][..., 4 * size :] = 1.0 if mask == "half" else torch.linspace(0, 1, 4 * size)
        if batch_index:
            latent["batch_index"] = [int(index) for index in batch_index.split(",")]
        return (latent,)


class DNOTestOddLatent:
    """A latent of a sound, or of a video with its sound."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": (["sound", "nested"],)}}

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self, kind):
        video, sound = torch.zeros(1, 16, 2, 4, 4), torch.zeros(1, 16, 24)
        return ({"samples": NestedTensor((video, sound)) if kind == "nested" else sound},)


NODES = (DNOTestModel, DNOTestVideoModel, DNOTestLatent, DNOTestOddLatent)
