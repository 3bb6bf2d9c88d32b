"""Reward nodes that judge the pixels alone: no file, no network."""

from comfy_api.latest import io
from PIL import ImageColor

from ... import rewards
from .. import sockets


class DNOBrightnessReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOBrightnessReward",
            display_name="Brightness Reward",
            category=sockets.REWARDS,
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
            category=sockets.REWARDS,
            description=(
                "How small the picture is as a JPEG file, minus its kilobytes at quality 95, or how large. The real"
                " size has no gradient: use it with DNO Solver (ZeNO), (Search) or (Zeroth-Order)."
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


class PixelReward(io.ComfyNode):
    """A node whose reward has an opposite and no other setting.

    Attributes:
        judge: the reward's class.
    """

    judge: type

    @classmethod
    def schema_with_negative(cls, node_id, display_name, description, label_off, label_on):
        """Return the schema of a node that rewards what `label_off` says, or its opposite `label_on`."""
        negative = io.Boolean.Input(
            "negative", default=False, label_on=label_on, label_off=label_off,
            tooltip=f"Reward {label_on} pictures instead of {label_off} ones.",
        )  # fmt: skip
        return schema(node_id, display_name, description, negative)

    @classmethod
    def execute(cls, negative) -> io.NodeOutput:
        return io.NodeOutput(cls.judge(negative=negative))


class DNOContrastReward(PixelReward):
    judge = rewards.Contrast

    @classmethod
    def define_schema(cls):
        return cls.schema_with_negative(
            "DNOContrastReward", "Contrast Reward",
            "How much light and dark differ in the picture (RMS contrast), from 0 (flat) to 0.5 (half black, half"
            " white), or its negative.",
            "contrasty", "flat",
        )  # fmt: skip


class DNOSaturationReward(PixelReward):
    judge = rewards.Saturation

    @classmethod
    def define_schema(cls):
        return cls.schema_with_negative(
            "DNOSaturationReward", "Saturation Reward",
            "How colourful the pixels are on average, from 0 (no colour) to 1 (pure colours), or its negative.",
            "colourful", "grey",
        )  # fmt: skip


class DNOSharpnessReward(PixelReward):
    judge = rewards.Sharpness

    @classmethod
    def define_schema(cls):
        return cls.schema_with_negative(
            "DNOSharpnessReward", "Sharpness Reward",
            "How strong edges and details are (standard deviation of the Laplacian), about 0.1 to 0.3 in photographs"
            " and 0 where there are none, or its negative. Grain scores high too.",
            "sharp", "blurred",
        )  # fmt: skip


class DNOColorReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "DNOColorReward", "Color Reward",
            "How near the pixels are to one colour, from -3 at worst to 0 (all of that colour); with a mask, the"
            " pixels inside it.",
            io.String.Input(
                "color", default="#ff8000",
                tooltip="#ff8000, or red, green and blue from 0 to 255: 255, 128, 0; or a name, such as orange.",
            ),
            io.Mask.Input(
                "mask", optional=True,
                tooltip="Where the colour counts: 1 inside, 0 outside. Any size; one for all pictures or one for each.",
            ),
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, color=None):
        try:
            if color is not None:  # else it comes by a link, and is known when the node runs
                color_of(color)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, color, mask=None) -> io.NodeOutput:
        return io.NodeOutput(rewards.ColorTarget(color_of(color), mask))


def schema(node_id, display_name, description, *inputs):
    return io.Schema(
        node_id=node_id, display_name=display_name, category=sockets.REWARDS, description=description,
        inputs=list(inputs),
        outputs=[sockets.Reward.Output("reward", display_name="reward", tooltip="For the DNO Sampler.")],
    )  # fmt: skip


def color_of(text):
    """Return (red, green, blue) in [0, 1] of what CSS calls a colour, or of three numbers from 0 to 255."""
    try:
        rgb = ImageColor.getrgb(f"rgb({text})" if text.strip()[:1].isdigit() else text.strip())
    except ValueError:
        rgb = ()
    if len(rgb) != 3 or max(rgb) > 255:
        raise ValueError(f"color is {text!r}; expected such as #ff8000, or 255, 128, 0, or a name such as orange")
    return tuple(value / 255 for value in rgb)
