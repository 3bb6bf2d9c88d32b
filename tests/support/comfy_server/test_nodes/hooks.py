"""Hooks of a prompt, as ComfyUI's own nodes make them from files: a LoRA, or another model's weights as a LoRA."""

import comfy.hooks
import torch


def lora(weights: dict, generator) -> dict:
    """A LoRA of rank 2 for every attention's values: name.lora_up.weight and name.lora_down.weight of each."""
    found = {}
    for name, weight in weights.items():
        if name.endswith("to_v.weight"):
            rows, columns = weight.shape
            name = name.removesuffix(".weight")
            found[f"{name}.lora_up.weight"] = torch.randn(rows, 2, generator=generator)
            found[f"{name}.lora_down.weight"] = torch.randn(2, columns, generator=generator) / columns**0.5
    return found


class DNOTestHook:
    """The hooks of CreateHookLora and CreateHookModelAsLora, with weights that are drawn instead of loaded."""

    @classmethod
    def INPUT_TYPES(cls):
        required = {"model": ("MODEL",), "kind": (["lora", "model"],), "seed": ("INT", {"default": 0})}
        return {"required": {**required, "strength": ("FLOAT", {"default": 1.0})}}

    RETURN_TYPES = ("HOOKS",)
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self, model, kind, seed, strength):
        generator = torch.Generator().manual_seed(seed)
        weights = comfy.hooks.get_patch_weights_from_model(model)
        if kind == "lora":
            return (comfy.hooks.create_hook_lora(lora(weights, generator), strength, 0.0),)
        other = {
            name: weight + 0.3 * weight.std() * torch.randn(weight.shape, generator=generator)
            for name, weight in weights.items()
            if weight.ndim > 1
        }
        return (comfy.hooks.create_hook_model_as_lora(other, None, strength, 0.0),)


class DNOTestKeyframes:
    """Give the keyframes of a conditioning's hooks, and tell whether they are those that were given `before`.

    `after` is any output of the sampler, so that this runs when it is done.
    """

    @classmethod
    def INPUT_TYPES(cls):
        optional = {"before": ("DNO_TEST_KEYFRAMES",), "after": ("LATENT",)}
        return {"required": {"conditioning": ("CONDITIONING",)}, "optional": optional}

    RETURN_TYPES = ("CONDITIONING", "DNO_TEST_KEYFRAMES")
    OUTPUT_NODE = True
    FUNCTION = "tell"
    CATEGORY = "tests"

    def tell(self, conditioning, before=(), after=None):
        found = [hook.hook_keyframe for _, options in conditioning for hook in options["hooks"].hooks]
        same = [one is other for one, other in zip(before, found, strict=bool(before))]
        return {"ui": {"same": same}, "result": (conditioning, found)}


NODES = (DNOTestHook, DNOTestKeyframes)
