"""Train the U-Net and the text encoder on whitened latents."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from .. import configs, vocabulary
from ..networks import scheduler
from .autoencoder import to_tensor
from .fit import fit
from .pictures import caption

BATCH = 32
DROPOUT = 0.1


@torch.no_grad()
def encode_all(vae, images, chunk=50):
    """Return the mean latents (N, 4, 16, 16), not yet scaled, of (N, 128, 128, 3) uint8 pictures."""
    latents = []
    for part in tqdm(images.split(chunk), desc="encode"):
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(vae.encode(to_tensor(part)).latent_dist.mean.float())
    return torch.cat(latents)


@torch.no_grad()
def whiten(vae, latents):
    """Fold a whitening of the latents into the convolutions around them, in place.

    Afterwards a latent times the stock scale factor .18215 has zero mean and unit covariance over its channels, so the
    stock SD1.5 latent format applies. The posterior's variance follows the diagonal of the map only (it is small, and
    a diagonal cannot hold the rest).

    Args:
        vae: AutoencoderKL.
        latents: (N, 4, h, w), what vae.encode gives now.

    Returns:
        The whitened latents, with unit variance: what the U-Net sees.
    """
    channels = latents.shape[1]
    flat = latents.double().transpose(0, 1).flatten(1)
    mean = flat.mean(1)
    values, vectors = torch.linalg.eigh(flat.cov())
    whitening = (vectors * values.rsqrt()) @ vectors.T
    outward = (whitening / configs.LATENT_SCALE).float()
    inward = (vectors * values.sqrt()) @ vectors.T * configs.LATENT_SCALE

    into, back = vae.quant_conv, vae.post_quant_conv
    moments = into.weight[:channels, :, 0, 0]
    into.weight[:channels] = (outward @ moments)[..., None, None]
    into.bias[:channels] = outward @ (into.bias[:channels] - mean.float())
    into.bias[channels:] += 2 * outward.diagonal().abs().log()
    back.bias += back.weight[..., 0, 0] @ mean.float()
    back.weight.copy_((back.weight[..., 0, 0] @ inward.float())[..., None, None])
    return torch.einsum("ij,njhw->nihw", whitening.float(), latents - mean.float()[:, None, None])


class TextToLatent(nn.Module):
    """The U-Net and the text encoder as one module to train; the text encoder's embedding holds the used rows only."""

    def __init__(self):
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        super().__init__()
        self.unet = UNet2DConditionModel(**configs.UNET)
        rows = len(vocabulary.STORED_IDS)
        special = {"bos_token_id": rows - 2, "eos_token_id": rows - 1, "pad_token_id": rows - 1}
        self.text = CLIPTextModel(CLIPTextConfig(**{**configs.TEXT, "vocab_size": rows, **special}))

    def forward(self, x, timesteps, ids):
        """Predict v of x (B, 4, 16, 16) at timesteps (B,), given rows of the stored embedding (B, 77)."""
        context = self.text(input_ids=ids).last_hidden_state
        return self.unet(x, timesteps, context).sample.float()


def stored_rows(prompts):
    """Return the (B, 77) token ids of prompts as rows of the stored embedding."""
    ids = torch.tensor(vocabulary.STORED_IDS)
    return torch.searchsorted(ids, vocabulary.tokenize(prompts))


def train_denoiser(latents, animal, colour, seconds, out, batch=BATCH):
    """Train and return the moving average of U-Net and text encoder.

    Args:
        latents: (N, 4, 16, 16), unit variance.
        animal, colour: (N,) indices; colour -1 stands for the animal's own colours (the caption names the animal
            alone).
        seconds: time budget.
        out: checkpoint folder.
        batch: pictures a step (and worker).
    """
    captions = [caption(a, c) for a, c in zip(animal.tolist(), colour.tolist(), strict=True)]
    unique = sorted({"", *captions})
    rows = stored_rows(unique)
    which = torch.tensor([unique.index(c) for c in captions])
    alphas = scheduler().alphas_cumprod
    model = TextToLatent()

    def loss(progress):
        chosen = torch.randint(len(latents), (batch,))
        said = torch.where(torch.rand(batch) < DROPOUT, unique.index(""), which[chosen])
        t = ((torch.arange(batch) + torch.rand(batch)) / batch * 1000).long()
        a, s = (w.sqrt()[:, None, None, None] for w in (alphas[t], 1 - alphas[t]))
        x0, noise = latents[chosen], torch.randn(batch, *latents.shape[1:])
        with torch.autocast("cpu", torch.bfloat16):
            v = model(a * x0 + s * noise, t, rows[said])
        return F.mse_loss(v, a * noise - s * x0)

    return fit("unet", model, loss, seconds, 1.2e-3, out)


def load_denoiser(out):
    """Return the moving average of U-Net and text encoder that a run left in `out`, finished or not."""
    model = TextToLatent()
    model.load_state_dict(torch.load(Path(out) / "unet.pt", weights_only=True)["average"])
    return model.eval()
