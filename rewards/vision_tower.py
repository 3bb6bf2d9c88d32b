"""Vision towers: what networks that know pictures alone see in them, by the weights of one file.

    images --Preprocess--> pixels --DINOv2--> a class token (B, width), and tokens of the places (B, places, width)
                                  --SigLIP--> an embedding (B, width), pooled of the places by an attention head

The networks are transformers' own: DINOv2 (Oquab et al. 2023), with registers (Darcet et al. 2023) or without, and the
image tower of SigLIP (Zhai et al. 2023). Weights tell all about them but the number of attention heads, which goes by
the width, and how many pixels they want.

    Meta's names --from_meta--> the hub's names --_own_names--> those of the transformers that is installed
"""

import re
from math import isqrt

import torch

from . import weights
from .networks import Tower, build, graph_bytes, layers, run, slices
from .preprocess import Preprocess

DINOV2_PIXELS = 224
"""Side of what DINOv2 is shown, 16 x 16 places; its position embeddings are for 518, and are resized."""

_META_NAMES = {
    r"^(cls_token|mask_token|register_tokens)$": r"embeddings.\1",
    r"^pos_embed$": "embeddings.position_embeddings",
    r"^patch_embed\.proj\.": "embeddings.patch_embeddings.projection.",
    r"^norm\.": "layernorm.",
    r"^blocks\.": "encoder.layer.",
    r"\.attn\.proj\.": ".attention.output.dense.",
    r"\.ls([12])\.gamma$": r".layer_scale\1.lambda1",
    r"\.mlp\.w12\.": ".mlp.weights_in.",
    r"\.mlp\.w3\.": ".mlp.weights_out.",
}
"""Name in Meta's files -> in the hub's, all applied in this order."""

_NEWER_NAMES = {
    "vision_model.": "",
    ".attention.attention.query.": ".attention.q_proj.",
    ".attention.attention.key.": ".attention.k_proj.",
    ".attention.attention.value.": ".attention.v_proj.",
    ".attention.output.dense.": ".attention.o_proj.",
    ".mlp.weights_out.": ".mlp.down_proj.",
}
"""Name in the hub's files -> in versions of transformers that have another."""


class VisionTower(Tower):
    """A DINOv2, or the image tower of a SigLIP.

    Example:
        >>> tower = rewards.load_tower("dinov2-base.safetensors")
        >>> type(tower).__name__, tower.kind
        ('VisionTower', 'DINOv2')

    Attributes: Tower's, and
        width: of embeddings and tokens.
    """

    def __init__(self, state, name="DINOv2", device="cpu", dtype=torch.float32):
        """Build the network.

        Args:
            state: weights as `weights.read` gives them: a DINOv2's, Meta's own or the hub's, or a SigLIP's, of which
                the text tower is left out.
            name, device, dtype: see the attributes and `load_tower`.

        Raises:
            ValueError: the weights are another model's or incomplete.
        """
        weights.check_kind(state, name, *weights.VISION_KINDS)
        is_siglip = weights.kind_of(state) in weights.SIGLIP_KINDS
        super().__init__(name, "SigLIP" if is_siglip else "DINOv2")
        network_of, state = (_siglip, _image_tower(state)) if is_siglip else (_dinov2, from_meta(state))
        # Outside inference mode: weights made inside it could take part in no gradient.
        with torch.inference_mode(False):
            network = build(network_of, state, self.kind, name, device, dtype, names=_own_names)
        # In a module of its own: ComfyUI sets `device` on what it manages, which is a property of transformers' models.
        self.module, config = torch.nn.ModuleDict({"image": network}), network.config
        self.width, self.image_size = config.hidden_size, config.image_size if is_siglip else DINOV2_PIXELS
        self._before_places = 0 if is_siglip else 1 + getattr(config, "num_register_tokens", 0)

    def embed(self, images, rule, parity=False):
        """Return what each whole picture shows: DINOv2's class token, or SigLIP's embedding.

        Args:
            images: (B, 3, H, W), nominally [0, 1].
            rule, parity: of Preprocess.

        Returns:
            (B, width), not of unit length, differentiable, float32 or wider, on the module's device.
        """
        return self._seen(images, rule, parity, lambda found: found.pooler_output)

    def places(self, images, rule, parity=False):
        """Return what each place of the pictures shows, (B, places, width), row by row; else as `embed`."""
        first = self._before_places
        flat = self._seen(images, rule, parity, lambda found: found.last_hidden_state[:, first:].flatten(1))
        return flat.unflatten(1, (-1, self.width))

    def _seen(self, images, rule, parity, part):
        """Return a part of what the network gives, (B, n)."""
        preprocess = Preprocess(self.image_size, rule)
        return torch.cat([self._run(preprocess(images[rows], parity), part) for rows in slices(images)])

    def _run(self, pixels, part):
        network = self.module["image"]
        with self.running(graph_bytes(network, pixels)) as device:
            dtype = next(network.parameters()).dtype
            return run(lambda x: part(network(pixel_values=x.to(device, dtype))), pixels, dtype)


def from_meta(state):
    """Return a DINOv2's weights under the hub's names, whichever they have, without copying."""
    renamed = {}
    for name, value in state.items():
        for pattern, new in _META_NAMES.items():
            name = re.sub(pattern, new, name)
        if ".attn.qkv." in name:
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            renamed |= {name.replace("attn.qkv", f"attention.attention.{part}"): third for part, third in parts}
        else:
            renamed[name] = value
    return renamed


def heads(width):
    """Return the number of attention heads of a vision tower: 16 for SigLIP so400m, else width / 64."""
    return 16 if width == 1152 else max(1, width // 64)


def siglip_pixels(places, patch):
    """Return the side of the pictures that a SigLIP was trained on, which has so many places across.

    Patches do not cover 384 pixels where they are 14 wide: the last 6 are not seen.
    """
    return 384 if (places, patch) == (27, 14) else places * patch


def _image_tower(state):
    """Return a SigLIP's image tower under the hub's names; transformers 5 leaves their prefix out of what it saves."""
    if "head.probe" in state:
        return {f"vision_model.{name}": value for name, value in state.items()}
    return {name: value for name, value in state.items() if name.startswith("vision_model.")}


def _dinov2(state):
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    width, patch = (state["embeddings.patch_embeddings.projection.weight"].shape[axis] for axis in (0, -1))
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers(state, "encoder.layer."),
        "num_attention_heads": heads(width),
        "patch_size": patch,
        "image_size": patch * isqrt(state["embeddings.position_embeddings"].shape[1] - 1),
        "use_swiglu_ffn": "encoder.layer.0.mlp.weights_in.weight" in state,
    }
    if "embeddings.register_tokens" not in state:
        return Dinov2Model(Dinov2Config(**sizes))
    registers = state["embeddings.register_tokens"].shape[1]
    return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers))


def _siglip(state):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    width, patch = (state["vision_model.embeddings.patch_embedding.weight"].shape[axis] for axis in (0, -1))
    places = isqrt(len(state["vision_model.embeddings.position_embedding.weight"]))
    config = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=len(state["vision_model.encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=layers(state, "vision_model.encoder.layers."),
        num_attention_heads=heads(width),
        patch_size=patch,
        image_size=siglip_pixels(places, patch),
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
    )
    return SiglipVisionModel(config)


def _own_names(state, network):
    """Return the weights under the names that this version of transformers gives them."""
    own, renamed = network.state_dict().keys(), {}
    for name, value in state.items():
        newer = _newer(name, value)
        renamed |= newer if newer.keys() <= own else {name: value}
    return renamed


def _newer(name, value):
    if ".mlp.weights_in." in name:
        parts = zip(("gate_proj", "up_proj"), value.chunk(2), strict=True)
        return {name.replace("weights_in", part): half for part, half in parts}
    for old, new in _NEWER_NAMES.items():
        name = name.replace(old, new)
    return {name: value}
