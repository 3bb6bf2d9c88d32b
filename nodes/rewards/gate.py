"""A node that lets pictures through, or not, by what a reward thinks of them."""

import math

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from .. import page, sockets
from .score import inputs_of_a_score, judged, ranked, rows_of

BY_SCORE, BY_NUMBER = "score", "number"


class DNOGate(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        sides = [("accepted", "let through"), ("rejected", "not let through")]
        return io.Schema(
            node_id="DNOGate",
            display_name="DNO Gate",
            category=sockets.REWARDS,
            **sockets.aliases("filter", "threshold", "accept", "reject"),
            description=(
                "Parts the pictures of a batch by a reward: those that score high enough, or the best few, and the"
                " others, each with their latents and noises. Nodes behind an empty side are not run."
            ),
            is_output_node=True,
            inputs=[
                *inputs_of_a_score(),
                io.Combo.Input(
                    "by", options=[BY_SCORE, BY_NUMBER], default=BY_SCORE,
                    tooltip="score: those that reach the threshold. number: the best few.",
                ),
                io.Float.Input(
                    "threshold", default=0.0, min=-1000000.0, max=1000000.0, step=0.01, round=0.0001,
                    tooltip="By score: the least score that is let through.",
                ),
                io.Int.Input("count", default=1, min=0, max=4096, tooltip="By number: how many are let through."),
                io.Latent.Input("latents", optional=True, tooltip="The latents of the pictures, in the same order."),
                sockets.Noise.Input("noise", optional=True, tooltip="The noise of the pictures, in the same order."),
            ],
            outputs=[
                output
                for side, meaning in sides
                for output in (
                    io.Image.Output(f"{side}_images", display_name=side, tooltip=f"Pictures {meaning}, best first."),
                    io.Latent.Output(f"{side}_latents", display_name=f"{side} latents", tooltip="Their latents."),
                    sockets.Noise.Output(f"{side}_noise", display_name=f"{side} noise", tooltip="Their noise."),
                    io.Int.Output(f"{side}_count", display_name=f"{side} count", tooltip="How many they are."),
                )
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, images, reward, by, threshold, count, prompt="", latents=None, noise=None) -> io.NodeOutput:
        for name, found in (("latents", latents and len(latents["samples"])), ("noises", noise and noise.batch)):
            if found is not None and found != len(images):
                raise ValueError(f"there are {found} {name} for {len(images)} images; expected one each")
        _, scores, _ = judged(images, reward, prompt)
        order = ranked(scores)
        most = sum(score >= threshold for score in scores.tolist()) if by == BY_SCORE else count
        sides = order[:most], order[most:]
        outputs = [output for rows in sides for output in side(rows, images, latents, noise)]
        text = f"{len(sides[0])} of {len(images)} let through: scores {written(sides[0], scores)}"
        return io.NodeOutput(*outputs, ui=page.shown(f"{text}; not {written(sides[1], scores)}"))


def side(rows, images, latents, noise):
    """Return the images, latents, noise and number of some rows; what is not there stops the nodes behind it."""
    nothing = ExecutionBlocker(None)
    return (
        images[rows] if rows else nothing,
        rows_of(latents, rows) if rows and latents is not None else nothing,
        noise.items(rows) if rows and noise is not None else nothing,
        len(rows),
    )


def written(rows, scores):
    """Return the scores of some rows as a text."""
    return " ".join(f"{scores[row]:.3g}" for row in rows if math.isfinite(scores[row])) or "none"
