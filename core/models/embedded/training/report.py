"""Measure the exported model and draw its sample sheet."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from .. import configs, networks, weights
from ..scorer import load_scorer
from ..vocabulary import ANIMALS, COLOURS
from . import pictures
from .autoencoder import to_tensor
from .scoring import held_out_accuracy

PROMPTS = [f"{colour} {animal}" for animal in ANIMALS for colour in COLOURS]


class Painter:
    """The exported model as one function from prompts and seeds to pictures, by diffusers' own scheduler."""

    def __init__(self, path=weights.PATH):
        self.unet = networks.build_unet(path=path)
        self.vae = networks.build_vae(path=path)
        self.text = networks.build_text_encoder(path=path)

    @torch.no_grad()
    def sample(self, prompts, seeds, steps=20, cfg=3.0, eta=1.0):
        """Sample one picture a prompt: (B, 3, 128, 128) in [0, 1]."""
        scheduler = networks.scheduler()
        scheduler.set_timesteps(steps)
        context = networks.encode_prompts([""] * len(prompts) + list(prompts), self.text)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        side = configs.UNET["sample_size"]

        def noise():
            return torch.stack([torch.randn(configs.LATENT_CHANNELS, side, side, generator=g) for g in generators])

        x = noise()
        for t in scheduler.timesteps:
            plain, guided = self.unet(x.repeat(2, 1, 1, 1), t, context).sample.chunk(2)
            x = scheduler.step(plain + cfg * (guided - plain), t, x, eta=eta, variance_noise=noise()).prev_sample
        return (self.vae.decode(x / configs.LATENT_SCALE).sample / 2 + 0.5).clamp(0, 1)


def sample_accuracy(painter, scorer, steps, seeds=4, chunk=28):
    """Sample every "<colour> <animal>" with `seeds` seeds (eta 1, cfg 3) and let the scorer judge.

    Returns:
        {"steps", "pictures", "colour": share right, "animal": share right, "cs": mean CS, "worst": the prompts most
            often wrong}.
    """
    jobs = [(prompt, 1000 * seed + i) for seed in range(seeds) for i, prompt in enumerate(PROMPTS)]
    right_colour, right_animal, scores, wrong = [], [], [], {}
    for start in tqdm(range(0, len(jobs), chunk), desc=f"sample {steps} steps"):
        prompts, numbers = zip(*jobs[start : start + chunk], strict=True)
        images = painter.sample(prompts, numbers, steps)
        with torch.no_grad():
            colour, animal = (logits.argmax(-1).tolist() for logits in scorer(images))
            scores += scorer.consistency(images, prompts)[2].tolist()
        for prompt, c, a in zip(prompts, colour, animal, strict=True):
            right_colour.append(COLOURS[c] == prompt.split()[0])
            right_animal.append(ANIMALS[a] == prompt.split()[1])
            if not (right_colour[-1] and right_animal[-1]):
                wrong[prompt] = wrong.get(prompt, 0) + 1
    count = len(jobs)
    return {
        "steps": steps,
        "pictures": count,
        "colour": sum(right_colour) / count,
        "animal": sum(right_animal) / count,
        "cs": sum(scores) / count,
        "wrong": dict(sorted(wrong.items(), key=lambda item: -item[1])),
    }


def sample_sheet(painter, steps=20, seed=0, chunk=24):
    """Sample every prompt once: rows are animals, columns the colours and then the animal alone; a PIL image."""
    columns = [f"{colour} " for colour in COLOURS] + [""]
    prompts = [column + animal for animal in ANIMALS for column in columns]
    seeds = [1000 * seed + i for i in range(len(prompts))]
    images = torch.cat(
        [painter.sample(prompts[i : i + chunk], seeds[i : i + chunk], steps) for i in range(0, len(prompts), chunk)]
    )
    grid = images.unflatten(0, (len(ANIMALS), len(columns))).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return Image.fromarray((255 * grid + 0.5).byte().numpy())


@torch.no_grad()
def reconstruction_psnr(vae, count=200, seed=91_000):
    """Return the mean PSNR in dB of freshly drawn pictures through the autoencoder (posterior mean)."""
    images = to_tensor(torch.from_numpy(pictures.draw_many(count, seed)[0]))
    decoded = torch.cat([vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1) for x in images.split(20)])
    return (-10 * F.mse_loss(decoded / 2, images / 2, reduction="none").mean((1, 2, 3)).log10()).mean().item()


def write_report(out, seconds, path=weights.PATH, seeds=4):
    """Write sheet.jpg, report.json and report.md into `out` and return the figures.

    Args:
        out: folder.
        seconds: {stage: seconds of training}, stated in the report.
        path: of the weights.
        seeds: a prompt.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    painter, scorer = Painter(path), load_scorer(path=path)
    sample_sheet(painter).save(out / "sheet.jpg", quality=90)
    figures = {
        "bytes": Path(path).stat().st_size,
        "seconds": {stage: round(value) for stage, value in seconds.items()},
        "psnr_db": reconstruction_psnr(painter.vae),
        "scorer_held_out": held_out_accuracy(scorer),
        "samples": [sample_accuracy(painter, scorer, steps, seeds) for steps in (20, 50)],
    }
    (out / "report.json").write_text(json.dumps(figures, indent=1) + "\n")
    (out / "report.md").write_text(_markdown(figures))
    return figures


def _markdown(figures):
    """Return the report as a page of markdown."""
    held_out = figures["scorer_held_out"]
    rows = [
        f"| {s['steps']} | {s['pictures']} | {s['colour']:.1%} | {s['animal']:.1%} | {s['cs']:.3f} |"
        for s in figures["samples"]
    ]
    wrong = [
        f"- {s['steps']} steps: " + (", ".join(f"{p} ({n})" for p, n in s["wrong"].items()) or "none")
        for s in figures["samples"]
    ]
    stages = ", ".join(f"{stage} {seconds / 60:.0f} min" for stage, seconds in figures["seconds"].items())
    return "\n".join(
        [
            "# The embedded model, measured",
            "",
            "![Every prompt once, 20 steps](sheet.jpg)",
            "",
            f"Rows: {', '.join(ANIMALS)}. Columns: {', '.join(COLOURS)}, and the animal alone.",
            "Seed 0, 20 steps, eta 1, cfg 3.",
            "",
            "| steps | pictures | colour right | animal right | mean CS |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Judged by the scorer, which on {held_out['pictures']} held-out renders has the colour right",
            f"in {held_out['colour']:.1%} and the animal in {held_out['animal']:.1%}.",
            "",
            "Prompts judged wrong, and how often:",
            "",
            *wrong,
            "",
            f"Autoencoder: PSNR {figures['psnr_db']:.1f} dB on held-out renders.",
            f"Weights: {figures['bytes'] / 1e6:.2f} MB. Trained: {stages}.",
            "",
        ]
    )
