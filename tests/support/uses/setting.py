"""The workflow that every use changes: tiny random models, two prompts, a latent and KSampler's inputs."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch
from comfy_server.test_nodes.models import CONTEXT, another_vae, fill, vae

import nodes as comfyui_nodes

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
    "channel_mult": [1, 2], "transformer_depth": [1, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 0, 0], "context_dim": CONTEXT, "use_spatial_transformer": True, "legacy": False,
    "adm_in_channels": None, "num_heads": 2,
}  # fmt: skip
"""Two levels, as FreeU and PatchModelAddDownscale need them, and attention in the first and the middle."""

MMDIT = {
    "input_size": None, "adm_in_channels": 16, "depth": 2, "pos_embed_max_size": 16,
    "num_patches": 256, "qk_norm": "rms", "in_channels": 16, "patch_size": 2, "x_block_self_attn_layers": [],
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": CONTEXT, "out_features": 128}},
}  # fmt: skip
"""A Stable Diffusion 3.5 of two blocks, for what is made for transformers."""


class NotInThisVersion(Exception):
    """The ComfyUI has no such node, or the node no such input."""


def stock(name, **inputs):
    """Run one of ComfyUI's own nodes; inputs that are not given have the values that the node begins with.

    Returns:
        its only output, or a tuple of them.

    Raises:
        NotInThisVersion: this ComfyUI has no such node, or the node no such input.
    """
    node = comfyui_nodes.NODE_CLASS_MAPPINGS.get(name)
    if node is None:
        raise NotInThisVersion(name)
    run = node.execute if hasattr(node, "execute") else getattr(node(), node.FUNCTION)
    known = inspect.signature(run).parameters
    takes_all = any(each.kind is each.VAR_KEYWORD for each in known.values())
    lacking = [key for key in inputs if key not in known and not takes_all]
    if lacking:
        raise NotInThisVersion(f"{name}: {', '.join(lacking)}")
    values = {key: value for key, value in beginnings(node).items() if key in known} | inputs
    found = run(**values)
    found = getattr(found, "result", found)
    return found[0] if len(found) == 1 else tuple(found)


def beginnings(node):
    """Return the values that a node's widgets begin with, by the inputs' names."""
    values = {}
    for described in (of for kind, of in node.INPUT_TYPES().items() if kind != "hidden"):
        for name, (kind, *rest) in described.items():
            options = rest[0] if rest else {}
            choices = kind if isinstance(kind, list) else options.get("options")
            if "default" in options:
                values[name] = options["default"]
            elif choices:
                values[name] = choices[0]
    return values


@dataclass(frozen=True)
class Setting:
    """One workflow: KSampler's inputs, or where one of the last three is given, SamplerCustomAdvanced's.

    Attributes:
        model, vae, positive, negative, latent: what ComfyUI's links carry.
        guider, sigmas, noise: the outputs of stock nodes; None for what KSampler would make of the rest.
    """

    model: Any
    vae: Any
    positive: list
    negative: list
    latent: dict
    seed: int = 4
    steps: int = 3
    cfg: float = 4.0
    scheduler: str = "normal"
    denoise: float = 1.0
    guider: Any = None
    sigmas: torch.Tensor | None = None
    noise: Any = None

    def but(self, **changes):
        return replace(self, **changes)

    def patched(self, node, **inputs):
        """Return the setting with its model sent through a stock node."""
        return self.but(model=stock(node, model=self.model, **inputs))

    def prompted(self, node, **inputs):
        """Return the setting with its positive prompt sent through a stock node."""
        return self.but(positive=stock(node, conditioning=self.positive, **inputs))

    @property
    def is_custom(self):
        """Whether the nodes around SamplerCustomAdvanced sample it."""
        return not all(each is None for each in (self.guider, self.sigmas, self.noise))

    @cached_property
    def custom(self):
        """SamplerCustomAdvanced's inputs, but for the sampler."""
        guider = self.guider or stock(
            "CFGGuider", model=self.model, positive=self.positive, negative=self.negative, cfg=self.cfg
        )
        return {
            "noise": self.noise or stock("RandomNoise", noise_seed=self.seed), "guider": guider,
            "sigmas": self.own_sigmas if self.sigmas is None else self.sigmas, "latent_image": self.latent,
        }  # fmt: skip

    @property
    def own_sigmas(self):
        return stock(
            "BasicScheduler", model=self.model, scheduler=self.scheduler, steps=self.steps, denoise=self.denoise
        )

    @property
    def simple(self):
        """KSampler's inputs, but for the sampler's name."""
        names = ("model", "seed", "steps", "cfg", "scheduler", "positive", "negative", "denoise")
        return {name: getattr(self, name) for name in names} | {"latent_image": self.latent}

    @property
    def network(self):
        patcher = self.model if self.guider is None else self.guider.model_patcher
        return patcher.model.diffusion_model


def prompt(seed, rows=1, words=7, **options):
    """Return a conditioning as CLIP Text Encode gives it."""
    return [[random(rows, words, CONTEXT, seed=seed), options]]


def picture(seed, batch=1, size=64):
    """Return an IMAGE of random colours, smooth over 16 pixels."""
    small = random(batch, 3, size // 16, size // 16, seed=seed).sigmoid()
    return torch.nn.functional.interpolate(small, size=size, mode="bilinear").movedim(1, -1)


def random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def latent(batch=2, channels=4, height=8, width=8):
    return {"samples": 0.5 * random(batch, channels, height, width, seed=5)}


def patcher_of(model):
    """Return ComfyUI's patcher of a network, as its loaders make it."""
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    load, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    return kind(model, load_device=load, offload_device=offload)


def unet(seed=0, in_channels=4, dtype=torch.float32, compute=None):
    """Return a random network in the layout of Stable Diffusion's, as MODEL.

    Args:
        in_channels: 9 for inpainting, 8 for InstructPix2Pix.
        dtype, compute: of the weights, and of the arithmetic where that is another.
    """
    config = comfy.supported_models.SD15({**UNET, "in_channels": in_channels})
    config.set_inference_dtype(dtype, compute)
    model = comfy.model_base.SD15_instructpix2pix if in_channels == 8 else comfy.model_base.BaseModel
    model = model(config)
    if in_channels == 9:
        model.set_inpaint()
    return patcher_of(quiet(model, "out.2.weight", seed))


def mmdit(seed=0):
    """Return a random network in the layout of Stable Diffusion 3.5's, as MODEL."""
    config = comfy.supported_models.SD3(MMDIT)
    config.set_inference_dtype(torch.float32, None)
    return patcher_of(quiet(comfy.model_base.SD3(config), "final_layer.linear.weight", seed))


def quiet(model, last, seed):
    """Fill a network with random weights; its last is small, since differences would not show a rough one's slope."""
    fill(model.diffusion_model, seed)
    last = dict(model.diffusion_model.named_parameters())[last]
    last.data.copy_(0.1 * last.data.float())
    return model


def plain(**unet_settings):
    """Return the setting without any use."""
    return Setting(unet(**unet_settings), vae(2), prompt(11), prompt(12), latent())


def flow():
    """Return the same as a flow model."""
    return plain().patched("ModelSamplingSD3", shift=2.0)


def transformer():
    """Return the same with a Stable Diffusion 3.5 in place of Stable Diffusion."""
    pooled = {"pooled_output": random(1, 16, seed=13)}
    return Setting(mmdit(), another_vae(16), prompt(11, **pooled), prompt(12, **pooled), latent(channels=16))


@dataclass(frozen=True)
class Use:
    """One use of KSampler or of what surrounds it.

    Attributes:
        name, group: as the page calls it.
        change: changes a `Setting` as a user changes a workflow.
        start: makes the setting that is changed.
        rounding: how far apart results may be that should be equal, relative to their largest value.
        slope: how far the gradient may be from differences.
        idle: whether it leaves the latent as it is, by what it is for.
    """

    name: str
    group: str
    change: Callable
    start: Callable = plain
    rounding: float = 1e-5
    slope: float = 5e-4
    idle: bool = False
