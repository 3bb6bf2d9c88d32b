"""Tiny random twins of the files of CLIP's kind, of identical key layout: names and shapes are the libraries' own.

What tells the real files apart stays real: 224 x 224 pixels in patches of 14, CLIP's vocabulary, the width of the
embeddings (768 for ViT-L/14, 1024 for ViT-H/14), the activation. Widths and depths inside are tiny, and chosen so that
both towers have two heads: the image tower of H 160 = 2 x 80, everything else 128 = 2 x 64.
"""

import math

import torch

SIZES = {
    "L": {"embed": 768, "image": 128, "text": 128, "quick_gelu": True},
    "H": {"embed": 1024, "image": 160, "text": 128, "quick_gelu": False},
}
PICKLES_ARE_READ = torch.__version__ >= (2, 6)
LAYERS, HEADS, PIXELS, PATCH, VOCABULARY, CONTEXT = 2, 2, 224, 14, 49408, 77


def randomize(module, seed, std=0.15):
    """Fill a module with seeded normal numbers, wide enough that scores differ between pictures; layer norms near 1."""
    generator = torch.Generator().manual_seed(seed)
    norms = {name for name, part in module.named_modules() if isinstance(part, torch.nn.LayerNorm)}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
            if name.removesuffix(".weight") in norms:
                parameter.add_(1)
            if name == "logit_scale":
                parameter.fill_(math.log(100))
    return module.eval().requires_grad_(False)


def open_clip_model(size, seed=0):
    """Return open_clip's own CLIP in tiny."""
    from open_clip.model import CLIP

    widths = SIZES[size]
    image = {"image_size": PIXELS, "layers": LAYERS, "width": widths["image"], "patch_size": PATCH}
    text = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": widths["text"], "layers": LAYERS}
    return randomize(
        CLIP(
            widths["embed"],
            image | {"head_width": widths["image"] // HEADS},
            text | {"heads": HEADS},
            quick_gelu=widths["quick_gelu"],
        ),
        seed,
    )


def hf_model(size, seed=0):
    """Return transformers' own CLIPModel in tiny."""
    from transformers import CLIPConfig, CLIPModel

    widths = SIZES[size]
    both = {
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "projection_dim": widths["embed"],
        "hidden_act": "quick_gelu" if widths["quick_gelu"] else "gelu",
    }  # fmt: skip
    image = {"hidden_size": widths["image"], "intermediate_size": 4 * widths["image"], "patch_size": PATCH}
    text = {"hidden_size": widths["text"], "intermediate_size": 4 * widths["text"], "vocab_size": VOCABULARY}
    config = CLIPConfig(text_config=both | text, vision_config=both | image, projection_dim=widths["embed"])
    return randomize(CLIPModel(config), seed)


def aesthetic_head(seed=0):
    """Return the improved aesthetic predictor, full size, as its authors build it."""
    linear, dropout = torch.nn.Linear, torch.nn.Dropout
    layers = [
        linear(768, 1024), dropout(0.2), linear(1024, 128), dropout(0.2), linear(128, 64), dropout(0.1),
        linear(64, 16), linear(16, 1),
    ]  # fmt: skip
    head = torch.nn.Module()
    head.layers = torch.nn.Sequential(*layers)
    return randomize(head, seed)


def half(state):
    return {key: value.half() for key, value in state.items()}


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def with_position_ids(state):
    """Add the constants that transformers before 4.31 saved along."""
    counts = {"text_model": CONTEXT, "vision_model": (PIXELS // PATCH) ** 2 + 1}
    ids = {f"{tower}.embeddings.position_ids": torch.arange(count)[None] for tower, count in counts.items()}
    return state | ids


FILES = {
    "hps": ("HPS_v2.1_compressed.pt", lambda: {"state_dict": half(open_clip_model("H", 1).state_dict())}),
    "hps_port": ("hpsv21.safetensors", lambda: prefixed(half(open_clip_model("H", 1).state_dict()), "model.")),
    "hps_hf": ("HPSv2-hf.safetensors", lambda: hf_model("H", 2).state_dict()),
    "pickscore": ("PickScore_v1.safetensors", lambda: hf_model("H", 3).state_dict()),
    "pickscore_bin": ("pytorch_model.bin", lambda: with_position_ids(hf_model("H", 3).state_dict())),
    "clip_l": ("clip-vit-large-patch14.safetensors", lambda: hf_model("L", 4).state_dict()),
    "clip_l_open_clip": ("ViT-L-14_state_dict.pt", lambda: open_clip_model("L", 5).state_dict()),
    "clip_h": ("CLIP-ViT-H-14.safetensors", lambda: hf_model("H", 6).state_dict()),
    "clip_h_open_clip": ("open_clip_pytorch_model.bin", lambda: open_clip_model("H", 7).state_dict()),
    "aesthetic": ("sac+logos+ava1-l14-linearMSE.pth", lambda: dict(aesthetic_head(8).state_dict())),
    "aesthetic_port": ("sac-logos-ava1-l14-linearMSE.safetensors", lambda: aesthetic_head(8).state_dict()),
}
"""What is meant: (its file's usual name, where that tells anything, and what it holds)."""


def write(kind, folder):
    """Write the tiny twin of one of `FILES` into a folder and return its path."""
    name, contents = FILES[kind]
    return save(contents(), folder / name)


def save(state, path):
    """Write a state dict as its suffix says, and return the path.

    Before PyTorch 2.6 the pack reads no pickle: there safetensors are written under any name, which it reads too.
    """
    from safetensors.torch import save_file

    if path.suffix == ".safetensors" or not PICKLES_ARE_READ:
        state = state.get("state_dict", state)
        save_file({key: value.contiguous() for key, value in state.items()}, path, metadata={"format": "pt"})
    else:
        torch.save(dict(state), path)
    return path


def image_tower(state):
    """Return the part of a state dict in transformers' layout that a CLIP_VISION holds."""
    return {key: value for key, value in state.items() if key.startswith(("vision_model.", "visual_projection."))}


def pictures(batch=2, height=40, width=56, seed=0, dtype=torch.float32):
    """Return smooth seeded pictures (batch, 3, height, width) that overshoot [0, 1] here and there, as decoders do."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((batch, 3, 5, 7), generator=generator, dtype=dtype)
    return 0.5 + 0.4 * torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
