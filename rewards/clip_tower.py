"""CLIP towers: embeddings of pictures and of texts by the weights of one file.

    images --Preprocess--> pixels --image tower--> embeddings (B, width)
    texts  --tokenize----> ids -----text tower---> embeddings (B, width), each text once, then remembered

The networks are transformers' own. Weights tell all about them but two things, which go by the widths of the known
CLIPs: the number of attention heads (`image_heads`, `text_heads`) and the activation (`activation`).
"""

import logging
from functools import cache, partial
from math import isqrt

import torch

from ..core.precision import wide
from . import weights
from .networks import CUT, Tower, build, graph_bytes, layers, run, slices
from .preprocess import Preprocess

log = logging.getLogger(__name__)


class ClipTower(Tower):
    """The image tower of a CLIP, and its text tower where the weights have one.

    Example:
        >>> tower = rewards.load_tower("clip-vit-large-patch14.safetensors")
        >>> type(tower).__name__, tower is rewards.load_tower("clip-vit-large-patch14.safetensors")
        ('ClipTower', True)

    Attributes: Tower's, and
        width: of the embeddings: 768 for ViT-L/14, 1024 for ViT-H/14.
        logit_scale: logarithm of what CLIP multiplies cosines by; None where the weights have none.
    """

    def __init__(self, state, name="CLIP", device="cpu", dtype=torch.float32, activation=None):
        """Build the networks.

        Args:
            state: weights in either layout, as `weights.read` gives them, or ComfyUI's `clip_vision.get_sd()`.
            name, device, dtype: see the attributes and `load_tower`.
            activation: "gelu" or "quick_gelu"; None goes by the width.

        Raises:
            ValueError: the weights are not a CLIP's, incomplete, or towers of two different CLIPs.
        """
        super().__init__(name, "CLIP")
        weights.check_kind(state, name, *weights.CLIP_KINDS)
        # Outside inference mode: weights made inside it could take part in no gradient.
        with torch.inference_mode(False):
            state = weights.clip_to_hf(state)
            scale = state.pop("logit_scale", None)
            image = {key: state.pop(key) for key in list(state) if key.startswith(("vision_model.", "visual_"))}
            made = {"kind": self.kind, "name": name, "device": device, "dtype": dtype}
            networks = {"image": build(partial(_image_network, activation), image, **made)}
            if state:
                networks["text"] = build(partial(_text_network, activation), state, **made)
            self.module = torch.nn.ModuleDict(networks)
        self.logit_scale, self._texts = None if scale is None else float(scale), {}
        config = self.module["image"].config
        self.width, self.image_size = config.projection_dim, config.image_size
        if self.has_text and (text_width := self.module["text"].config.projection_dim) != self.width:
            raise ValueError(
                f"{name}'s image embeddings are {self.width} wide and its text embeddings {text_width}; expected one"
                " width, so these are towers of two models. Use one full CLIP file"
            )

    @property
    def has_text(self):
        """Whether the weights have a text tower."""
        return "text" in self.module

    def embed(self, images, rule, parity=False):
        """Return `image_embeds` of images (B, 3, H, W), nominally [0, 1], brought to size by `Preprocess`'s rule."""
        preprocess = Preprocess(self.image_size, rule)
        return torch.cat([self.image_embeds(preprocess(images[rows], parity)) for rows in slices(images)])

    def image_embeds(self, pixels):
        """Embed preprocessed pictures.

        Args:
            pixels: (B, 3, image_size, image_size), normalised.

        Returns:
            (B, width), not of unit length, differentiable, float32 or wider, on the module's device.
        """
        network = self.module["image"]
        with self.running(graph_bytes(network, pixels)) as device:
            dtype = network.visual_projection.weight.dtype
            return run(lambda x: network(pixel_values=x.to(device, dtype)).image_embeds, pixels, dtype)

    def text_embeds(self, texts):
        """Embed texts, each once in the tower's life.

        Of each the first 75 tokens count, as CLIP was trained; a warning says where a longer text was cut.

        Args:
            texts: list of B strings.

        Returns:
            (B, width), not of unit length, float32 or wider, on the module's device, without gradient.
        """
        self.require_text()
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        network = self.module["text"]
        if new:
            ids = self.tokens(new)
            self._say_what_is_cut(new)
            with self.running() as device:
                embeds = wide(network(input_ids=ids.to(device)).text_embeds).cpu()
            self._texts.update(zip(new, embeds, strict=True))
        return torch.stack([self._texts[text] for text in texts]).to(network.device)

    def tokens(self, texts):
        """Return CLIP's token ids of texts, (B, 77): the first 75 of each between two marks, filled with 0."""
        with torch.device("cpu"):  # whatever the global default
            return _tokenizer()(texts, self.module["text"].config.max_position_embeddings)

    def _say_what_is_cut(self, texts):
        room = self.module["text"].config.max_position_embeddings - 2
        for text in texts:
            ids = _tokenizer().encode(text)
            if len(ids) > room:
                kept = _tokenizer().decode(ids[:room]).strip()
                log.warning(CUT, self.name, room, len(ids), kept)

    def require_text(self):
        """Raise ValueError unless the weights have a text tower, ImportError unless the tokenizer can be loaded."""
        if not self.has_text:
            raise ValueError(
                f"{self.name} has an image tower alone; expected a text tower beside it, of the same width. Use a full"
                " CLIP file"
            )
        _tokenizer()  # here, so that a package which is broken ends nothing halfway


def image_heads(width):
    """Return the number of attention heads of an image tower: 16 for LAION's ViT-H, g and bigG, else width / 64."""
    return 16 if width in (1280, 1408, 1664) else max(1, width // 64)


def text_heads(width):
    """Return the number of attention heads of a text tower: width / 64 in all of them."""
    return max(1, width // 64)


def activation(width):
    """Return the activation of the CLIP with embeddings of this width: quick GELU for OpenAI's ViT-B (512) and L (768).

    LAION's own ViT-B and ViT-L use GELU; nothing in their weights tells.
    """
    return "quick_gelu" if width in (512, 768) else "gelu"


def _image_network(act, state):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    patch = state["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    patches = len(state["vision_model.embeddings.position_embedding.weight"]) - 1
    sizes = _sizes(state, "vision_model.", state["visual_projection.weight"], act)
    heads = image_heads(sizes["hidden_size"])
    config = CLIPVisionConfig(**sizes, num_attention_heads=heads, patch_size=patch, image_size=patch * isqrt(patches))
    return CLIPVisionModelWithProjection(config)


def _text_network(act, state):
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    vocabulary = len(state["text_model.embeddings.token_embedding.weight"])
    context = len(state["text_model.embeddings.position_embedding.weight"])
    sizes = _sizes(state, "text_model.", state["text_projection.weight"], act)
    heads = text_heads(sizes["hidden_size"])
    config = CLIPTextConfig(**sizes, num_attention_heads=heads, vocab_size=vocabulary, max_position_embeddings=context)
    return CLIPTextModelWithProjection(config)


def _sizes(state, prefix, projection, act):
    """Return what the configs of both towers have in common."""
    return {
        "hidden_size": projection.shape[1],
        "projection_dim": projection.shape[0],
        "num_hidden_layers": layers(state, prefix + "encoder.layers."),
        "intermediate_size": len(state[prefix + "encoder.layers.0.mlp.fc1.weight"]),
        "hidden_act": act or activation(projection.shape[0]),
    }


@cache
def _tokenizer():
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()
