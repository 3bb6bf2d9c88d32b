"""Tiny networks of ComfyUI's that autograd meets an obstacle in: changes in place, fused kernels, scaled noise."""

import json

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import comfy.t2i_adapter.adapter
import comfy.taesd.taesd
import torch

from .models import CONTEXT, UNET, another_vae, fill, unet

# Rotary positions want heads of a certain size, so the attention's shape is kept and all else is small.
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 8,
    "context_in_dim": CONTEXT, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1,
    "depth_single_blocks": 1, "axes_dim": [8, 12, 12], "theta": 10000, "qkv_bias": True, "guidance_embed": True,
}  # fmt: skip
CHROMA = {
    "image_model": "chroma", "in_channels": 64, "out_channels": 64, "patch_size": 2, "context_in_dim": CONTEXT,
    "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12], "theta": 10000, "qkv_bias": True, "in_dim": 64, "out_dim": 64, "hidden_dim": 32,
    "n_layers": 1,
}  # fmt: skip
HUNYUAN = {
    "image_model": "hunyuan_video", "vec_in_dim": None, "in_channels": 64, "out_channels": 64, "patch_size": [1, 1],
    "context_in_dim": CONTEXT, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1,
    "depth_single_blocks": 1, "axes_dim": [16, 16], "theta": 256, "qkv_bias": True, "guidance_embed": False,
    "byt5": False, "meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None,
}  # fmt: skip
ERNIE = {
    "image_model": "ernie", "hidden_size": 64, "num_attention_heads": 2, "num_layers": 1, "ffn_hidden_size": 64,
    "in_channels": 128, "out_channels": 128, "text_in_dim": CONTEXT, "rope_axes_dim": (8, 12, 12),
}  # fmt: skip

NEWER = hasattr(comfy.supported_models, "ErnieImage")
if NEWER:  # settings that came after ComfyUI 0.3.75
    FLUX["txt_ids_dims"] = CHROMA["txt_ids_dims"] = []
    CHROMA["vec_in_dim"], HUNYUAN["meanflow_sum"] = None, False

CONFIGS = {"Flux": FLUX, "Chroma": CHROMA, "HunyuanImage21": HUNYUAN, "ErnieImage": ERNIE}


def patcher_of(model):
    load, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return kind(model, load_device=load, offload_device=offload)


def network(family, seed):
    config = getattr(comfy.supported_models, family)(dict(CONFIGS[family]))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    fill(model.diffusion_model, seed)
    if family in ("Flux", "Chroma"):
        # A random network is rougher than a trained one: differences would not show its gradient.
        model.diffusion_model.final_layer.linear.weight.data.mul_(0.1)
    return patcher_of(model)


class DNOTestNetwork:
    """A tiny random network of a family, with conditionings and an autoencoder of as many channels."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"family": (list(CONFIGS),), "seed": ("INT", {"default": 0})}}

    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "VAE")
    FUNCTION = "load"
    CATEGORY = "tests"

    def load(self, family, seed):
        generator = torch.Generator().manual_seed(seed + 1)
        texts = [torch.randn(1, 7, CONTEXT, generator=generator) for _ in range(2)]
        pooled = [torch.randn(1, 8, generator=generator) for _ in range(2)]
        positive, negative = ([[text, {"pooled_output": vector}]] for text, vector in zip(texts, pooled, strict=True))
        model = network(family, seed)
        return model, positive, negative, autoencoder(model.model.latent_format.latent_channels)


def autoencoder(channels):
    """A VAE of `channels`, of which ComfyUI must be told where they are the 32 of Flux 2, four pixels in each."""
    if channels != 128:
        return another_vae(channels)
    model = comfy.taesd.taesd.TAESD(latent_channels=channels)
    fill(model, 0)
    return comfy.sd.VAE(sd=model.state_dict(), metadata={"tae_latent_channels": channels})


def quantised(kind, seed):
    """The tiny UNet with the layers of its attention in float8, as checkpoints of that kind are loaded."""
    config = comfy.supported_models.SD15(dict(UNET))
    config.set_inference_dtype(torch.float32, torch.float32)
    weights = unet("eps", seed).model.diffusion_model.state_dict()
    layers = [key.removesuffix(".weight") for key, weight in weights.items() if "attn" in key and weight.ndim == 2]
    if kind == "scaled":
        config.scaled_fp8 = torch.float8_e4m3fn
        config.unet_config["dtype"] = torch.float32
        layers = [name.removesuffix(".weight") for name, weight in weights.items() if weight.ndim == 2]
    else:
        config.quant_config = config.layer_quant_config = {layer: {"format": kind} for layer in layers}
    for layer in layers:
        weights |= stored(layer, weights[layer + ".weight"], kind)
    model = comfy.model_base.BaseModel(config)
    model.diffusion_model.load_state_dict(weights, strict=False)
    return patcher_of(model)


def stored(layer, weight, kind):
    """A layer's weight and its scale, as they lie in a file."""
    if kind == "int8_tensorwise":
        scale = weight.abs().max() / 127
        values = (weight / scale).round().to(torch.int8)
    else:
        scale = weight.abs().max() / 448
        values = (weight / scale).to(torch.float8_e4m3fn)
    tensors = {f"{layer}.weight": values, f"{layer}.{'scale_weight' if kind == 'scaled' else 'weight_scale'}": scale}
    if kind != "scaled" and NEWER:
        tensors[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps({"format": kind}).encode()), dtype=torch.uint8)
    return tensors


class DNOTestQuantised:
    """A model with quantised weights, to put in the place of `DNOTestModel`'s."""

    @classmethod
    def INPUT_TYPES(cls):
        kinds = ["float8_e4m3fn", "int8_tensorwise", "scaled"]
        required = {"kind": (kinds,), "seed": ("INT", {"default": 0}), "rounds_input": ("BOOLEAN", {"default": False})}
        return {"required": required}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"
    CATEGORY = "tests"

    def load(self, kind, seed, rounds_input):
        model = quantised(kind, seed)
        for layer in model.model.modules():
            if rounds_input and hasattr(layer, "layout_type"):  # as on a GPU with float8 arithmetic
                layer._full_precision_mm, layer.comfy_cast_weights = False, False
                layer.input_scale = torch.nn.Parameter(torch.tensor(0.02), requires_grad=False)
        return (model,)


def control_net(seed):
    sizes = {name: value for name, value in UNET.items() if name not in ("out_channels", "transformer_depth_output")}
    operations = comfy.ops.disable_weight_init
    model = comfy.cldm.cldm.ControlNet(**sizes, num_heads=8, hint_channels=3, operations=operations)
    fill(model, seed)
    return comfy.controlnet.ControlNet(model, load_device=comfy.model_management.get_torch_device())


def t2i_adapter(seed):
    model = comfy.t2i_adapter.adapter.Adapter_light(channels=[32] * 4, nums_rb=1, cin=192)
    fill(model, seed)
    return comfy.controlnet.T2IAdapter(model, 3, 8, "nearest-exact")


class DNOTestControl:
    """A tiny random ControlNet or T2I adapter for `DNOTestModel`, of a seed of its own."""

    KINDS = {"ControlNet": control_net, "T2I adapter": t2i_adapter}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": (list(cls.KINDS),), "seed": ("INT", {"default": 0})}}

    RETURN_TYPES = ("CONTROL_NET",)
    FUNCTION = "load"
    CATEGORY = "tests"

    def load(self, kind, seed):
        return (self.KINDS[kind](seed),)


NODES = (DNOTestNetwork, DNOTestQuantised, DNOTestControl)
