"""Train the embedded model from scratch: python -m comfyui_dno.core.models.embedded.training.train --out DIR

Under two hours on two CPU cores with the default budget. Every stage is resumable: run the same command again.
"""

import argparse
import json
import logging
from pathlib import Path

import torch

from .. import weights
from . import autoencoder, diffusion, scoring
from .export import export
from .fit import in_parallel
from .pool import draw_pool
from .report import write_report

# Minutes of each stage at the default budget.
MINUTES = {"vae": 17, "scorer": 4, "unet": 33, "decoder": 18}
SEED = 2


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for pictures, checkpoints, weights and report")
    parser.add_argument("--budget", type=float, default=1.0, help="times the default training time")
    parser.add_argument("--pictures", type=int, default=24000, help="size of the pool of training pictures")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each, for U-Net and decoder")
    return parser.parse_args()


def _whiten(vae, images, animal, colour, out):
    """Leave whitened latents, their labels and the autoencoder they belong to in `out`."""
    latents = diffusion.whiten(vae, diffusion.encode_all(vae, images))
    torch.save(vae.state_dict(), out / "vae_white.pt")
    torch.save({"latents": latents, "animal": animal, "colour": colour}, out / "latents.pt")


def _train_unet(seconds, out, batch):
    saved = torch.load(out / "latents.pt", weights_only=True)
    diffusion.train_denoiser(saved["latents"], saved["animal"], saved["colour"], seconds, out, batch)


def _train_decoder(seconds, out, count, batch):
    images, _, _ = draw_pool(out, "pool", count, SEED)
    latents = torch.load(out / "latents.pt", weights_only=True)["latents"]
    autoencoder.sharpen_decoder(autoencoder.load_autoencoder(out), latents, images, seconds, out, batch)


def train(out, budget, count, workers):
    """Run every stage and return the report's figures."""
    seconds = {stage: 60 * minutes * budget for stage, minutes in MINUTES.items()}
    torch.manual_seed(0)
    images, animal, colour = draw_pool(out, "pool", count, SEED)
    vae = autoencoder.train_autoencoder(images, seconds["vae"], out)
    scorer = scoring.train_scorer(images, animal, colour, seconds["scorer"], out)
    if not (out / "latents.pt").exists():
        _whiten(vae, images, animal, colour, out)
    del images
    in_parallel(_train_unet, workers, seconds["unet"], out, diffusion.BATCH // workers)
    in_parallel(_train_decoder, workers, seconds["decoder"], out, count, autoencoder.BATCH // workers)
    path = out / weights.PATH.name
    export(autoencoder.load_autoencoder(out), diffusion.load_denoiser(out), scorer, path)
    return write_report(out / "report", seconds, path)


def main():
    """Train as the command line says."""
    logging.basicConfig(level=logging.INFO)
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    figures = train(arguments.out, arguments.budget, arguments.pictures, arguments.workers)
    logging.getLogger(__name__).info("trained: %s", json.dumps(figures))


if __name__ == "__main__":
    main()
