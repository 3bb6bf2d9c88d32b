"""Reward nodes: each gives one DNO_REWARD, a `reward(images, prompts) -> scores`."""

import comfy.model_management
import torch
from comfy_api.latest import io

from .. import rewards
from ..core.embedded.vocabulary import words_of
from . import sockets


class DNOBrightnessReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOBrightnessReward",
            display_name="Brightness Reward",
            category=sockets.CATEGORY,
            description="The mean pixel of the picture, from -1 (black) to 1 (white), or its negative.",
            inputs=[
                io.Boolean.Input(
                    "negative", default=False, label_on="dark", label_off="bright",
                    tooltip="Reward dark pictures instead of bright ones.",
                )
            ],
            outputs=[sockets.Reward.Output("reward", display_name="reward", tooltip="For the DNO Sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, negative) -> io.NodeOutput:
        return io.NodeOutput(rewards.Brightness(negative=negative))


class DNOJPEGReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOJPEGReward",
            display_name="JPEG Reward",
            category=sockets.CATEGORY,
            description=(
                "How small the picture is as a JPEG file, minus its kilobytes at quality 95, or how large. The real"
                " size has no gradient: use it with DNO Solver (Zeroth-Order), (ZeNO) or (Search)."
            ),
            inputs=[
                io.Boolean.Input(
                    "incompressible", default=False, label_on="large files", label_off="small files",
                    tooltip="Reward large files, full of detail, instead of small ones, which are plain.",
                ),
                io.Boolean.Input(
                    "proxy", default=False, label_on="differentiable proxy", label_off="real file size",
                    tooltip="Judge by a smooth estimate of the size, in other units, which DNO Solver (Gradient) can"
                    " climb, instead of by the file itself.",
                ),
            ],
            outputs=[sockets.Reward.Output("reward", display_name="reward", tooltip="For the DNO Sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, incompressible, proxy) -> io.NodeOutput:
        reward = rewards.JPEGProxy if proxy else rewards.JPEG
        return io.NodeOutput(reward(incompressible=incompressible))


class DNOConsistencyReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOConsistencyReward",
            display_name="Consistency Reward",
            category=sockets.CATEGORY,
            description=(
                "How well pictures of the embedded model show the prompt's colour and animal, from 0 to 1. Connect it"
                " to the DNO Sampler's watch input to see whether another reward ruins the picture."
            ),
            inputs=[
                io.String.Input(
                    "prompt", default="black cat",
                    tooltip="'<colour> <animal>', as in the positive prompt; the colour may be left out.",
                )
            ],
            outputs=[sockets.Reward.Output("reward", display_name="reward", tooltip="For the DNO Sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, prompt) -> io.NodeOutput:
        words_of(prompt)  # raises before any sampling
        # Outside inference mode: the classifier's weights take part in gradients later.
        with torch.inference_mode(False):
            return io.NodeOutput(rewards.Consistency(prompt, comfy.model_management.get_torch_device()))
