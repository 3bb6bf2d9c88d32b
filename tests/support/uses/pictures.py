"""Uses of the latent: image to image, masks, batches, sizes, and models that are made for inpainting."""

import torch

from .setting import Use, latent, picture, plain, prompt, random, stock


def mask(kind="hard", batch=1):
    """Return a MASK of 64 x 64 pixels: the right half, softly, or another part for each picture."""
    made = torch.zeros(batch, 64, 64)
    made[..., 32:] = torch.linspace(0, 1, 32) if kind == "soft" else 1.0
    if batch > 1:
        made[1] = made[1].T.clone()
    return made


def masked(setting, kind="hard", batch=1):
    return setting.but(latent=stock("SetLatentNoiseMask", samples=setting.latent, mask=mask(kind, batch)))


def encoded(setting):
    samples = stock("VAEEncode", pixels=picture(21), vae=setting.vae)
    return setting.but(latent=stock("RepeatLatentBatch", samples=samples, amount=2), denoise=0.6)


def differential(setting):
    return masked(setting, "soft").patched("DifferentialDiffusion")


def from_batch(setting):
    return setting.but(latent=stock("LatentFromBatch", samples=latent(batch=4), batch_index=2, length=2))


def same_seed(setting):
    return setting.but(
        latent=stock("LatentBatchSeedBehavior", samples=setting.latent, seed_behavior="fixed"),
        positive=prompt(11, rows=2),
    )


def for_inpaint(setting):
    samples = stock("VAEEncodeForInpaint", pixels=picture(21), vae=setting.vae, mask=mask())
    return setting.but(latent=samples)


def inpaint_conditioning(setting):
    positive, negative, samples = stock(
        "InpaintModelConditioning", positive=setting.positive, negative=setting.negative, vae=setting.vae,
        pixels=picture(21), mask=mask(),
    )  # fmt: skip
    return setting.but(positive=positive, negative=negative, latent=samples)


def instructions(setting):
    positive, negative, samples = stock(
        "InstructPixToPixConditioning", positive=setting.positive, negative=setting.negative, vae=setting.vae,
        pixels=picture(21),
    )  # fmt: skip
    return setting.but(positive=positive, negative=negative, latent=samples)


def second_pass(setting):
    samples = stock("LatentUpscale", samples=latent(), upscale_method="bilinear", width=96, height=96, crop="disabled")
    return setting.but(latent=samples, denoise=0.5)


def painted_over(setting):
    """Return image to image where only a part is new, as a Detailer crops and pastes."""
    return masked(encoded(setting))


PICTURES = [
    Use(
        "empty latent, batch of 2",
        "Pictures",
        lambda s: s.but(latent=stock("EmptyLatentImage", width=64, height=64, batch_size=2)),
    ),
    Use(
        "empty latent of another channel count",
        "Pictures",
        lambda s: s.but(latent={"samples": torch.zeros(2, 16, 8, 8)}),
    ),
    Use("image to image", "Pictures", encoded),
    Use("hires fix: upscaled latent, second pass", "Pictures", second_pass),
    Use("hard mask", "Pictures", masked),
    Use("soft mask", "Pictures", lambda s: masked(s, "soft")),
    Use("a mask for each picture", "Pictures", lambda s: masked(s, batch=2)),
    Use("mask and image to image", "Pictures", painted_over),
    Use("DifferentialDiffusion", "Pictures", differential),
    Use("VAE Encode (for Inpainting)", "Pictures", for_inpaint),
    Use("InpaintModelConditioning, ordinary model", "Pictures", inpaint_conditioning),
    Use("InpaintModelConditioning, inpainting model", "Pictures", inpaint_conditioning, lambda: plain(in_channels=9)),
    Use("InstructPixToPixConditioning", "Pictures", instructions, lambda: plain(in_channels=8)),
    Use("batch index (Latent From Batch)", "Pictures", from_batch),
    Use("one seed for all (Latent Batch Seed Behavior)", "Pictures", same_seed),
    Use("odd sizes", "Pictures", lambda s: s.but(latent={"samples": random(1, 4, 9, 13, seed=5)})),
    Use(
        "two latents as a batch",
        "Pictures",
        lambda s: s.but(
            latent=stock("LatentBatch", samples1=latent(1), samples2={"samples": random(1, 4, 8, 8, seed=6)})
        ),
    ),
]
