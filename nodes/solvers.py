"""Solver nodes: how the noise is changed from one iteration to the next, and where the direction comes from."""

from comfy_api.latest import io

from .. import core
from . import sockets
from .comfy_map import Guide

ESTIMATORS = {"hybrid-2": core.Hybrid2, "hybrid-1": core.Hybrid1, "zo-sgd": core.ZerothOrder}
BY_IMAGES = {"exact": core.Exact, "hybrid-2": core.Hybrid2, "hybrid-1": core.Hybrid1}
SEARCHES = {
    "best-of-n": lambda candidates, beta, seed: core.Search.best_of_n(candidates, seed),
    "zero-order": core.Search.zero_order,
    "pcn": lambda candidates, beta, seed: core.Search.pcn(beta, seed),
    "trs": lambda candidates, beta, seed: core.TRS(candidates, beta=beta, seed=seed),
}


class DNOSolverGradient(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOSolverGradient",
            display_name="DNO Solver (Gradient)",
            category=sockets.SOLVERS,
            **sockets.aliases("adam", "gradient ascent"),
            description="Climbs the reward by its exact gradient by the noise. Needs a differentiable reward.",
            inputs=[learning_rate_input("0.01 is the paper's, 0.03 suits short runs."), *update_inputs()],
            outputs=[solver_output()],
        )

    @classmethod
    def execute(cls, lr, optimizer, momentum, clip) -> io.NodeOutput:
        return io.NodeOutput(core.GradientAscent(lr=lr, optimizer=optimizer, momentum=momentum, clip=clip or None))


class DNOSolverZerothOrder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOSolverZerothOrder",
            display_name="DNO Solver (Zeroth-Order)",
            category=sockets.SOLVERS,
            **sockets.aliases("black box", "gradient-free", "hybrid"),
            description=(
                "Climbs rewards that have no gradient, such as file sizes, along one that is estimated from slightly"
                " perturbed pictures."
            ),
            inputs=[
                io.Combo.Input(
                    "method", options=list(ESTIMATORS), default="hybrid-2",
                    tooltip="hybrid-2: perturbs the noise and differentiates the model; climbs most an iteration."
                    " hybrid-1: perturbs the pixels; cheapest, for rewards that bear noisy pictures. zo-sgd: perturbs"
                    " the noise and differentiates nothing; slowest, for models without gradients.",
                ),
                learning_rate_input(
                    "0.01 is the paper's for JPEG, 0.001 for the aesthetic score. For ou the length of the first step,"
                    " at most 1; 0 chooses it by the number of iterations.", least=0.0,
                ),
                io.Int.Input(
                    "q", default=0, min=0, max=4096,
                    tooltip="Perturbations an iteration: more make the estimate truer and the iteration longer. 0 takes"
                    " the paper's number: 4 for hybrid-2, 8 for hybrid-1, 16 for zo-sgd.",
                ),
                io.Float.Input(
                    "mu", default=0.0, min=0.0, max=10.0, step=0.005, round=0.00001,
                    tooltip="Size of the perturbations, in standard deviations of the noise, for hybrid-1 in pixel"
                    " values of 0 to 1. Larger helps where the reward moves in jumps. 0 takes the paper's: 0.02 for"
                    " hybrid-2, 0.01 for the others.",
                ),
                seed_input("perturbations"),
                *update_inputs(
                    "ou", remark=" ou: each step as long as lr says, the last a third of the first, however rough the"
                    " estimate, and pushed back where noise becomes improbable; the quickest.",
                ),
            ],
            outputs=[solver_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, method, lr, q, mu, seed, optimizer, momentum, clip) -> io.NodeOutput:
        chosen = {name: value for name, value in (("q", q), ("mu", mu)) if value}
        estimator = known(method, ESTIMATORS)(seed=seed, **chosen)
        if lr == 0 and optimizer != "ou":
            raise ValueError(f"lr is 0, which lets ou choose it, and the optimizer is {optimizer}; expected e.g. 0.01")
        lr = lr or None
        return io.NodeOutput(
            core.GradientAscent(lr=lr, optimizer=optimizer, momentum=momentum, clip=clip or None, estimator=estimator)
        )


class DNOSolverZeNO(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOSolverZeNO",
            display_name="DNO Solver (ZeNO)",
            category=sockets.SOLVERS,
            **sockets.aliases("gradient-free", "path integral"),
            description=(
                "Moves the noise towards those of its random neighbours that score high, all of them weighed together."
                " Differentiates neither model nor reward. The regularizer is not used: the noise keeps its length."
            ),
            inputs=[
                candidates_input("2 or more: their rewards are compared", least=2),
                io.Float.Input(
                    "beta", default=0.0, min=0.0, max=1.0, step=0.01, round=0.0001,
                    tooltip="How far the neighbours are, the share of the variance that is new: 0.09 is strength 0.3 of"
                    " DNO Variations. 0 takes 2.5 / iterations, between 0.01 and 0.3. With the geometric schedule"
                    " it is the first, and 0 takes 0.3.",
                ),
                io.Combo.Input(
                    "mode", options=["optimise", "sample", "resample"], default="optimise",
                    tooltip="optimise: climb as far as the iterations allow. sample: wander among pictures of high"
                    " reward, as far above the ordinary as tau says. resample: as sample, by taking one neighbour"
                    " whole. The sampler returns the best in every mode.",
                ),
                io.Combo.Input(
                    "weights", options=["linear", "softmax"], default="linear",
                    tooltip="Of optimise. linear: by how far each reward is from the mean, on any scale of the reward."
                    " softmax: the best few decide, by tau.",
                ),
                io.Float.Input(
                    "tau", default=0.1, min=0.0001, max=1000000.0, step=0.01, round=0.0001,
                    tooltip="Temperature of softmax, sample and resample, in units of the reward: smaller insists more"
                    " on the best. Linear weights do not use it.",
                ),
                seed_input("neighbours"),
                io.Combo.Input(
                    "schedule", options=["constant", "geometric"], default="constant", optional=True,
                    tooltip="Of optimise. geometric: large steps first, small ones last, and every sampling run but two"
                    " tries a neighbour; for pictures and few iterations. constant: steps of one size, and the noise"
                    " itself is sampled each time.",
                ),
            ],
            outputs=[solver_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, candidates, beta, mode, weights, tau, seed, schedule="constant") -> io.NodeOutput:
        return io.NodeOutput(core.ZeNO(candidates, beta or None, mode, weights, tau, seed, schedule))


class DNOSolverSearch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOSolverSearch",
            display_name="DNO Solver (Search)",
            category=sockets.SOLVERS,
            **sockets.aliases("best of n", "random search", "pcn", "trust region"),
            description=(
                "Tries random noises and keeps the best: the simplest search, for any reward, to compare the others"
                " with. Differentiates nothing. The regularizer is not used: every noise that is tried is true noise."
            ),
            inputs=[
                io.Combo.Input(
                    "method", options=list(SEARCHES), default="best-of-n",
                    tooltip="best-of-n: new noises each time; finds another picture, soon gains little. zero-order:"
                    " neighbours of the best so far; improves a picture that is liked already. pcn: the same with one"
                    " neighbour an iteration, for many short iterations. trs: new noises first, then neighbours of"
                    " the four best, nearer or further by what succeeds (trust-region search).",
                ),
                candidates_input("pcn always tries one", least=1),
                io.Float.Input(
                    "beta", default=0.1, min=0.0001, max=1.0, step=0.01, round=0.0001,
                    tooltip="Of zero-order and pcn: the share of a neighbour's variance that is new. Small steps"
                    " succeed more often and gain less. trs begins with it: set 0.3 there. best-of-n does not use it.",
                ),
                seed_input("noises that are tried"),
            ],
            outputs=[solver_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, method, candidates, beta, seed) -> io.NodeOutput:
        return io.NodeOutput(known(method, SEARCHES)(candidates, beta, seed))


class DNOSolverLGD(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOSolverLGD",
            display_name="DNO Solver (LGD)",
            category=sockets.SOLVERS,
            description=(
                "Steers one sampling run towards the reward, step by step (loss-guided diffusion). Quick, but gains"
                " less than optimising the noise. Set the sampler's iterations to 1 and eta above 0. Needs a"
                " differentiable reward."
            ),
            inputs=[
                io.Int.Input(
                    "samples", default=10, min=1, max=4096,
                    tooltip="Guesses of the finished picture that are judged in each step; the paper's 10 or 100. Each"
                    " is decoded with its graph, so memory grows with them.",
                ),
                io.Float.Input(
                    "scale", default=1.0, min=0.0001, max=1000000.0, step=0.1, round=0.0001,
                    tooltip="Weight of the reward: larger steers harder, too large ruins the picture. Depends on the"
                    " reward's units.",
                ),
                seed_input("guesses"),
            ],
            outputs=[solver_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, samples, scale, seed) -> io.NodeOutput:
        return io.NodeOutput(core.LGD(samples, scale, seed))


class DNOSolverTilt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOSolverTilt",
            display_name="DNO Solver (Tilt)",
            category=sockets.SOLVERS,
            **sockets.aliases("fast", "quick", "noise tilt", "guidance"),
            description=(
                "One sampling run whose noises lean towards the reward and stay as white as true noise: the most reward"
                " for the least time. Set the sampler's iterations to 1 and eta above 0; further iterations tilt new"
                " noise. The regularizer is not used."
            ),
            inputs=[
                io.Float.Input(
                    "strength", default=0.3, min=0.01, max=0.99, step=0.05, round=0.001,
                    tooltip="How much of each step's noise the reward decides: 0.2 is careful, 0.4 strong. Too much"
                    " costs what the prompt asks for, first with broad rewards such as brightness.",
                ),
                io.Combo.Input(
                    "through", options=["model", "decoder"], default="model",
                    tooltip="model: the gradient goes through VAE and model, twice the calls of plain sampling."
                    " decoder: through the VAE alone, for models that cannot be differentiated or hardly fit into"
                    " memory.",
                ),
                io.Float.Input(
                    "start", default=0.0, min=0.0, max=0.99, step=0.05, round=0.001,
                    tooltip="The share of the steps after which the tilting begins: 0 with the first.",
                ),
                io.Float.Input(
                    "stop", default=1.0, min=0.01, max=1.0, step=0.05, round=0.001,
                    tooltip="The share of the steps after which it ends: 1 with the last that injects noise.",
                ),
                io.Int.Input(
                    "every", default=1, min=1, max=1000,
                    tooltip="Each how many steps one is tilted: 2 saves half of the gradients.",
                ),
                io.String.Input(
                    "strengths", default="",
                    tooltip="Several strengths to try, such as 0.2, 0.3, 0.4, in place of the one above: each is a run,"
                    " and each picture keeps its best. Empty tries the one.",
                ),
                io.Int.Input(
                    "q", default=0, min=0, max=4096,
                    tooltip="For rewards without a gradient: how many slightly noisy pictures estimate it in each step"
                    " (hybrid-1). 0 takes the reward's own gradient.",
                ),
                seed_input("new noises of further iterations, and of the estimate"),
                io.Vae.Input(
                    "guide_vae", optional=True,
                    tooltip="A smaller VAE of the same latents (TAESD, by Load VAE) for the gradients alone: less time"
                    " and memory. The result is always decoded by the sampler's own VAE.",
                ),
            ],
            outputs=[solver_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, strength, through, start, stop, every, strengths, q, seed, guide_vae=None) -> io.NodeOutput:
        estimator = core.Hybrid1(q=q, seed=seed) if q else core.Exact()
        guide = None if guide_vae is None else Guide(guide_vae)
        tried = numbers_of(strengths)
        return io.NodeOutput(core.Tilt(strength, through, start, stop, every, tried, estimator, guide, seed))


class DNOSolverTrust(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOSolverTrust",
            display_name="DNO Solver (Trust)",
            category=sockets.SOLVERS,
            **sockets.aliases("trust region", "gradient ascent", "automatic step"),
            description=(
                "Climbs the reward by steps that grow while they succeed and shrink where they fail: no learning rate"
                " to choose, whatever the reward's units. Keeps the noise probable by itself: of a regularizer only the"
                " direction is used, not gamma. Climbs fast, so set a floor on what the reward does not see."
            ),
            inputs=[
                io.Float.Input(
                    "whitening", default=0.5, min=0.0, max=1.0, step=0.1, round=0.001,
                    tooltip="How evenly a step moves coarse and fine detail. 1 suits precise rewards, such as a"
                    " likeness; 0.5 is nearly as good there and safer on broad ones, such as brightness.",
                ),
                io.Combo.Input(
                    "gradient", options=["exact", "hybrid-2", "hybrid-1"], default="exact",
                    tooltip="exact: the reward's own. For rewards without one, estimated by perturbing the noise"
                    " (hybrid-2) or the pixels (hybrid-1); the model is differentiated all the same.",
                ),
                io.Int.Input(
                    "q", default=0, min=0, max=4096,
                    tooltip="Perturbations of an estimate. 0 takes the paper's number: 4 for hybrid-2, 8 for hybrid-1."
                    " exact does not use it.",
                ),
                seed_input("perturbations"),
                io.Float.Input(
                    "tilt", default=0.0, min=0.0, max=0.99, step=0.05, round=0.001, optional=True,
                    tooltip="Begin with one tilted run of this strength, see DNO Solver (Tilt): it gains as much as"
                    " several steps, most where there are many sampling steps. 0.3 is usual, and what a sampler without"
                    " a solver takes from 16 steps on; 0 begins with a step. Needs an eta above 0.",
                ),
            ],
            outputs=[solver_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, whitening, gradient, q, seed, tilt=0.0) -> io.NodeOutput:
        settings = {"seed": seed} | ({"q": q} if q else {})
        estimator = known(gradient, BY_IMAGES)(**({} if gradient == "exact" else settings))
        return io.NodeOutput(core.TrustAscent(whitening, estimator, tilt=tilt))


class DNOSolverFast(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOSolverFast",
            display_name="DNO Solver (Fast)",
            category=sockets.SOLVERS,
            **sockets.aliases("coarse", "preset", "many steps"),
            description=(
                "Finds the picture on a few of the steps and makes it with all of them: for pictures of 20 steps and"
                " more, at the price of a few plain ones. Set the sampler's iterations to 1 and eta above 0; further"
                " iterations climb on all steps. The regularizer is not used."
            ),
            inputs=[
                io.Int.Input(
                    "calls", default=100, min=6, max=100000,
                    tooltip="How many calls of the model the climb may cost, forward and backward one each, beside"
                    " three runs of all steps. 60 is quick; twice as many find more, and may lose more of the prompt.",
                ),
                io.Int.Input(
                    "coarse_steps", default=5, min=2, max=1000,
                    tooltip="On how many of the steps it searches. More cost more each and find less for the same"
                    " calls; fewer make a poorer picture. Where 5 are too few for a model, it searches once more on"
                    " twice as many.",
                ),
                io.Float.Input(
                    "whitening", default=0.5, min=0.0, max=1.0, step=0.1, round=0.001,
                    tooltip="How evenly a step moves coarse and fine detail. 1 suits precise rewards, such as a"
                    " likeness; 0.5 is nearly as good there and safer on broad ones, such as brightness.",
                ),
            ],
            outputs=[solver_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, calls, coarse_steps, whitening) -> io.NodeOutput:
        return io.NodeOutput(core.Fast(calls, coarse_steps, whitening))


def numbers_of(text):
    """Return the numbers in a text that are separated by commas or spaces, as a tuple."""
    try:
        return tuple(float(word) for word in text.replace(",", " ").split())
    except ValueError as error:
        raise ValueError(f"the strengths are {text!r}; expected numbers such as 0.2, 0.3, 0.4") from error


def known(word, words, what="method"):
    """Return words[word]; ComfyUI 0.3.75 lets any word through to V3 nodes that a workflow gives."""
    if word not in words:
        raise ValueError(f"unknown {what} {word!r}; expected one of {', '.join(words)}")
    return words[word]


def learning_rate_input(advice, least=0.00001):
    return io.Float.Input(
        "lr", default=0.01, min=least, max=100.0, step=0.001, round=0.00001,
        tooltip=f"Learning rate, for Adam in units of the noise's standard deviation. {advice}",
    )  # fmt: skip


def update_inputs(*more, remark=""):
    """Return the inputs that say what becomes of a gradient, exact or estimated.

    Args:
        more: optimizers beside Adam and SGD.
        remark: what the tooltip says of them.
    """
    return [
        io.Combo.Input(
            "optimizer", options=["adam", "sgd", *more], default="adam",
            tooltip=f"Adam, or stochastic gradient ascent with Nesterov momentum.{remark}",
        ),
        io.Float.Input(
            "momentum", default=0.9, min=0.0, max=0.999, step=0.01, round=0.001,
            tooltip="Of sgd alone.",
        ),
        io.Float.Input(
            "clip", default=0.0, min=0.0, max=1000000.0, step=0.1, round=0.0001,
            tooltip="Largest norm of each picture's gradient, against bursts in long schedules. 0 sets none.",
        ),
    ]  # fmt: skip


def candidates_input(remark, least):
    return io.Int.Input(
        "candidates", default=16, min=least, max=4096,
        tooltip=f"Noises tried an iteration, each one sampling run, as many at once as memory allows ({remark}).",
    )  # fmt: skip


def seed_input(what):
    return io.Int.Input(
        "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False,
        tooltip=f"Random seed of the {what}; the sampler's own seed sets the noise to start from.",
    )  # fmt: skip


def solver_output():
    return sockets.Solver.Output("solver", display_name="solver", tooltip="For the DNO Sampler.")
