"""Train the embedded model from scratch: python -m comfyui_dno.core.embedded.training.train --out DIR

About 2 h on two CPU cores with the default budget. Every stage is resumable: run the same command again.
"""

import argparse
import logging
from pathlib import Path

import torch

from .. import weights
from . import autoencoder, diffusion, scoring
from .export import export
from .pool import draw_pool
from .report import write_report

# Minutes of each stage at the default budget.
MINUTES = {"vae": 28, "decoder": 10, "scorer": 5, "unet": 62}


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for pictures, checkpoints, weights and report")
    parser.add_argument("--budget", type=float, default=1.0, help="times the default training time")
    parser.add_argument("--pictures", type=int, default=24000, help="size of the pool of training pictures")
    parser.add_argument("--workers", type=int, default=2, help="processes that train the U-Net, one thread each")
    return parser.parse_args()


def train(out, budget, count, workers):
    """Run every stage and return the report's figures."""
    seconds = {stage: 60 * minutes * budget for stage, minutes in MINUTES.items()}
    torch.manual_seed(0)
    images, animal, colour = draw_pool(out, "pool", count, seed=2)
    vae = autoencoder.train_autoencoder(images, seconds["vae"], out)
    scorer = scoring.train_scorer(images, animal, colour, seconds["scorer"], out)
    latents = diffusion.whiten(vae, diffusion.encode_all(vae, images))
    autoencoder.sharpen_decoder(vae, latents, images, seconds["decoder"], out)
    denoiser = diffusion.train_denoiser_in_parallel(latents, animal, colour, seconds["unet"], out, workers)
    path = out / weights.PATH.name
    export(vae, denoiser, scorer, path)
    return write_report(out / "report", seconds, path)


def main():
    """Train as the command line says."""
    logging.basicConfig(level=logging.INFO)
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    figures = train(arguments.out, arguments.budget, arguments.pictures, arguments.workers)
    logging.getLogger(__name__).info("trained: %s", figures)


if __name__ == "__main__":
    main()
