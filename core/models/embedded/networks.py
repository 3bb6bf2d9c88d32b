"""The embedded model in diffusers' and transformers' own classes."""

import torch

from . import configs, vocabulary
from .weights import PATH, part


def _ready(module, device, dtype):
    """Return a module in eval mode, without parameter gradients; diffusers' own `to` would warn about any dtype."""
    return torch.nn.Module.to(module, device, dtype).eval().requires_grad_(False)


def build_unet(dtype=torch.float32, device="cpu", path=PATH):
    """Return the U-Net, a diffusers UNet2DConditionModel that predicts v, in eval mode."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(**configs.UNET)
    unet.load_state_dict(part("unet", dtype, path))
    return _ready(unet, device, dtype)


def build_vae(dtype=torch.float32, device="cpu", path=PATH):
    """Return the autoencoder, a diffusers AutoencoderKL (f = 8, 4 channels, scale factor .18215), in eval mode."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(**configs.VAE)
    vae.load_state_dict(part("vae", dtype, path))
    return _ready(vae, device, dtype)


def build_text_encoder(dtype=torch.float32, device="cpu", path=PATH):
    """Return the text encoder, a transformers CLIPTextModel with CLIP's own token ids, in eval mode."""
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextModel(CLIPTextConfig(**configs.TEXT))
    state = part("text", dtype, path)
    # transformers 5 dropped the "text_model." level that transformers 4, ComfyUI and the file have.
    if not any(key.startswith("text_model.") for key in text.state_dict()):
        state = {key.removeprefix("text_model."): value for key, value in state.items()}
    text.load_state_dict(state, strict=False)
    return _ready(text, device, dtype)


def scheduler():
    """Return the noise schedule, a diffusers DDIMScheduler (v-prediction, trailing spacing)."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(**configs.SCHEDULER)


@torch.no_grad()
def encode_prompts(prompts, text_encoder=None):
    """Return the hidden states (B, 77, 64) of a list of B prompts; builds the text encoder where none is given."""
    text_encoder = text_encoder or build_text_encoder()
    device = next(text_encoder.parameters()).device
    return text_encoder(input_ids=vocabulary.tokenize(prompts).to(device)).last_hidden_state
