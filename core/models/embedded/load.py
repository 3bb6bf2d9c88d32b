"""The embedded model as a `SampleMap`, headless: diffusers' networks behind `denoise(x, sigma)`."""

import torch

from ...blocks import Blocks
from ...sample_map import SampleMap
from ...schedule import Schedule, scaled_linear_alphas_cumprod
from ..denoiser import DiscreteDenoiser, Guided
from ..fingerprint import fingerprint
from . import configs


def load_embedded(
    prompt, negative="", steps=20, cfg=3.0, eta=1.0, device="cpu", dtype=torch.float32, unet=None, **settings
):
    """Return the noise-to-sample map of the small text-to-image model that ships with the pack.

    Example:
        >>> sample_map = load_embedded("black cat", steps=2)
        >>> sample_map.sample(sample_map.randn(seed=0)).shape
        torch.Size([1, 3, 128, 128])

    Args:
        prompt: "<colour> <animal>", or a list of them, one a picture.
        negative: the negative prompt, shared by all pictures.
        steps: denoising steps, 1 .. 1000 (trailing DDIM timesteps).
        cfg: guidance scale; 3 suits the model.
        eta: in [0, 1]; 1 is the paper's SDE.
        device, dtype: where and in what the networks run; noise and step arithmetic stay in the noise's own dtype.
        unet: a U-Net in place of the pack's own, such as a tuned one; on `device`, in `dtype`.
        settings: further attributes of `SampleMap`, e.g. keep_graphs=True.

    Returns:
        SampleMap of shape (B, 4, 16, 16), decoding to (B, 3, 128, 128).
    """
    from .networks import build_text_encoder, build_unet, build_vae, encode_prompts

    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    text_encoder = build_text_encoder(device=device)
    condition = encode_prompts(prompts, text_encoder)
    unconditional = encode_prompts([negative], text_encoder).expand_as(condition)
    unet, vae = unet or build_unet(dtype, device), build_vae(dtype, device)

    def network(x, timesteps, condition):
        return unet(x.to(dtype), timesteps, encoder_hidden_states=condition.to(dtype)).sample.to(x.dtype)

    def decode(latent):
        return vae.decode(latent.to(dtype) / configs.LATENT_SCALE).sample.to(latent.dtype) / 2 + 0.5

    alphas_cumprod = scaled_linear_alphas_cumprod()
    denoise = Guided(DiscreteDenoiser(network, alphas_cumprod, "v"), condition, unconditional, cfg)
    shape = (len(prompts), configs.LATENT_CHANNELS, configs.IMAGE_SIZE // 8, configs.IMAGE_SIZE // 8)
    schedule = Schedule.ddim(alphas_cumprod, steps)
    model = fingerprint(unet)
    return SampleMap(
        denoise, schedule, shape, eta, decode=decode, prompts=prompts, model=model, device=device,
        unguided=denoise.unguided, blocks=Blocks([unet]), decoder_blocks=Blocks([vae.decoder]), **settings,
    )  # fmt: skip
