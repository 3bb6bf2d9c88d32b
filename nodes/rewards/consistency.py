"""The reward that knows the embedded model's pictures: does it show the prompt's colour and animal?"""

import comfy.model_management
import torch
from comfy_api.latest import io

from ... import rewards
from ...core.models.embedded.vocabulary import words_of
from .. import page, sockets


class DNOConsistencyReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOConsistencyReward",
            display_name="Consistency Reward",
            category=sockets.REWARDS,
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
        page.show_unknown_words(prompt)
        # Outside inference mode: the classifier's weights take part in gradients later.
        with torch.inference_mode(False):
            return io.NodeOutput(rewards.Consistency(prompt, comfy.model_management.get_torch_device()))
