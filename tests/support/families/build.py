"""A family's tiny model, prompts, latent and VAE, made by ComfyUI's own classes as its loaders make them."""

import math

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.taesd.taesd
import torch
from comfy_server.test_nodes.models import fill

# How much smaller than other layers' the last layer's weights are.
LAST_LAYER = 0.1
# And the decoder's first: latents are up to ten times as large as noise, and tanh shall not be at its ends.
SPREAD = 0.1


def drawn(seed):
    """Return random(*shape), standard normal numbers that the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator)


def model(family):
    """Return the family's model as ComfyUI's loaders give it, a ModelPatcher, with random weights."""
    try:
        made = network(family, family.network)
    except TypeError:
        if not family.newer:
            raise
        made = network(family, {name: size for name, size in family.network.items() if name not in family.newer})
    fill(made.diffusion_model, seed=0)
    made.diffusion_model.get_submodule(family.last).weight.data.mul_(LAST_LAYER)
    load, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(made, load_device=load, offload_device=offload)


def network(family, sizes):
    """Return what ComfyUI's class makes of these sizes, a BaseModel with whatever the memory held as weights."""
    supported = getattr(comfy.supported_models, family.model)
    config = supported({**supported.unet_config, **sizes})
    config.unet_config.update(sizes)  # some classes write the real sizes over what they are given
    config.set_inference_dtype(torch.float32, None)
    return config.get_model(family.weights(drawn(3)), "")


def conditioning(family, seed):
    """Return a prompt as text encoders give it."""
    random = drawn(seed)
    rest = {} if family.pooled is None else {"pooled_output": random(1, family.pooled)}
    return [[random(1, *family.prompt), {**rest, **family.extras(random)}]]


class Decoder(torch.nn.Module):
    """Pixels from a latent of any shape: eight times as wide and as high, four frames for each but the first.

    It stands in for every family's own decoder: a search knows the VAE by its `decode` alone. Latents of three channels
    are pixels already.
    """

    def __init__(self, channels):
        super().__init__()
        self.scale = 1 if channels == 3 else 8
        self.spread = torch.nn.Conv3d(channels, 16, (1, 3, 3), padding=(0, 1, 1))
        self.blend = torch.nn.Conv3d(16, 3, (3, 3, 3), padding=(0, 1, 1))

    def decode(self, latent):
        """Return (B, 3, frames, 8 H, 8 W) for (B, C, T, H, W), and (B, 3, 8 H, 8 W) for (B, C, H, W)."""
        frames = latent if latent.ndim == 5 else latent.unsqueeze(2)
        wide = torch.nn.functional.interpolate(
            torch.tanh(self.spread(frames)), scale_factor=(1, self.scale, self.scale)
        )
        long = wide.repeat_interleave(4, dim=2)[:, :, 3:]
        # Each frame sees two frames before it, the first one itself, as causal decoders do.
        pixels = self.blend(torch.cat([long[:, :, :1], long[:, :, :1], long], dim=2))
        return pixels if latent.ndim == 5 else pixels.squeeze(2)


def vae(family):
    """Return a comfy VAE for the family's latents, with a random decoder."""
    channels, dimensions = family.latent[0], len(family.latent) - 1
    decoder = Decoder(family.decoded or channels)
    fill(decoder, seed=1)
    decoder.spread.weight.data.mul_(SPREAD)
    made = comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD(latent_channels=4).state_dict())
    made.first_stage_model, made.latent_channels, made.latent_dim = decoder, channels, dimensions
    made.patcher = comfy.model_patcher.ModelPatcher(decoder, made.device, made.device)
    made.memory_used_decode = lambda shape, dtype: 1000 * math.prod(shape)
    return made


def latent(family, batch):
    """Return an empty latent of `batch` pictures or clips, as nodes hand it on."""
    return {"samples": torch.zeros(batch, *family.latent)}
