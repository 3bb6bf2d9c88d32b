"""Solver and regulariser nodes: how the noise is changed, and what keeps it probable."""

from comfy_api.latest import io

from .. import core
from . import sockets


class DNOSolverGradient(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOSolverGradient",
            display_name="DNO Solver (Gradient)",
            category=sockets.CATEGORY,
            description="Climbs the reward by its exact gradient by the noise. Needs a differentiable reward.",
            inputs=[
                io.Float.Input(
                    "lr", default=0.01, min=0.00001, max=100.0, step=0.001, round=0.00001,
                    tooltip="Learning rate, for Adam in units of the noise's standard deviation. 0.01 is the paper's,"
                    " 0.03 suits short runs.",
                ),
                io.Combo.Input(
                    "optimizer", options=["adam", "sgd"], default="adam",
                    tooltip="Adam, or stochastic gradient ascent with Nesterov momentum.",
                ),
                io.Float.Input(
                    "momentum", default=0.9, min=0.0, max=0.999, step=0.01, round=0.001,
                    tooltip="Of sgd; Adam does not use it.",
                ),
                io.Float.Input(
                    "clip", default=0.0, min=0.0, max=1000000.0, step=0.1, round=0.0001,
                    tooltip="Largest norm of each picture's gradient, against bursts in long schedules. 0 sets none.",
                ),
            ],
            outputs=[sockets.Solver.Output("solver", display_name="solver", tooltip="For the DNO Sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, lr, optimizer, momentum, clip) -> io.NodeOutput:
        return io.NodeOutput(core.GradientAscent(lr=lr, optimizer=optimizer, momentum=momentum, clip=clip or None))


class DNOProbabilityRegularizer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOProbabilityRegularizer",
            display_name="DNO Probability Regularizer",
            category=sockets.CATEGORY,
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
            ],
            outputs=[
                sockets.Regularizer.Output("regularizer", display_name="regularizer", tooltip="For the DNO Sampler.")
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, gamma, k, permutations, apart) -> io.NodeOutput:
        return io.NodeOutput(core.ProbabilityRegularizer(gamma=gamma, k=k, permutations=permutations, apart=apart))
