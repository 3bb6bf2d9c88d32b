"""Tiny random twins of the files of CLIP's kind, and of DINOv2 and SigLIP, of identical key layout.

Names and shapes are the libraries' own.

What tells the real files apart stays real: 224 x 224 pixels in patches of 14, CLIP's vocabulary, the width of the
embeddings (768 for ViT-L/14, 1024 for ViT-H/14), the activation. Widths and depths inside are tiny, and chosen so that
both towers have two heads: the image tower of H 160 = 2 x 80, everything else 128 = 2 x 64.
"""

import math
import tempfile
from pathlib import Path

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


def dinov2_model(seed=0, registers=0, swiglu=False):
    """Return transformers' own DINOv2 in tiny, with position embeddings for 518 x 518 as the real ones have."""
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    sizes = {
        "hidden_size": 128, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "image_size": 518,
        "patch_size": PATCH, "use_swiglu_ffn": swiglu,
    }  # fmt: skip
    if registers:
        return randomize(
            Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers)), seed
        )
    return randomize(Dinov2Model(Dinov2Config(**sizes)), seed)


def dinov2_meta_state(seed=0, registers=0, swiglu=False, places=PIXELS // PATCH):
    """Return the weights of a DINOv2 of two layers as Meta's own files have them."""
    width, hidden = 128, 344 if swiglu else 512  # a SwiGLU has two thirds of it, rounded up to a multiple of 8
    shapes = {
        "cls_token": (1, 1, width), "pos_embed": (1, 1 + places**2, width), "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, PATCH, PATCH), "patch_embed.proj.bias": (width,),
        "norm.weight": (width,), "norm.bias": (width,),
    }  # fmt: skip
    if registers:
        shapes["register_tokens"] = (1, registers, width)
    mlp = (
        {"w12": (2 * hidden, width), "w3": (width, hidden)}
        if swiglu
        else {"fc1": (hidden, width), "fc2": (width, hidden)}
    )
    matrices = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)} | {f"mlp.{k}": v for k, v in mlp.items()}
    for block in (f"blocks.{layer}." for layer in range(LAYERS)):
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[block + name] = (width,)
        for name, shape in matrices.items():
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=generator) * 0.15 for name, shape in shapes.items()}
    return {
        name: value + (name.endswith(("norm.weight", "norm1.weight", "norm2.weight"))) for name, value in drawn.items()
    }


def siglip_model(seed=0, width=1152):
    """Return transformers' own SigLIP of one layer and 4 x 4 places, as a rule of so400m's width, with its 16 heads."""
    from transformers import SiglipConfig, SiglipModel

    sizes = {"num_hidden_layers": 1, "intermediate_size": 64}
    image = sizes | {"hidden_size": width, "image_size": 4 * PATCH, "patch_size": PATCH}
    image["num_attention_heads"] = 16 if width == 1152 else width // 64
    text = sizes | {"hidden_size": 64, "num_attention_heads": 1, "vocab_size": 100}
    return randomize(SiglipModel(SiglipConfig(vision_config=image, text_config=text)), seed, std=0.05)


def mps_state(seed=0, width=1024, heads=2, hidden=32, layers=LAYERS):
    """Return the weights of an MPS as imscore's port has them: a CLIP ViT-H/14 in tiny, and what reads the prompt."""
    inner, both, fused = heads * 64, 2 * 64, (heads + 2) * 64 + 2 * hidden
    attend = {"to_q": (inner, width), "to_kv": (both, width), "to_out": (width, inner)}
    attend |= {"ff.0": (2 * hidden, width), "ff.2": (width, hidden)}
    mix = {"fused_attn_ff_proj": (fused, width), "attn_out": (width, inner), "ff_out.1": (width, hidden)}
    generator, state = torch.Generator().manual_seed(seed), {}
    for layer in range(layers):
        for part, shapes in enumerate((attend, mix)):
            prefix = f"mps.cross_model.layers.{layer}.{part}.fn."
            shapes = {f"{prefix}{name}.weight": shape for name, shape in shapes.items()}
            state |= {
                name: torch.randn(shape, generator=generator) * shape[1] ** -0.5 for name, shape in shapes.items()
            }
            state[f"{prefix}norm.weight"] = 1 + 0.15 * torch.randn(width, generator=generator)
            state[f"{prefix}norm.bias"] = torch.zeros(width)
        state[f"{prefix}rotary_emb.inv_freq"] = 10000 ** -(torch.arange(0, 64, 2) / 64)
    return state | prefixed(hf_model("H", seed).state_dict(), "mps.model.")


def hub_state(model):
    """Return the weights of a model of transformers under the names that files on the hub have.

    Newer versions call parts of a network otherwise, and change the names when they save it.
    """
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return {name: value.clone() for name, value in load_file(Path(folder) / "model.safetensors").items()}


def aesthetic_v25_head(seed=0):
    """Return Aesthetic Predictor V2.5's layers, full size; between them it has nothing but dropout."""
    head, widths = torch.nn.Module(), (1152, 1024, 128, 64, 16, 1)
    layers = [torch.nn.Linear(*widths[index : index + 2]) for index in range(5)]
    head.scoring_head = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.Identity())))
    return randomize(head, seed)


def squeezenet_model(seed=0):
    """Return torchvision's own SqueezeNet 1.1, full size, which is tiny."""
    from torchvision import models

    return randomize(models.squeezenet1_1(weights=None), seed, std=0.1)


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
    "dinov2": ("dinov2-base.safetensors", lambda: hub_state(dinov2_model(9))),
    "dinov2_meta": ("dinov2_vitb14_pretrain.pth", lambda: dinov2_meta_state(10)),
    "siglip": ("siglip-so400m-patch14-384.safetensors", lambda: siglip_model(11).state_dict()),
    "aesthetic_v25": ("aesthetic_predictor_v2_5.pth", lambda: aesthetic_v25_head(12).state_dict()),
    "mps": ("MPS.safetensors", lambda: mps_state(13)),
    "squeezenet": ("squeezenet1_1-b8a52dc0.pth", lambda: dict(squeezenet_model(14).state_dict())),
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
