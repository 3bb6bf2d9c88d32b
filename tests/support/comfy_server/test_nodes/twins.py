"""What a checkpoint's loaders give, of a tiny random model of the same family: no loader recognises files so small.

`families` imports this package's models, so it is imported where it is used.
"""

import sys
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


class Clip:
    """Prompts of a family: an embedding drawn by the text, in place of an encoder's."""

    def __init__(self, family):
        self.family = family

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        from families import build

        return build.conditioning(self.family, zlib.crc32(text.encode()))


class DNOTestTwin:
    """A tiny model of a family by its name in `families`, in place of a template's loaders."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"family": ("STRING", {"default": ""})}}

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load"
    CATEGORY = "tests"

    def load(self, family):
        from families import FAMILIES, build

        (chosen,) = [one for one in FAMILIES if one.name == family]
        return build.model(chosen), Clip(chosen), build.vae(chosen)


NODES = [DNOTestTwin]
