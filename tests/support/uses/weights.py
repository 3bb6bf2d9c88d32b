"""Uses of the weights: LoRAs of every kind, merges, hooks, hypernetworks, precisions and compilation."""

import tempfile
from functools import cache
from pathlib import Path

import comfy.hooks
import comfy.ops
import folder_paths
import torch
from comfy_server.test_nodes.models import another_vae
from safetensors.torch import save_file

from .setting import Use, prompt, random, stock, unet

LORA, HYPERNETWORK = "tiny_lora.safetensors", "tiny_hypernetwork.pt"


@cache
def files():
    """Return the folder of the files that loaders read, made on first use."""
    folder = Path(tempfile.mkdtemp())
    for kind in ("loras", "hypernetworks"):
        folder_paths.add_model_folder_path(kind, str(folder))
    save_file(lora(), folder / LORA)
    torch.save(hypernetwork(), folder / HYPERNETWORK)
    return folder


def lora(rank=2):
    """Return a LoRA on all queries and values of the tiny network, strong enough to see."""
    found = {}
    for key, weight in unet().model.state_dict().items():
        if key.endswith(("to_q.weight", "to_v.weight")):
            name, (rows, columns) = key.removesuffix(".weight"), weight.shape
            found[f"{name}.lora_up.weight"] = random(rows, rank, seed=len(found)) / rank
            found[f"{name}.lora_down.weight"] = random(rank, columns, seed=len(found)) / columns**0.5
    return found


def hypernetwork():
    """Return a layer for keys and one for values, of each width that the network's attention has."""

    def layer(width, seed):
        weight = 0.3 * random(width, width, seed=seed) / width**0.5
        return {"linear.0.weight": weight, "linear.0.bias": torch.zeros(width)}

    return {width: [layer(width, 1), layer(width, 2)] for width in (16, 32, 64)}


def loaded(setting, node, **inputs):
    files()
    return setting.patched(node, **inputs)


def trained(setting, **inputs):
    """Return the setting with a LoRA that was trained in the same workflow."""
    files()
    return setting.patched("LoraModelLoader", lora=lora(), strength_model=0.8, **inputs)


def merged(setting, node, **inputs):
    return setting.but(model=stock(node, model1=setting.model, model2=unet(seed=3), **inputs))


def with_difference(setting):
    """Return the setting with a part of the difference between two models added to a third."""
    difference = stock("ModelMergeSubtract", model1=unet(seed=3), model2=unet(seed=6), multiplier=0.2)
    return setting.but(model=stock("ModelMergeAdd", model1=setting.model, model2=difference))


def hook(strength=1.0):
    files()
    return stock("CreateHookLoraModelOnly", lora_name=LORA, strength_model=strength)


def model_hook():
    """Return the hook of CreateHookModelAsLora, whose node knows no checkpoint as tiny as ours."""
    weights = comfy.hooks.get_patch_weights_from_model(unet(seed=3))
    return comfy.hooks.create_hook_model_as_lora(weights, None, 0.3, 0.0)


def keyframes(strong):
    """Return a hook whose strength goes from 1 to 0, or a little below 1, over the steps."""
    frames = None
    for strength, start in ((1.0, 0.0), (0.5 if strong else 0.97, 0.3), (0.0 if strong else 0.95, 0.6)):
        frames = stock("CreateHookKeyframe", strength_mult=strength, start_percent=start, prev_hook_kf=frames)
    return stock("SetHookKeyframes", hooks=hook(), hook_kf=frames)


def hooked(setting, hooks, both=False):
    """Return the setting with hooks on its positive prompt, or on both."""
    positive = stock("ConditioningSetProperties", cond_NEW=setting.positive, hooks=hooks)
    negative = stock("ConditioningSetProperties", cond_NEW=setting.negative, hooks=hooks) if both else setting.negative
    return setting.but(positive=positive, negative=negative)


def hooked_region(setting):
    """Return the setting with a second prompt that has a LoRA of its own."""
    second = stock("ConditioningSetProperties", cond_NEW=prompt(14), hooks=hook())
    return setting.but(positive=stock("ConditioningCombine", conditioning_1=setting.positive, conditioning_2=second))


def of_dtype(dtype, compute=None):
    return lambda setting: setting.but(model=unet(dtype=dtype, compute=compute))


def fast_float8(setting):
    """Return the setting with the layers of weight_dtype fp8_e4m3fn_fast."""
    setting.network.extra = torch.nn.ModuleList([comfy.ops.fp8_ops.Linear(4, 4)])
    return setting


def compiled(backend):
    return lambda setting: setting.patched("TorchCompileModel", backend=backend)


# Of half precision's rounding: a step's candidates differ with the batch that they are in.
HALF = {"rounding": 0.03, "slope": 0.5}

WEIGHTS = [
    Use("LoRA", "Weights", lambda s: loaded(s, "LoraLoaderModelOnly", lora_name=LORA, strength_model=0.8)),
    Use(
        "two LoRAs",
        "Weights",
        lambda s: loaded(
            loaded(s, "LoraLoaderModelOnly", lora_name=LORA, strength_model=0.8),
            "LoraLoaderModelOnly",
            lora_name=LORA,
            strength_model=-0.3,
        ),
    ),
    Use(
        "LoRA, bypass", "Weights", lambda s: loaded(s, "LoraLoaderBypassModelOnly", lora_name=LORA, strength_model=0.8)
    ),
    Use("LoRA of the same workflow", "Weights", trained),
    Use("LoRA of the same workflow, bypass", "Weights", lambda s: trained(s, bypass=True)),
    Use("ModelMergeSimple", "Weights", lambda s: merged(s, "ModelMergeSimple", ratio=0.7)),
    Use("ModelMergeBlocks", "Weights", lambda s: merged(s, "ModelMergeBlocks", input=0.9, middle=0.5, out=0.8)),
    Use("ModelMergeAdd and ModelMergeSubtract", "Weights", with_difference),
    Use("hypernetwork", "Weights", lambda s: loaded(s, "HypernetworkLoader", hypernetwork_name=HYPERNETWORK)),
    Use("hook LoRA on one prompt", "Hooks", lambda s: hooked(s, hook())),
    Use("hook LoRA on one prompt, weak", "Hooks", lambda s: hooked(s, hook(0.1))),
    Use("hook LoRA on both prompts", "Hooks", lambda s: hooked(s, hook(), both=True)),
    Use("hook LoRA on one of two combined prompts", "Hooks", hooked_region),
    Use("hook model as LoRA", "Hooks", lambda s: hooked(s, model_hook())),
    Use("hook keyframes, strong", "Hooks", lambda s: hooked(s, keyframes(True), both=True)),
    Use("hook keyframes, weak", "Hooks", lambda s: hooked(s, keyframes(False), both=True)),
    Use("bfloat16", "Precision", of_dtype(torch.bfloat16), **HALF),
    Use("float16", "Precision", of_dtype(torch.float16), **HALF),
    Use("float8 weights, float32 arithmetic", "Precision", of_dtype(torch.float8_e4m3fn, torch.float32)),
    Use("float8 weights, bfloat16 arithmetic", "Precision", of_dtype(torch.float8_e4m3fn, torch.bfloat16), **HALF),
    Use("fast float8", "Precision", fast_float8, idle=True),
    Use("ModelComputeDtype", "Precision", lambda s: s.patched("ModelComputeDtype", dtype="bf16"), **HALF),
    Use("TAESD as the VAE", "Precision", lambda s: s.but(vae=another_vae(4)), slope=3e-3, idle=True),
]

COMPILED = [
    Use("torch.compile, inductor", "Precision", compiled("inductor"), idle=True),
    Use("torch.compile, cudagraphs", "Precision", compiled("cudagraphs"), idle=True),
]
"""Apart, since they take minutes."""
