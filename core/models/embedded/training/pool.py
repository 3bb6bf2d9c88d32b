"""The pool of training pictures, drawn once and kept on disk beside the checkpoints."""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from . import pictures

CHUNK = 1000


def draw_pool(out, name, count, seed):
    """Draw `count` pictures in chunks, resuming where an earlier run stopped.

    Returns:
        pictures (count, 128, 128, 3) uint8, animal indices (count,) and colour indices (count,), int64; colour -1
        means the own colours.
    """
    folder = Path(out) / name
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = [], []
    for start in tqdm(range(0, count, CHUNK), desc=f"draw {name}"):
        image_file, label_file = folder / f"{start:06d}.npy", folder / f"{start:06d}.labels.npy"
        if not label_file.exists():
            drawn, animal, colour = pictures.draw_many(min(CHUNK, count - start), (seed, start))
            np.save(image_file, drawn)
            np.save(label_file, np.stack([animal, colour]))
        images.append(np.load(image_file))
        labels.append(np.load(label_file))
    animal, colour = torch.from_numpy(np.concatenate(labels, 1))
    return torch.from_numpy(np.concatenate(images)), animal, colour
