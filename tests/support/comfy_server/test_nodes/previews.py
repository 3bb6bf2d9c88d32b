"""A previewer that is a network, as TAESD's is, or that fails."""

import comfy.model_management as mm
import latent_preview
import torch
from PIL import Image


class Previewer:
    """ComfyUI's previewer of one model; notes what it was given.

    Attributes:
        notes: "calls", and whether a graph was made: "graphs".
    """

    def __init__(self, kind):
        self.kind, self.notes = kind, {"calls": 0, "graphs": 0}
        with torch.inference_mode(False):
            self.network = torch.nn.Conv2d(4, 3, 1)

    def decode_latent_to_preview_image(self, preview_format, x0):
        self.notes["calls"] += 1
        if self.kind == "fails":
            raise RuntimeError("a bug in a previewer")
        if self.kind == "interrupted":
            raise mm.InterruptProcessingException
        if self.kind == "nan":
            assert x0.isfinite().all(), "a previewer would make a warning of it, or an error"
        self.notes["graphs"] += self.network(x0).requires_grad
        return preview_format, Image.new("RGB", (8, 8)), 8


class DNOTestPreviewer:
    """The model, previewed by a `Previewer`, and that one as a witness."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "kind": (["network", "fails", "nan", "interrupted"],)}}

    RETURN_TYPES = ("MODEL", "DNO_SOLVER")
    FUNCTION = "put"
    CATEGORY = "tests"

    def put(self, model, kind):
        previewer, stock, latent_format = Previewer(kind), latent_preview.get_previewer, model.model.latent_format

        def get_previewer(device, asked):
            return previewer if asked is latent_format else stock(device, asked)

        latent_preview.get_previewer = get_previewer
        return model, previewer


NODES = (DNOTestPreviewer,)
