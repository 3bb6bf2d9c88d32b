"""transformers' image processors, as they treat a picture from a file."""

import importlib

import torch


def by_processor(pillow, model, name, sizes):
    """Return what an image processor of transformers gives, in levels, by Pillow as the authors' pictures were."""
    settings = {"return_tensors": "np", "do_normalize": False, "do_rescale": False}
    try:
        module = importlib.import_module(f"transformers.models.{model}.image_processing_pil_{model}")
        processor = getattr(module, f"{name}Pil")
    except ImportError:  # transformers 4, which takes 1 x 3 pixels for one row of three channels
        processor = getattr(importlib.import_module("transformers"), name)
        settings["input_data_format"] = "channels_last"
    return torch.from_numpy(processor(**sizes)(pillow, **settings)["pixel_values"]).float()
