"""Regulariser nodes: what keeps the noise like that which the model was trained on, or the picture like its own."""

from comfy_api.latest import io

from .. import core
from . import sockets


class DNOProbabilityRegularizer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOProbabilityRegularizer",
            display_name="DNO Probability Regularizer",
            category=sockets.SOLVERS,
            description=(
                "Pulls the noise back where it becomes improbable under the normal distribution: the picture then stays"
                " one that the model believes in, at some cost of reward (the paper's PRNO)."
            ),
            inputs=[
                io.Float.Input(
                    "gamma", default=1.0, min=0.0, max=1000.0, step=0.1, round=0.0001,
                    tooltip="Weight against the reward: 1 for brightness, about 0.1 for human-preference rewards.",
                ),
                io.Int.Input(
                    "k", default=2, min=1, max=100, tooltip="Length of the sub-vectors whose statistics are tested."
                ),
                io.Int.Input(
                    "permutations", default=100, min=0, max=1000,
                    tooltip="Random orders of the noise that are tested beside its own.",
                ),
                io.Boolean.Input(
                    "apart", default=True, label_on="first noise apart", label_off="all noise together",
                    tooltip="Judge the first noise by itself beside the injected ones: among them it can drift unseen.",
                ),
                io.Boolean.Input(
                    "structured", default=False, optional=True, label_on="patterns too", label_off="values alone",
                    tooltip="Count patterns too, such as blur, stripes and repetition, which no random order shows."
                    " They lower P in the history in any case.",
                ),
            ],
            outputs=[regularizer_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, gamma, k, permutations, apart, structured=False) -> io.NodeOutput:
        return io.NodeOutput(
            core.ProbabilityRegularizer(
                gamma=gamma, k=k, permutations=permutations, apart=apart, structured=structured
            )
        )


class DNONormRegularizer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNONormRegularizer",
            display_name="DNO Norm Regularizer",
            category=sockets.SOLVERS,
            description=(
                "Keeps the length of the noise that of true noise, as ReNO does. It sees the length alone, where DNO"
                " Probability Regularizer sees patterns too, with structured on."
            ),
            inputs=[
                io.Float.Input(
                    "weight", default=0.01, min=0.0, max=1000.0, step=0.001, round=0.00001,
                    tooltip="Weight against the reward. 0.01 is ReNO's, for rewards whose weights add up to about 6.",
                ),
            ],
            outputs=[regularizer_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, weight) -> io.NodeOutput:
        return io.NodeOutput(core.NormRegularizer(weight=weight))


class DNOPictureRegularizer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOPictureRegularizer",
            display_name="DNO Picture Regularizer",
            category=sockets.SOLVERS,
            **sockets.aliases("belief", "denoising loss", "reward hacking", "MIRA"),
            description=(
                "Holds the picture back where the model that is searched would not make it, at some cost of reward: it"
                " asks the model itself, where the other regularizers look at the noise alone."
            ),
            inputs=[
                io.Combo.Input(
                    "kind", options=list(core.PICTURE_KINDS), default="belief",
                    tooltip="belief: how much the prompt explains of the picture, 1 in ordinary ones. loss: how hard"
                    " the model finds it, beside ordinary ones. start: how far it is from the picture of your seed.",
                ),
                io.Float.Input(
                    "gamma", default=0.3, min=0.0, max=1000.0, step=0.1, round=0.0001,
                    tooltip="Weight against the reward. 0.3 suits brightness, whose gains are about 1; larger rewards"
                    " take more.",
                ),
                io.Int.Input(
                    "noises", default=2, min=1, max=64,
                    tooltip="How many noises are tried on it, at each of two levels: each costs two calls of"
                    " the model with cfg an iteration, there and back.",
                ),
                sockets.Regularizer.Input(
                    "beside", optional=True,
                    tooltip="A regularizer of the noise that counts beside this: DNO Probability Regularizer or DNO"
                    " Norm Regularizer.",
                ),
            ],
            outputs=[regularizer_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, kind, gamma, noises, beside=None) -> io.NodeOutput:
        return io.NodeOutput(core.PictureRegularizer(kind, gamma, beside, noises=noises))


def regularizer_output():
    return sockets.Regularizer.Output("regularizer", display_name="regularizer", tooltip="For the DNO Sampler.")
