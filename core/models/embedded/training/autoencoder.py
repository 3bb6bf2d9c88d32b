"""Train the autoencoder on random crops, which are cheap, then on whole pictures, then its decoder alone."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .. import configs
from .fit import fit

EPSILON = 0.1
BATCH = 4


def to_tensor(pictures):
    """Convert (B, H, W, 3) uint8 pictures to (B, 3, H, W) float32 in [-1, 1]."""
    return torch.as_tensor(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def _edges(images):
    """Return horizontal and vertical differences of (B, 3, H, W) images."""
    return images.diff(dim=-1), images.diff(dim=-2)


def reconstruction_loss(decoded, images):
    """L1 + .5 L1 of the gradients + 2 MSE + 8 MSE of 8 x 8 means; both (B, 3, H, W) in [-1, 1]."""
    edges = sum((a - b).abs().mean() for a, b in zip(_edges(decoded), _edges(images), strict=True))
    hues = F.mse_loss(F.avg_pool2d(decoded, 8), F.avg_pool2d(images, 8))
    return (decoded - images).abs().mean() + 0.5 * edges + 2 * F.mse_loss(decoded, images) + 8 * hues


def _crops(pictures, count, side):
    """Draw `count` random (side, side) crops of (N, H, W, 3) pictures as (count, 3, side, side) in [-1, 1]."""
    size = pictures.shape[1]
    chosen = torch.randint(len(pictures), (count,))
    corners = torch.randint(size - side + 1, (count, 2))
    windows = [
        pictures[i, y : y + side, x : x + side] for i, (y, x) in zip(chosen.tolist(), corners.tolist(), strict=True)
    ]
    return to_tensor(torch.stack(windows))


def soften_norms(vae):
    """Give every GroupNorm the large epsilon EPSILON, in place; returns the model.

    With 32 groups and few channels GroupNorm is nearly an instance norm: it removes how bright and how coloured a flat
    background is. A large epsilon lets small activations through unscaled. `fold_norms` turns the result into a model
    with the usual epsilon.
    """
    for module in vae.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = EPSILON
    return vae


@torch.no_grad()
def fold_norms(vae):
    """Restore the usual epsilon of 1e-6, in place: the same function, its residual stream scaled."""
    scale = (1e-6 / EPSILON) ** 0.5
    for name, module in vae.named_modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 1e-6
        last = name.rsplit(".", 1)[-1]
        if name.endswith(("coder.conv_in", ".conv1", ".conv2", ".to_out.0")):
            module.weight *= scale
            module.bias *= scale
        elif last == "conv":
            module.bias *= scale


def train_autoencoder(pictures, seconds, out, whole=0.5):
    """Train and return the AutoencoderKL's moving average, its norms still softened.

    Args:
        pictures: (N, 128, 128, 3) uint8 tensor.
        seconds: time budget.
        out: checkpoint folder.
        whole: share of the budget after which crops give way to whole pictures.
    """
    from diffusers import AutoencoderKL

    vae = soften_norms(AutoencoderKL(**configs.VAE))
    model = nn.ModuleDict({"vae": vae, "hue": nn.Conv2d(configs.LATENT_CHANNELS, 3, 1)})

    def loss(progress):
        images = _crops(pictures, 8, 64) if progress < whole else _crops(pictures, 3, configs.IMAGE_SIZE)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.sample()).sample.float()
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        # A linear reading of the mean colours: without it one of the two hue axes long stays out of the latents.
        hues = F.mse_loss(model["hue"](posterior.mean.float()), F.avg_pool2d(images, 8))
        return reconstruction_loss(decoded, images) + 1e-3 * kl + 4 * hues

    return fit("vae", model, loss, seconds, 2e-3, out)["vae"]


def _decoder_of(vae):
    return nn.ModuleDict({"post_quant_conv": vae.post_quant_conv, "decoder": vae.decoder})


def load_autoencoder(out):
    """Return the whitened autoencoder that a run left in `out`, with the sharpened decoder if there is one."""
    from diffusers import AutoencoderKL

    vae = soften_norms(AutoencoderKL(**configs.VAE))
    vae.load_state_dict(torch.load(Path(out) / "vae_white.pt", weights_only=True))
    sharpened = Path(out) / "decoder.pt"
    if sharpened.exists():
        _decoder_of(vae).load_state_dict(torch.load(sharpened, weights_only=True)["average"])
    return vae.eval()


def sharpen_decoder(vae, latents, images, seconds, out, batch=BATCH, blur=0.15):
    """Train the decoder alone on whitened latents with a little noise, as generated ones have.

    Args:
        vae: AutoencoderKL with whitened latents; trained in place, its moving average is in the checkpoint.
        latents: (N, 4, 16, 16), unit variance.
        images: (N, 128, 128, 3) uint8, the pictures of the latents.
        seconds: time budget.
        out: checkpoint folder.
        batch: pictures a step (and worker).
        blur: largest standard deviation of the noise on the latents.
    """
    model = _decoder_of(vae)

    def loss(progress):
        chosen = torch.randint(len(latents), (batch,))
        z = latents[chosen]
        z = z + blur * torch.rand(batch, 1, 1, 1) * torch.randn_like(z)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = model["decoder"](model["post_quant_conv"](z / configs.LATENT_SCALE)).float()
        return reconstruction_loss(decoded, to_tensor(images[chosen]))

    fit("decoder", model, loss, seconds, 1.5e-3, out)
