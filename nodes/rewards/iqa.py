"""The node of pyiqa's metrics: it is there without that package too, and says how to install it."""

from comfy_api.latest import io

from ... import rewards
from ...rewards.iqa import metrics
from .. import page, requirements, sockets
from . import files
from .layout import REFERENCE
from .pictures import pictures_of

PACKAGE = "pyiqa"
NOT_INSTALLED = "pyiqa is not installed"
"""What the list offers then; saved workflows may have it."""
USUAL = "topiq_nr"
"""What a new node begins with, where it is listed."""


class DNOIQAReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        names = sorted(metrics(), key=lambda name: name != USUAL) or [NOT_INSTALLED]
        return io.Schema(
            node_id="DNOIQAReward",
            display_name="IQA Metric Reward",
            category=sockets.REWARDS,
            **sockets.aliases("pyiqa", "quality", "topiq", "musiq", "clip-iqa", "nima", "niqe", "ssim", "lpips"),
            description=(
                "A metric of the package pyiqa, if you have installed it: TOPIQ, MUSIQ, CLIP-IQA, NIMA and others judge"
                " a picture, SSIM, LPIPS and others compare it with a reference. Nothing is downloaded."
            ),
            inputs=[
                io.Combo.Input(
                    "metric", options=names,
                    tooltip="Where lower is better the reward is minus the metric. The node says its range, most often"
                    " 0 to 1 or 0 to 100, when it has run.",
                ),
                io.Image.Input(
                    "reference", optional=True,
                    tooltip="What pictures are compared with, by metrics that compare: one for all, or one for each. It"
                    " is resized to theirs. Other metrics do not use it.",
                ),
            ],
            outputs=[sockets.Reward.Output("reward", display_name="reward", tooltip="For the DNO Sampler.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, metric=None):
        installed = requirements.met_besides(PACKAGE)
        if installed is not True or metric is None or metric in metrics():
            return installed
        return f"pyiqa has no metric {metric!r} of a picture; choose one of the list"

    @classmethod
    def execute(cls, metric, reference=None) -> io.NodeOutput:
        reward = rewards.IQA(metric, None if reference is None else pictures_of(reference, REFERENCE))
        files.managed(reward.tower)
        better = "lower is better, so the reward is minus it" if reward.lower_is_better else "higher is better"
        return io.NodeOutput(reward, ui=page.shown(f"{metric}: {reward.range}; {better}"))
