"""Towers of tiny ImageReward files, and what one computes: timm's vision tower and a text tower written out."""

import pytest
import torch
from comfyui_dno import rewards
from comfyui_dno.rewards import weights
from torch.nn import functional as F


def blip(path, vocabulary=None, **settings):
    """Return a tower of one's own, which `load_tower` would share."""
    return rewards.BlipTower(weights.read(path), vocabulary or path.parent / "vocab.txt", path.name, **settings)


def pictures(dtype=torch.float32):
    """Two pictures that are resized to 224 x 227: of the 3 columns too many, ImageReward's crop takes 2 on the left."""
    generator = torch.Generator().manual_seed(0)
    return 0.2 + 0.6 * torch.rand((2, 3, 240, 244), generator=generator, dtype=dtype)


def reference(state, pixels, ids, mask):
    """Return the first text token after both towers, in the file's own names: (B, 128)."""
    timm = pytest.importorskip("timm.models.vision_transformer", reason="comes with open_clip_torch")
    vision = timm.VisionTransformer(224, 16, embed_dim=192, depth=2, num_heads=3, num_classes=0, global_pool="")
    vision.load_state_dict(part(state, "blip.visual_encoder."))
    return text_tower(part(state, "blip.text_encoder."), ids, mask, vision.eval()(pixels))[:, 0]


def part(state, prefix):
    return {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}


def text_tower(state, ids, mask, patches):
    def linear(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-12)

    def heads(name, x):
        return linear(name, x).unflatten(-1, (2, 64)).transpose(1, 2)

    def attention(name, x, context, mask=None):
        query = heads(f"{name}.self.query", x)
        key, value = heads(f"{name}.self.key", context), heads(f"{name}.self.value", context)
        found = F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)
        return norm(f"{name}.output.LayerNorm", x + linear(f"{name}.output.dense", found))

    positions = state["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm("embeddings.LayerNorm", state["embeddings.word_embeddings.weight"][ids] + positions)
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        x = attention(f"{layer}.attention", x, x, mask[:, None, None].bool())
        x = attention(f"{layer}.crossattention", x, patches)
        inner = F.gelu(linear(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", inner))
    return x


def head(state, x, activation):
    places = sorted(int(name.split(".")[2]) for name in state if name.startswith("mlp.") and name.endswith("weight"))
    for place in places:
        x = F.linear(x, state[f"mlp.layers.{place}.weight"], state[f"mlp.layers.{place}.bias"])
        x = activation(x) if place != places[-1] else x
    return x[:, 0]
