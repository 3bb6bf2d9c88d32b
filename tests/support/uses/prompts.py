"""Uses of the conditionings: regions, times, mixtures, and what else a prompt can carry."""

import comfy.cldm.cldm
import comfy.controlnet
import comfy.gligen
import comfy.ops
import torch
from comfy_server.test_nodes.models import CONTEXT, fill

from .pictures import mask
from .setting import UNET, Use, patcher_of, picture, prompt, random, stock


def beside(setting, node, **inputs):
    """Return the setting with a second prompt beside the first, sent through a stock node."""
    second = stock(node, conditioning=prompt(14), **inputs)
    return setting.but(positive=stock("ConditioningCombine", conditioning_1=setting.positive, conditioning_2=second))


def combined(setting):
    return setting.but(
        positive=stock("ConditioningCombine", conditioning_1=setting.positive, conditioning_2=prompt(14))
    )


def mixed(setting, node, **inputs):
    return setting.but(positive=stock(node, conditioning_to=setting.positive, conditioning_from=prompt(14), **inputs))


def one_after_the_other(setting):
    """Return the setting with one prompt for the first half of the steps and another for the rest."""
    first = stock("ConditioningSetTimestepRange", conditioning=setting.positive, start=0.0, end=0.4)
    second = stock("ConditioningSetTimestepRange", conditioning=prompt(14), start=0.4, end=1.0)
    return setting.but(positive=stock("ConditioningCombine", conditioning_1=first, conditioning_2=second))


def zeroed(setting):
    return setting.but(negative=stock("ConditioningZeroOut", conditioning=setting.negative))


def default_combined(setting):
    here = stock("ConditioningSetProperties", cond_NEW=prompt(14), mask=mask())
    return setting.but(positive=stock("ConditioningSetDefaultCombine", cond=here, cond_DEFAULT=setting.positive))


def properties(setting):
    times = stock("ConditioningTimestepsRange", start_percent=0.0, end_percent=0.5)
    times = times[0] if isinstance(times, tuple) and len(times) == 3 else times
    positive, negative = stock(
        "PairConditioningSetPropertiesAndCombine", positive=setting.positive, negative=setting.negative,
        positive_NEW=prompt(14), negative_NEW=prompt(15), strength=0.8, set_cond_area="default", mask=mask(),
        timesteps=times,
    )  # fmt: skip
    return setting.but(positive=positive, negative=negative)


def control_net(seed):
    """Return a random ControlNet for the tiny network, as CONTROL_NET."""
    sizes = {key: value for key, value in UNET.items() if key != "out_channels"}
    # ComfyUI's own code counts its levels' outputs otherwise than its UNet's.
    model = comfy.cldm.cldm.ControlNet(hint_channels=3, operations=comfy.ops.disable_weight_init, **sizes)
    fill(model, seed)
    return comfy.controlnet.ControlNet(model, load_device=torch.device("cpu"))


def controlled(setting, seed=31, start=0.0, end=1.0, strength=0.7):
    positive, negative = stock(
        "ControlNetApplyAdvanced", positive=setting.positive, negative=setting.negative,
        control_net=control_net(seed), image=picture(22), strength=strength, start_percent=start, end_percent=end,
    )  # fmt: skip
    return setting.but(positive=positive, negative=negative)


class Adapter(torch.nn.Module):
    """A T2I adapter for a network of two levels: ComfyUI's own are for four."""

    unshuffle_amount = 8

    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(192, 32, 3, padding=1)
        fill(self, 32)

    def forward(self, x):
        # Read from the end: one entry for each of the network's blocks.
        return {"input": [None, None, self.convolution(torch.nn.functional.pixel_unshuffle(x, 8)), None]}


def adapted(setting):
    """Return the setting with a T2I adapter."""
    adapter = comfy.controlnet.T2IAdapter(Adapter(), 3, 8, "nearest-exact", torch.device("cpu"))
    return setting.prompted("ControlNetApply", control_net=adapter, image=picture(22), strength=0.5)


class Embedder:
    """The CLIP that GLIGEN's node asks for a text's embedding."""

    def tokenize(self, text):
        return text

    def encode_from_tokens(self, tokens, return_pooled):
        return random(1, 7, CONTEXT, seed=33), random(1, CONTEXT, seed=34)


def placed(setting):
    """Return the setting with a thing that GLIGEN puts into a box."""
    widths = (32, 64, 32, 32)  # of the network's transformers, in their order
    modules = [comfy.gligen.GatedSelfAttentionDense(width, CONTEXT, 2, width // 2) for width in widths]
    model = comfy.gligen.Gligen(modules, comfy.gligen.PositionNet(CONTEXT, CONTEXT), CONTEXT)
    fill(model, 35)
    return setting.but(
        positive=stock(
            "GLIGENTextBoxApply", conditioning_to=setting.positive, clip=Embedder(), text="a hat", width=32, height=32,
            gligen_textbox_model=patcher_of(model),
        )
    )  # fmt: skip


class StyleModel:
    """A picture's style as words, as Redux and T2I's style adapters give it."""

    def get_cond(self, clip_vision_output):
        return random(1, 3, CONTEXT, seed=36)


def styled(setting):
    return setting.prompted(
        "StyleModelApply", style_model=StyleModel(), clip_vision_output=None, strength=0.5, strength_type="multiply"
    )


PROMPTS = [
    Use("a prompt for each picture", "Prompts", lambda s: s.but(positive=prompt(11, rows=2))),
    Use("prompts of other lengths (ConditioningConcat)", "Prompts", lambda s: mixed(s, "ConditioningConcat")),
    Use("ConditioningAverage", "Prompts", lambda s: mixed(s, "ConditioningAverage", conditioning_to_strength=0.6)),
    Use("ConditioningCombine", "Prompts", combined),
    Use("ConditioningSetArea", "Prompts", lambda s: beside(s, "ConditioningSetArea", width=32, height=64, x=32)),
    Use(
        "ConditioningSetAreaPercentage",
        "Prompts",
        lambda s: beside(s, "ConditioningSetAreaPercentage", width=0.5, height=0.5, x=0.5),
    ),
    Use("ConditioningSetAreaStrength", "Prompts", lambda s: beside(s, "ConditioningSetAreaStrength", strength=0.3)),
    Use(
        "ConditioningSetMask, whole picture",
        "Prompts",
        lambda s: beside(s, "ConditioningSetMask", mask=mask(), strength=0.9, set_cond_area="default"),
    ),
    Use(
        "ConditioningSetMask, mask bounds",
        "Prompts",
        lambda s: beside(s, "ConditioningSetMask", mask=mask(), strength=0.9, set_cond_area="mask bounds"),
    ),
    Use("ConditioningSetTimestepRange", "Prompts", one_after_the_other),
    Use("ConditioningSetDefaultCombine", "Prompts", default_combined),
    Use("PairConditioningSetPropertiesAndCombine", "Prompts", properties),
    Use("ConditioningMultiply", "Prompts", lambda s: s.prompted("ConditioningMultiply", multiplier=1.3)),
    Use("ConditioningZeroOut as the negative", "Prompts", zeroed),
    Use("cfg 1", "Prompts", lambda s: s.but(cfg=1.0)),
    Use("cfg 0", "Prompts", lambda s: s.but(cfg=0.0)),
    Use("ControlNet", "Prompts", controlled),
    Use("two ControlNets", "Prompts", lambda s: controlled(controlled(s), seed=41)),
    Use("ControlNet for some of the steps", "Prompts", lambda s: controlled(s, start=0.2, end=0.6)),
    Use("T2I adapter", "Prompts", adapted),
    Use("GLIGEN", "Prompts", placed),
    Use("style model", "Prompts", styled),
]
