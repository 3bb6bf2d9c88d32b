"""Nodes that judge pictures that are there already: scores, a ranking, the best of a batch."""

import comfy.model_management as mm
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ... import rewards
from ...core import plots
from ...core.scoring import finite_pictures, score
from .. import page, requirements, sockets
from ..report import as_image
from .combine import calibrated
from .pictures import pictures_of


class DNOScoreImages(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOScoreImages",
            display_name="DNO Score Images",
            category=sockets.REWARDS,
            description="What a reward thinks of pictures from anywhere: their scores, and the pictures in that order.",
            is_output_node=True,
            inputs=inputs_of_a_score(),
            outputs=[
                io.String.Output("text", display_name="text", tooltip="One line a picture, the best first."),
                io.Float.Output(
                    "scores", display_name="scores", is_output_list=True,
                    tooltip="A list of one score a picture, in the order of the batch.",
                ),
                io.Image.Output("ranking", display_name="ranking", tooltip="The pictures, the best first, captioned."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, images=None):
        return requirements.met("matplotlib")

    @classmethod
    def execute(cls, images, reward, prompt="") -> io.NodeOutput:
        pictures, scores, parts = judged(images, reward, prompt)
        order = ranked(scores)
        captions = [caption(place, index, scores, parts) for place, index in enumerate(order)]
        text = "\n".join(each.replace("\n", ", ") for each in captions)
        sheet = plots.contact_sheet([plots.to_pictures(pictures[index : index + 1])[0] for index in order], captions)
        return io.NodeOutput(text, scores.tolist(), as_image(sheet), ui=page.shown(text))


class DNOPickBest(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOPickBest",
            display_name="DNO Pick Best",
            category=sockets.REWARDS,
            **sockets.aliases("best of n", "select images", "top k"),
            description="The pictures of a batch that a reward likes most, with their latents.",
            inputs=[
                *inputs_of_a_score(),
                io.Int.Input("count", default=1, min=1, max=4096, tooltip="How many to keep.", optional=True),
                io.Latent.Input("latents", optional=True, tooltip="The latents of the pictures, in the same order."),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The best pictures, the very best first."),
                io.Latent.Output(
                    "latent", display_name="latent",
                    tooltip="Their latents; KSampler draws for each the noise it had in the batch.",
                ),
                io.Int.Output(
                    "indices", display_name="indices", is_output_list=True,
                    tooltip="A list of their numbers in the batch, from 0.",
                ),
                io.Float.Output("scores", display_name="scores", is_output_list=True, tooltip="Their scores, a list."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, images, reward, prompt="", count=1, latents=None) -> io.NodeOutput:
        if count > len(images):
            raise ValueError(f"count is {count} but the batch has {len(images)}; expected 1 .. {len(images)}")
        if latents is not None and len(latents["samples"]) != len(images):
            raise ValueError(
                f"there are {len(latents['samples'])} latents for {len(images)} images; expected one each: connect the"
                " latent that the images were decoded from"
            )
        _, scores, _ = judged(images, reward, prompt)
        order = ranked(scores)[:count]
        if latents is None:
            kept = ExecutionBlocker("DNO Pick Best has no latent to give; connect latents to it")
        else:
            kept = rows_of(latents, order)
        return io.NodeOutput(images[order], kept, order, scores[order].tolist())


def inputs_of_a_score():
    return [
        io.Image.Input("images", tooltip="The pictures, a batch."),
        sockets.Reward.Input("reward", tooltip="What they are judged by."),
        io.String.Input(
            "prompt", default="", multiline=True, optional=True,
            tooltip="For rewards that have no prompt of their own; the Reward nodes of this pack have.",
        ),
    ]  # fmt: skip


def judged(images, reward, prompt=""):
    """Score an IMAGE.

    Args:
        images: (B, H, W, C) in [0, 1], see `pictures_of`.
        reward: any reward, taken as its authors compute it; one to be calibrated is calibrated on these pictures.
        prompt: for all pictures; "" is none.

    Returns:
        pictures: (B, 3, H, W), on the CPU.
        scores: (B,), -inf of a picture that is not finite.
        parts: name -> (B,), the scores of the parts of a combined reward.
    """
    pictures = pictures_of(images)
    prompts = [prompt] * len(images) if prompt.strip() else None
    finite = finite_pictures(pictures)
    if not finite.any():
        raise ValueError("no picture is finite: all have NaN or infinite pixels; decode them anew, in float32")
    # Outside inference mode: what a reward loads or caches at its first call shall take part in gradients later.
    with torch.inference_mode(False):
        placed = pictures.to(mm.get_torch_device(), copy=True)
        reward = rewards.in_parity(calibrated(reward, [placed], prompts, finite.to(placed.device)))
        scores = score(reward, placed, prompts).cpu()
        parts = reward.part_scores(placed, prompts) if isinstance(reward, rewards.Combine) else {}
    if not scores[finite].isfinite().all():
        raise ValueError(f"the scores are {scores.tolist()}; expected finite numbers. Use another reward")
    return pictures, scores, parts


def ranked(scores):
    """Return the indices of scores (B,), the best first, as a list."""
    return scores.argsort(descending=True, stable=True).tolist()


def caption(place, index, scores, parts):
    """Return what stands below a picture: its place from 1, its number from 0, its score and those of the parts."""
    line = f"{place + 1}. picture {index}: {scores[index]:.4g}"
    if not scores[index].isfinite():
        return f"{line}, its pixels are not finite"
    return "\n".join([line] + [f"{name} {values[index]:.4g}" for name, values in parts.items()])


def rows_of(latent, rows):
    """Return a LATENT's rows with their masks, and the numbers in the batch by which KSampler draws their noises."""
    samples, mask = latent["samples"], latent.get("noise_mask")
    numbers = latent.get("batch_index", range(len(samples)))
    kept = {**latent, "samples": samples[rows], "batch_index": [numbers[row] for row in rows]}
    if mask is not None:
        kept["noise_mask"] = mask[[row % len(mask) for row in rows]]
    return kept
