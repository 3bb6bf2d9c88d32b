"""The node of networks in ONNX files: the file, how the network sees pictures, and which of its numbers counts."""

from comfy_api.latest import io

from ... import rewards
from ...rewards.onnx import ACTIVATIONS, CHANNELS, FITS, IMAGENET_MEAN, IMAGENET_STD, LAYOUTS
from .. import sockets
from . import files
from .networks import FileReward, crops_input, file_input, of_crops

RANGES = {"0 to 1": 1.0, "0 to 255": 255.0}
"""What a list offers -> the scale of `rewards.OnnxPixels`."""
MEAN_RATING = -1
"""A class_index for the mean rating."""


class DNOONNXReward(FileReward):
    source = "ONNX"
    packages = ()

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOONNXReward",
            display_name="ONNX Reward",
            category=sockets.REWARDS,
            description=(
                "Any network that judges pictures, as an ONNX file: a classifier, a detector's map, a quality or"
                " aesthetic score. No code of the file runs. Its author says how it wants its pixels."
            ),
            **sockets.aliases("reward", "score", "classifier", "onnx", "nsfw", "nima"),
            inputs=[
                file_input("file", cls.source),
                io.Int.Input(
                    "size", default=0, min=0, max=4096,
                    tooltip="Side of the square of pixels that the network takes. 0: the size in the file.",
                ),
                io.Combo.Input(
                    "fit", options=list(FITS),
                    tooltip="A picture that is no square: stretch it, or crop what is beyond the middle.",
                ),
                io.Float.Input(
                    "kept", default=1.0, min=0.1, max=1.0, step=0.001, round=0.000001,
                    tooltip="Share of each side that the network sees, the middle: 0.875 resizes to 256 and keeps 224.",
                ),
                io.Combo.Input(
                    "range", options=list(RANGES), tooltip="Of the pixels, before mean and std: of most, 0 to 1."
                ),
                io.String.Input(
                    "mean", default=", ".join(map(str, IMAGENET_MEAN)),
                    tooltip="Subtracted from the pixels, in units of range: one number, or one for each channel.",
                ),
                io.String.Input(
                    "std", default=", ".join(map(str, IMAGENET_STD)),
                    tooltip="What the pixels are divided by then: one number, or one for each channel.",
                ),
                io.Combo.Input("channels", options=list(CHANNELS), tooltip="Their order; mean and std are in it too."),
                io.Combo.Input(
                    "layout", options=list(LAYOUTS),
                    tooltip="NCHW has the channels before the rows, NHWC after the columns; auto looks into the file.",
                ),
                io.String.Input(
                    "output", default="0", tooltip="Which output of the network counts: its number or its name."
                ),
                io.Int.Input(
                    "class_index", default=0, min=MEAN_RATING, max=1_000_000,
                    tooltip="Which number of that output counts, from 0 on. -1: the mean rating, of networks that give"
                    " a probability for each rating from 1 on, such as NIMA.",
                ),
                io.Combo.Input(
                    "activation", options=list(ACTIVATIONS),
                    tooltip="What is done to the output first: softmax or sigmoid make probabilities of logits; log is"
                    " for probabilities, whose gradient is next to nothing near 0 and 1.",
                ),
                io.Boolean.Input(
                    "negative", default=False, label_on="lower is better", label_off="higher is better",
                    tooltip="Reward low numbers instead of high ones.",
                ),
                crops_input(),
            ],
            outputs=[sockets.Reward.Output("reward", display_name="reward", tooltip="For the DNO Sampler.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, file=None, mean=None, std=None):
        try:
            for name, text in (("mean", mean), ("std", std)):
                if text is not None:  # else it comes by a link, and is known when the node runs
                    numbers(name, text)
        except ValueError as error:
            return str(error)
        return super().validate_inputs(file)

    @classmethod
    def execute(
        cls, file, size, fit, kept, range, mean, std, channels, layout, output, class_index, activation, negative, crops
    ) -> io.NodeOutput:
        pixels = rewards.OnnxPixels(
            size or None, fit, kept, numbers("mean", mean), numbers("std", std), RANGES[range], channels, layout
        )
        reward = rewards.ONNX(
            files.tower(file, cls.source, "float32"),
            pixels,
            int(output) if output.strip().isdecimal() else output.strip(),
            None if class_index == MEAN_RATING else class_index,
            activation,
            negative,
        )
        return of_crops(reward, crops)


def numbers(name, text):
    """Return the numbers of a text, which commas part."""
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise ValueError(f"{name} is {text!r}; expected numbers such as 0.485, 0.456, 0.406, or one for all") from error
