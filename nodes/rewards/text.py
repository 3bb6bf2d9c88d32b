"""The node of texts that a picture shall show: the recogniser's file, the text, and where it shall stand."""

from comfy_api.latest import io

from ... import rewards
from .. import sockets
from . import files
from .networks import FileReward, file_input


class DNOTextReward(FileReward):
    source = "Text"
    packages = ()

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOTextReward",
            display_name="Text Reward",
            category=sockets.REWARDS,
            description=(
                "How well a text can be read off one line of the picture, by PP-OCR's recogniser: the log-probability"
                " of just that text, per character. 0: for certain; -5 and less: not at all."
            ),
            **sockets.aliases("reward", "score", "text", "ocr", "typography", "letters", "words", "logo"),
            inputs=[
                file_input("file", cls.source),
                io.String.Input("text", tooltip="What the picture shall show, on one line, from left to right."),
                share("x", 0.0, "Left edge of the box that the line shall fill, as a share of the picture's width."),
                share("y", 0.35, "Top edge of the box, as a share of the picture's height."),
                share("width", 1.0, "Of the box, as a share of the picture's width.", least=0.01),
                share("height", 0.3, "Of the box, as a share of the picture's height.", least=0.01),
            ],
            outputs=[sockets.Reward.Output("reward", display_name="reward", tooltip="For the DNO Sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, file, text, x, y, width, height) -> io.NodeOutput:
        tower = files.tower(file, cls.source, "float32")
        return io.NodeOutput(rewards.ShownText(tower, text, (x, y, width, height)))


def share(name, default, tooltip, least=0.0):
    return io.Float.Input(name, default=default, min=least, max=1.0, step=0.01, round=0.0001, tooltip=tooltip)
