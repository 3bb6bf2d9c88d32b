"""Report nodes: what a search did, as pictures."""

import numpy as np
import torch
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ..core import plots
from ..core.words import listed, number, probability
from . import page, requirements, sockets

NOT_DIAGNOSED = (
    "This search was not diagnosed: switch on `diagnose` in the DNO Sampler, run it again and let it come to its end."
)


class DNOReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOReport",
            display_name="DNO Report",
            category=sockets.REPORTS,
            **sockets.aliases("curve", "plot"),
            is_output_node=True,
            description=(
                "Curves of the reward, the watched reward and the noise's probability over the iterations, and start"
                " and best side by side."
            ),
            inputs=[
                sockets.History.Input("history", tooltip="From the DNO Sampler."),
                io.Int.Input(
                    "picture", default=-1, min=-1, max=4096,
                    tooltip="Number of the picture in the batch, from 0; -1 draws all of them.",
                ),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The curves, for Preview or Save Image."),
                io.Image.Output(
                    "comparison", display_name="comparison", tooltip="Start and best side by side, with their scores."
                ),
                io.Image.Output("start", display_name="start", tooltip="The start alone, for Image Compare."),
                io.Image.Output("best", display_name="best", tooltip="The best alone, for Image Compare."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, history=None):
        return requirements.met("matplotlib")

    @classmethod
    def execute(cls, history, picture) -> io.NodeOutput:
        item = None if picture < 0 else checked_item(history, picture)
        items = range(len(history.best)) if item is None else [item]
        curves, comparison = (as_image(p) for p in (plots.curves(history, item), plots.before_after(history, items)))
        start, best = (as_images(picture[list(items)]) for picture in (history.first_picture, history.best_picture))
        # As ComfyUI's own Compare Images names the two sides; `web/compare.js` lays them under its slider.
        shown = {"images": files(comparison), "a_images": files(start), "b_images": files(best)}
        shown |= page.shown(changes(history, items)).as_dict()
        return io.NodeOutput(curves, comparison, start, best, ui=shown)


class DNOTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOTrajectory",
            display_name="DNO Trajectory",
            category=sockets.REPORTS,
            description="A contact sheet of one picture's way through the search: first, last, best and some between.",
            inputs=[
                sockets.History.Input("history", tooltip="From the DNO Sampler."),
                io.Int.Input(
                    "picture", default=0, min=0, max=4096, tooltip="Number of the picture in the batch, from 0."
                ),
                io.Int.Input("count", default=8, min=3, max=64, tooltip="How many snapshots to show."),
            ],
            outputs=[io.Image.Output("image", display_name="image", tooltip="The sheet, for Preview or Save Image.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, history=None):
        return requirements.met("matplotlib")

    @classmethod
    def execute(cls, history, picture, count) -> io.NodeOutput:
        return io.NodeOutput(as_image(plots.trajectory(history, checked_item(history, picture), count)))


class DNODiagnostics(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNODiagnostics",
            display_name="DNO Diagnostics",
            category=sockets.REPORTS,
            description=(
                "What a search gained and why it stopped improving: the reward is at its top, the noise has no more"
                " influence, or the reward asks for what the noise cannot change. Needs `diagnose` on the sampler."
            ),
            inputs=[sockets.History.Input("history", tooltip="From a DNO Sampler with diagnose switched on.")],
            outputs=[
                io.String.Output("text", display_name="text", tooltip="One or two lines a picture, in plain words."),
                io.Image.Output("image", display_name="image", tooltip="The measures as bars, against what is zero."),
            ],
        )

    @classmethod
    def validate_inputs(cls, history=None):
        return requirements.met("matplotlib")

    @classmethod
    def execute(cls, history) -> io.NodeOutput:
        text = history.summary()
        if history.diagnosis is None:
            # No error, which would end the workflow after a long search; nodes that take the image do not run.
            text = f"{NOT_DIAGNOSED}\n{text}"
            return io.NodeOutput(text, ExecutionBlocker(None), ui=page.shown(text))
        return io.NodeOutput(text, as_image(plots.diagnosis(history.diagnosis)), ui=page.shown(text))


def checked_item(history, picture):
    """Return `picture`; raise ValueError where the batch has no such one."""
    batch = len(history.best)
    if picture >= batch:
        raise ValueError(f"picture is {picture} but the batch has {batch}; expected 0 .. {batch - 1}")
    return picture


def changes(history, items):
    """Return what the start and the best of some pictures of the batch score, a line each, and the lowest P."""
    scores = {history.reward: "score", **{name: f"watch/{name}" for name in history.watched}}
    start, best = history.rows[0], history.best_row
    lines = [f"{name} {of(start[key], items)} -> {of(best[key], items)}" for name, key in scores.items()]
    return "\n".join([*lines, f"P {lowest(start, items)} -> {lowest(best, items)}", history.stopped])


def of(values, items):
    """Return some pictures' values of a row in words."""
    return listed([values[item] for item in items])


def lowest(row, items):
    """Return the lowest P of some pictures in words, of the whole noise or of x_T alone."""
    return probability(min((row[key][item] for key in ("log_p", "log_p_initial") for item in items), key=number))


def files(images):
    """Save an IMAGE as Preview Image does, and return the files as ComfyUI's page asks for them, one a picture."""
    return ui.PreviewImage(images).as_dict()["images"]


def as_image(picture):
    """Return a PIL picture as a ComfyUI IMAGE, (1, H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def as_images(pictures):
    """Return pictures (B, 3, H, W) of 8 bits as a ComfyUI IMAGE."""
    return pictures.movedim(1, -1).float() / 255
