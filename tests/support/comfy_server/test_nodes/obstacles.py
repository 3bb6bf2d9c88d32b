"""What a user's workflow may hold that stands in the way of gradients."""

import logging
import time
from functools import partial

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.sd
import torch
from comfy.ldm.modules.attention import attention_pytorch


class NoFormula(torch.autograd.Function):
    """What autograd makes of a fused kernel such as comfy-kitchen's, which runs and has no backward pass.

    A kernel by `torch.library.custom_op` itself is gone from PyTorch's list once template 05 has run on the server.
    """

    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError("Trying to backward through no_formula but no autograd formula was registered")


no_formula = NoFormula.apply


def without_gradients(run, args):
    with torch.no_grad():
        return run(args["input"], args["timestep"], **args["c"])


def through_a_fused_kernel(run, args):
    return no_formula(run(no_formula(args["input"]), args["timestep"], **args["c"]))


def slowly(run, args):
    time.sleep(0.1)
    return run(args["input"], args["timestep"], **args["c"])


def counting_calls(run, args, calls=[0]):  # noqa: B006
    """A stateful model: each call's result differs from the last's."""
    calls[0] += 1
    return run(args["input"], args["timestep"], **args["c"]) * (1 + 0.1 * (calls[0] % 7))


def counting_calls_a_little(run, args, calls=[0]):  # noqa: B006
    """A state that is too small for what a step may differ by when it is run again."""
    calls[0] += 1
    return run(args["input"], args["timestep"], **args["c"]) * (1 + 0.002 * (calls[0] % 7))


def loudly(run, args):
    logging.info("the network is called")
    return run(args["input"], args["timestep"], **args["c"])


def not_finite(run, args):
    return run(args["input"], args["timestep"], **args["c"]) * float("nan")


def through_a_mask_of_inference_mode(mask, run, args):
    """As an IP-Adapter with an attention mask: a patch that holds a tensor which was made while a node ran."""
    denoised = run(args["input"], args["timestep"], **args["c"])
    return denoised * mask


def changing_a_mask_of_inference_mode(mask, run, args):
    return through_a_mask_of_inference_mode(mask.add_(args["input"].mean()), run, args)


MASKS = {"mask": through_a_mask_of_inference_mode, "changing mask": changing_a_mask_of_inference_mode}

WRAPPERS = {
    "nan": not_finite, "loud": loudly, "weakly stateful": counting_calls_a_little,
    "no_grad": without_gradients, "fused kernel": through_a_fused_kernel, "slow": slowly, "stateful": counting_calls
}  # fmt: skip


def network_without_gradients(executor, *args, **kwargs):
    with torch.no_grad():
        return executor(*args, **kwargs)


def scaled_guidance(scaled):
    """A patch of the guidance whose closure has a variable that is not assigned where nothing is scaled."""
    if scaled:
        factor = 2.0

    def guide(args):
        return [factor * each for each in args["conds_out"]] if scaled else args["conds_out"]

    return guide


def load_again_inside_another(model):
    """Load a second model that has all layers of the first, as packs do that wrap a network, and keep it loaded."""
    around = torch.nn.Sequential(model.model.diffusion_model)
    wrapped = comfy.model_patcher.ModelPatcher(around, model.load_device, model.offload_device)
    mm.load_models_gpu([wrapped])
    model.set_attachments("wrapped", wrapped)


def detaching_attention(func, q, k, v, *args, **kwargs):
    return attention_pytorch(q.detach(), k, v.detach(), *args, **kwargs)


def lora_of_queries(model):
    """A LoRA of rank 2 for every layer of the UNet that makes queries."""
    generator, lora = torch.Generator().manual_seed(9), {}
    for key, weight in model.model.diffusion_model.state_dict().items():
        if key.endswith("to_q.weight"):
            name = "diffusion_model." + key.removesuffix(".weight")
            lora[name + ".lora_up.weight"] = torch.randn(len(weight), 2, generator=generator) / 4
            lora[name + ".lora_down.weight"] = torch.randn(2, weight.shape[1], generator=generator) / 4
    return lora


class DNOTestObstacle:
    """A model with something in the way."""

    KINDS = (
        *WRAPPERS, "network under no_grad", "detaching attention", "lora", "fast fp8", "multigpu", "lowvram",
        "wide block", "bypass lora", *MASKS, "noise scale", "unassigned", "loaded twice",
    )  # fmt: skip

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "kind": (list(cls.KINDS),)}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "put"
    CATEGORY = "tests"

    def put(self, model, kind):
        model = model.clone()
        if kind in WRAPPERS:
            model.set_model_unet_function_wrapper(WRAPPERS[kind])
        elif kind == "network under no_grad":
            wrappers = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
            model.add_wrapper(wrappers, network_without_gradients)
        elif kind == "detaching attention":
            model.model_options["transformer_options"]["optimized_attention_override"] = detaching_attention
        elif kind == "lora":
            generator = torch.Generator().manual_seed(9)
            weights = {k: w for k, w in model.model.state_dict().items() if k.endswith("to_q.weight")}
            change = {k: (0.5 * torch.randn(w.shape, generator=generator),) for k, w in weights.items()}
            model.add_patches(change, 1.0)
        elif kind == "bypass lora":
            model, _ = comfy.sd.load_bypass_lora_for_models(model, None, lora_of_queries(model), 1.0, 0.0)
        elif kind in MASKS:
            model.set_model_unet_function_wrapper(partial(MASKS[kind], torch.linspace(0.5, 1.5, 8)))
        elif kind == "noise scale":
            sampling = type(model.model.model_sampling)(model.model.model_config)
            sampling.set_noise_scale(2.0)
            model.add_object_patch("model_sampling", sampling)
        elif kind == "unassigned":
            model.set_model_sampler_pre_cfg_function(scaled_guidance(False))
        elif kind == "loaded twice":
            load_again_inside_another(model)
        elif kind == "multigpu":
            model.set_additional_models("multigpu", [model.clone()])
        elif kind == "fast fp8":
            model.model.diffusion_model.extra = torch.nn.ModuleList([comfy.ops.fp8_ops.Linear(4, 4)])
        elif kind == "wide block":
            model.model.model_config.unet_config["model_channels"] //= 2  # where FreeU reads which blocks are wide
        elif kind == "lowvram":
            always = property(lambda self: True, lambda self, value: None)
            model.model.__class__ = type("PartlyLoaded", (type(model.model),), {"model_lowvram": always})
        return (model,)


class BrokenReward:
    """Brightness, but for one thing."""

    name = "broken"

    def __init__(self, kind):
        self.kind, self.calls = kind, 0

    def __call__(self, images, prompts):
        self.calls += 1
        scores = images.mean(dim=(1, 2, 3))
        if self.kind == "nan" or self.kind == "nan later" and self.calls > 2:
            scores = scores * float("nan")
        if self.kind.startswith("out of memory") and self.calls >= int(self.kind.rpartition(" ")[2]):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self.kind == "raises":
            raise KeyError("a bug in a reward")
        if self.kind == "detached":
            scores = scores.detach()
        return scores.sum() if self.kind == "scalar" else scores

    @property
    def differentiable(self):
        return self.kind != "not differentiable"


class DNOTestReward:
    @classmethod
    def INPUT_TYPES(cls):
        kinds = ["nan", "nan later", "raises", "detached", "scalar", "not differentiable"]
        kinds += ["out of memory 1", "out of memory 2", "out of memory 4"]
        return {"required": {"kind": (kinds,)}}

    RETURN_TYPES = ("DNO_REWARD",)
    FUNCTION = "make"

    @classmethod
    def IS_CHANGED(cls, kind):
        return float("nan")  # it counts its calls: each workflow gets one of its own

    CATEGORY = "tests"

    def make(self, kind):
        return (BrokenReward(kind),)


NODES = (DNOTestObstacle, DNOTestReward)
