"""Figure 13: P(z) of true noise, of zeros, of repeated numbers, and of a blurred field that permutations do not see."""

import torch
import torch.nn.functional as F

from .. import core
from ..core.history import thumbnail
from ..core.noise import Noise
from ..core.pairings import log_pairing_probability
from ..core.regularizer import permuted_log_probabilities
from ..rewards import Consistency
from .drawing import panels, spread
from .embedded import LN10, prompts_of
from .experiment import Claim, Experiment

STEPS = 20
BLUR = 9
"""Side of the square that each number of the blurred field is a mean over."""
LAYOUTS = "identity", "permutations", "pairings"


def run(seed):
    """Sample and judge one true noise and three that are made of it."""
    (prompt,) = prompts_of("black", seed, 1)
    sample_map = core.load_embedded(prompt, steps=STEPS)
    found, pictures = {}, {}
    for kind, noise in kinds_of(sample_map.randn(seed)).items():
        images, z = sample_map.sample(noise), noise.flat()
        found[kind] = {name: float(log_p) / LN10 for name, log_p in by_layout(z).items()}
        found[kind] |= {"consistency": float(Consistency()(images, [prompt]))}
        pictures[f"{kind}: P {core.noise_probability(z).item():.1g}"] = thumbnail(images)[0]
    return found | {"pictures": pictures}


def kinds_of(noise):
    """Return true noise, zeros, a quarter of z four times over, and z blurred, each as a Noise by name."""
    z = noise.flat()
    quarter = z[:, : z.shape[1] // 4]
    return {
        "normal": noise,
        "zeros": noise.map(torch.zeros_like),
        "repeated": noise.with_flat(quarter.repeat(1, 4)),
        "blurred": Noise(blurred(noise.initial), torch.stack([blurred(step) for step in noise.injected])),
    }


def blurred(field):
    """Return (B, C, H, W) numbers, each the mean of those around it, with mean 0 and variance 1 again."""
    side = BLUR // 2
    smooth = F.avg_pool2d(F.pad(field, (side, side, side, side), mode="circular"), BLUR, stride=1)
    return (smooth - smooth.mean()) / smooth.std()


def by_layout(z):
    """Return ln P of z (1, n) by what looks at it: as it lies, 100 random permutations, all pairings."""
    judged = torch.cat(permuted_log_probabilities(z), dim=0)
    return {
        "identity": judged[:, 0].min(),
        "permutations": judged[:, 1:].min(),
        "pairings": log_pairing_probability(z).min(),
    }


def lowest(found, kind):
    """Return log10 P(z), the least of all layouts."""
    return min(found[kind][layout] for layout in LAYOUTS)


def draw(results):
    """Draw log10 P of each kind by layout, and the consistency of its pictures."""
    kinds = [kind for kind, value in results[0].items() if isinstance(value, dict) and "identity" in value]
    figure, axes = panels(1, len(LAYOUTS) + 1)
    for place, layout in zip(axes[0], LAYOUTS, strict=False):
        spread(place, {kind: [max(found[kind][layout], -12) for found in results] for kind in kinds})
        place.set(title=f"log10 P by {layout}, cut at -12", ylim=(-12.5, 0.5))
    spread(axes[0, -1], {kind: [found[kind]["consistency"] for found in results] for kind in kinds})
    axes[0, -1].set_title("consistency with the prompt")
    return figure


EXPERIMENT = Experiment(
    name="dno_figure_13",
    title="Figure 13: P(z) of noises that are none",
    question="Does P(z) tell true noise from zeros, repeated numbers and a blurred field?",
    setting=(
        f'"black <animal>", embedded model, {STEPS} steps (paper: 50), cfg 3, eta 1; true noise, zeros, a quarter of z'
        f" four times over, and every noise blurred by {BLUR} x {BLUR} and brought back to mean 0 and variance 1"
        " [ours]; k 2, the identity layout, 100 random permutations, and all pairings of z with itself [ours]."
    ),
    cases=lambda seeds: [{"seed": seed} for seed in range(seeds)],
    run=run,
    claims=(
        Claim(
            "Figure 13b: true noise has a P(z) of reasonable size.",
            "log10 P(z) plus 2: above P = 0.01",
            lambda results: [lowest(found, "normal") + 2 for found in results],
        ),
        Claim(
            "Figure 13c: the P(z) of zeros is about 0.",
            "-6 minus log10 P(z)",
            lambda results: [-6 - lowest(found, "zeros") for found in results],
        ),
        Claim(
            "Figure 13d: random permutations alone, the paper's P, see that numbers are repeated.",
            "-6 minus log10 P(z) by permutations",
            lambda results: [-6 - found["repeated"]["permutations"] for found in results],
        ),
        Claim(
            "Figure 13d: the P(z) of repeated numbers is about 0, with all layouts.",
            "-6 minus log10 P(z)",
            lambda results: [-6 - lowest(found, "repeated") for found in results],
        ),
        Claim(
            "Section 3.1: random permutations are enough, so that they see a blurred field.",
            "-6 minus log10 P(z) by permutations",
            lambda results: [-6 - found["blurred"]["permutations"] for found in results],
        ),
        Claim(
            "Figure 13, ours: the P(z) of a blurred field is about 0, with all layouts.",
            "-6 minus log10 P(z)",
            lambda results: [-6 - lowest(found, "blurred") for found in results],
        ),
        Claim(
            "Figures 13c and 13d: noises of low P(z) give pictures that are not of the prompt.",
            "consistency of true noise minus the mean of zeros' and repeated numbers'",
            lambda results: [
                found["normal"]["consistency"]
                - (found["zeros"]["consistency"] + found["repeated"]["consistency"]) / 2
                for found in results
            ],
        ),
    ),
    draw=draw,
)  # fmt: skip
