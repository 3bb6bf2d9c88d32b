"""The model's own belief in what a search finds: watched, never optimised, by the model that is searched."""

from comfy_api.latest import io

from ... import core, rewards
from .. import sockets


class DNOBelief(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOBelief",
            display_name="DNO Belief",
            category=sockets.REWARDS,
            **sockets.aliases("denoising loss", "reward hacking", "likelihood"),
            description=(
                "How much the model that is searched believes in a picture itself: 1 as in ordinary ones of the prompt,"
                " 0 not at all. Connect it to a DNO Sampler's watch input, with a floor such as 'belief: 0.5'."
            ),
            inputs=[
                io.Int.Input(
                    "noises", default=4, min=1, max=256,
                    tooltip="How many noises are tried on each picture. More tell more surely and take longer: each"
                    " costs two calls of the model with cfg, beside the steps of an iteration.",
                ),
                io.Int.Input(
                    "samples", default=4, min=1, max=256,
                    tooltip="How many ordinary pictures of the prompt it is compared with, sampled once before the"
                    " search.",
                ),
            ],
            outputs=[
                sockets.Reward.Output("reward", display_name="reward", tooltip="For a DNO Sampler's watch input."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, noises, samples) -> io.NodeOutput:
        return io.NodeOutput(core.Belief(noises=noises, samples=samples))


def watched_apart(watch):
    """Return what is watched as a tuple: the parts of a combined reward one by one where a belief is in it."""
    if not _holds_a_belief(watch) or isinstance(watch, core.Belief):
        return (watch,)
    return tuple(each for part in watch.parts for each in watched_apart(part))


def _holds_a_belief(reward):
    if isinstance(reward, rewards.Combine):
        return any(map(_holds_a_belief, reward.parts))
    return isinstance(reward, core.Belief)
