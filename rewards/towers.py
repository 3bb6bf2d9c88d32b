"""CLIP towers: embeddings of pictures and of texts by the weights of one file, shared by all rewards that use the file.

    images --Preprocess--> pixels --image tower--> embeddings (B, width)
    texts  --tokenize----> ids -----text tower---> embeddings (B, width), each text once, then remembered

The networks are transformers' own. Weights tell all about them but two things, which go by the widths of the known
CLIPs: the number of attention heads (`image_heads`, `text_heads`) and the activation (`activation`).
"""

import weakref
from math import isqrt
from pathlib import Path

import torch

from . import weights
from .preprocess import Preprocess

GRAPH_WIDTH = 16
"""Numbers a layer's graph holds per token and unit of width: 10 with GELU, 14 with quick GELU, and some to run with."""

_towers = weakref.WeakValueDictionary()


def load_tower(path, device="cpu", dtype=torch.float32):
    """Return the ClipTower of a file: the same one for the same file, device and dtype while anyone holds it.

    Args:
        path: a CLIP file of either layout: HPS, PickScore, CLIP itself, or an image tower alone.
        device: where the networks are put at first.
        dtype: of the networks; what goes in and out is float32 or wider.

    Raises:
        FileNotFoundError, ValueError: see `weights.read`; ValueError also where it is no CLIP file.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise weights.missing(path)
    status = path.stat()
    key = (path, status.st_mtime_ns, status.st_size, torch.device(device), dtype)
    tower = _towers.get(key)
    if tower is None:
        tower = _towers[key] = ClipTower(weights.read(path), path.name, device, dtype)
    return tower


class ClipTower:
    """The image tower of a CLIP, and its text tower where the weights have one.

    Attributes:
        name: of its file, for messages.
        module: both networks, "image" and "text"; it may be moved to another device from outside.
        on_use: called with the bytes that the run will take before a network runs, if set: the place to load `module`
            to a device.
        width: of the embeddings: 768 for ViT-L/14, 1024 for ViT-H/14.
        vision_width: inside the image tower.
        image_size: side of the pixels that the image tower takes.
        logit_scale: logarithm of what CLIP multiplies cosines by; None where the weights have none.
    """

    def __init__(self, state, name="CLIP", device="cpu", dtype=torch.float32):
        """Build the networks.

        Args:
            state: weights in either layout, as `weights.read` gives them, or ComfyUI's `clip_vision.get_sd()`.
            name, device, dtype: see the attributes and `load_tower`.

        Raises:
            ValueError: the weights are not a CLIP's, incomplete, or towers of two different CLIPs.
        """
        weights.check_kind(state, name, *weights.CLIP_KINDS)
        # Outside inference mode: weights made inside it could take part in no gradient.
        with torch.inference_mode(False):
            state = weights.clip_to_hf(state)
            scale = state.pop("logit_scale", None)
            image = {key: state.pop(key) for key in list(state) if key.startswith(("vision_model.", "visual_"))}
            networks = {"image": _build(_image_network, image, name, device, dtype)}
            if state:
                networks["text"] = _build(_text_network, state, name, device, dtype)
            self.module = torch.nn.ModuleDict(networks).eval().requires_grad_(False)
        self.name, self.on_use, self._texts = name, None, {}
        self.logit_scale = None if scale is None else float(scale)
        config = self.module["image"].config
        self.width, self.vision_width, self.image_size = config.projection_dim, config.hidden_size, config.image_size
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
        return self.image_embeds(Preprocess(self.image_size, rule)(images, parity=parity))

    def image_embeds(self, pixels):
        """Embed preprocessed pictures.

        Args:
            pixels: (B, 3, image_size, image_size), normalised.

        Returns:
            (B, width), not of unit length, differentiable, float32 or wider, on the module's device.
        """
        network = self.module["image"]
        self._use(graph_bytes(network, pixels))
        pixels = pixels.view_as(pixels)  # a tensor of our own, whose hook is not left on the caller's
        embeds = _wide(network(pixel_values=pixels.to(network.visual_projection.weight)).image_embeds)
        scale_gradient(pixels, embeds)
        return embeds

    def text_embeds(self, texts):
        """Embed texts, each once in the tower's life: the 75 first tokens of each count, as CLIP was trained.

        Args:
            texts: list of B strings.

        Returns:
            (B, width), not of unit length, float32 or wider, on the module's device, without gradient.
        """
        self.require_text()
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        network = self.module["text"]
        if new:
            self._use(0)
            ids = _tokens(new, network.config.max_position_embeddings)
            embeds = network(input_ids=ids.to(network.device)).text_embeds
            self._texts.update(zip(new, _wide(embeds).cpu(), strict=True))
        return torch.stack([self._texts[text] for text in texts]).to(network.device)

    def require_text(self):
        """Raise ValueError unless the weights have a text tower."""
        if not self.has_text:
            raise ValueError(
                f"{self.name} has an image tower alone; expected a text tower beside it, of the same width. Use a full"
                " CLIP file"
            )

    def _use(self, memory):
        if self.on_use is not None:
            self.on_use(memory)


def graph_bytes(network, pixels):
    """Return the most that a vision network of transformers holds for its backward pass, besides weights, in bytes.

    Args:
        network: with a config and parameters.
        pixels: (B, 3, H, W); without `requires_grad` one layer is held at a time.
    """
    config = network.config
    tokens = len(pixels) * ((config.image_size // config.patch_size) ** 2 + 1)
    layers = config.num_hidden_layers if pixels.requires_grad else 1
    return GRAPH_WIDTH * tokens * layers * config.hidden_size * next(network.parameters()).element_size()


def scale_gradient(pixels, embeds):
    """Let each picture's gradient enter the network with a largest entry of 1, and take the factor out behind it.

    A cosine's gradient by one of many pixels, times a small weight, is less than the least float16 otherwise.
    """
    if not embeds.requires_grad:
        return
    scale = []

    def enter(d_embeds):
        scale[:] = [d_embeds.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)]
        return d_embeds / scale[0]

    def leave(d_pixels):
        return d_pixels * scale[0][..., None, None].to(d_pixels)

    embeds.register_hook(enter)
    pixels.register_hook(leave)


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


def _build(network_of, state, name, device, dtype):
    """Return network_of(state) on `device`, with the weights themselves for parameters: no second copy is made."""
    state = {key: _own(value.to(device, dtype)) for key, value in state.items()}
    try:
        with torch.device("meta"):
            network = network_of(state)
        network.load_state_dict(state, assign=True)
    except (KeyError, RuntimeError) as error:
        found = " ".join(str(error).split())[:300]
        raise ValueError(f"{name} is not the whole of a CLIP ({found}). Download it again") from error
    for module in network.modules():
        for key, buffer in module.named_buffers(recurse=False):  # position_ids, which no file need have
            setattr(module, key, torch.arange(buffer.shape[-1], device=device)[None])
    return network


def _own(tensor):
    return tensor.clone() if tensor.is_inference() else tensor


def _image_network(state):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    patch = state["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    patches = len(state["vision_model.embeddings.position_embedding.weight"]) - 1
    sizes = _sizes(state, "vision_model.", state["visual_projection.weight"])
    heads = image_heads(sizes["hidden_size"])
    config = CLIPVisionConfig(**sizes, num_attention_heads=heads, patch_size=patch, image_size=patch * isqrt(patches))
    return CLIPVisionModelWithProjection(config)


def _text_network(state):
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    vocabulary = len(state["text_model.embeddings.token_embedding.weight"])
    context = len(state["text_model.embeddings.position_embedding.weight"])
    sizes = _sizes(state, "text_model.", state["text_projection.weight"])
    heads = text_heads(sizes["hidden_size"])
    config = CLIPTextConfig(**sizes, num_attention_heads=heads, vocab_size=vocabulary, max_position_embeddings=context)
    return CLIPTextModelWithProjection(config)


def _sizes(state, prefix, projection):
    """Return what the configs of both towers have in common."""
    layers = {key.split(".")[3] for key in state if key.startswith(prefix + "encoder.layers.")}
    return {
        "hidden_size": projection.shape[1],
        "projection_dim": projection.shape[0],
        "num_hidden_layers": len(layers),
        "intermediate_size": len(state[prefix + "encoder.layers.0.mlp.fc1.weight"]),
        "hidden_act": activation(projection.shape[0]),
    }


def _tokens(texts, length):
    """Return CLIP's token ids (B, length), padded with 0."""
    from open_clip.tokenizer import tokenize

    return tokenize(texts, length)


def _wide(tensor):
    return tensor if tensor.dtype == torch.float64 else tensor.float()
