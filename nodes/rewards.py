"""Reward nodes: each gives one DNO_REWARD, a `reward(images, prompts) -> scores`."""

from comfy_api.latest import io

from .. import rewards
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
