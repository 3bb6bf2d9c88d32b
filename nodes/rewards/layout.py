"""Reward nodes that judge how a picture is laid out and its colours as a whole: no file, no network."""

from comfy_api.latest import io

from ... import rewards
from ...rewards.layout import AXES
from .pictures import pictures_of
from .pixels import schema

REFERENCE = "the reference's pictures"


class DNOPaletteReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "DNOPaletteReward", "Palette Reward",
            "How near the picture's colours are to a reference's, wherever they stand: 0 the same in the same shares,"
            " -0.05 to -0.2 from one photograph to another.",
            io.Image.Input("reference", tooltip="Whose colours the pictures shall have; of several, all pixels count."),
        )  # fmt: skip

    @classmethod
    def execute(cls, reference) -> io.NodeOutput:
        return io.NodeOutput(rewards.Palette(pictures_of(reference, REFERENCE)))


class DNOSymmetryReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "DNOSymmetryReward", "Symmetry Reward",
            "How like its own mirror image the picture is, from 1 (exactly) over 0 (not at all) to -1 (its negative),"
            " or minus that.",
            io.Combo.Input(
                "about", options=list(AXES), default="left-right",
                tooltip="left-right: mirrored as a face is; top-bottom: as by water; half turn: as a playing card.",
            ),
            io.Boolean.Input(
                "negative", default=False, label_on="asymmetric", label_off="symmetric",
                tooltip="Reward asymmetric pictures instead of symmetric ones.",
            ),
        )  # fmt: skip

    @classmethod
    def execute(cls, about, negative) -> io.NodeOutput:
        return io.NodeOutput(rewards.Symmetry(about, negative))


class DNOLayoutReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "DNOLayoutReward", "Layout Reward",
            "How well the picture is laid out as a reference is: where its edges are, or what is light and dark. 1"
            " alike, 0 not at all, -1 the opposite.",
            io.Image.Input(
                "reference",
                tooltip="A picture, a drawing, a map of edges or of depth: one for all pictures, or one for each. It is"
                " stretched to their shape.",
            ),
            io.Combo.Input(
                "by", options=["edges", "light"], default="edges",
                tooltip="edges: where edges are, whatever the colours; light: what is light and dark, coarsely.",
            ),
        )  # fmt: skip

    @classmethod
    def execute(cls, reference, by) -> io.NodeOutput:
        return io.NodeOutput(rewards.Layout(pictures_of(reference, REFERENCE), by))
