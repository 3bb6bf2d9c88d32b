"""Does the model's own belief in a picture see that a search has ruined it? `core.Belief` beside P, embedded model.

    python tests/benchmarks/belief.py --out tests/benchmarks/results/belief.json

Searches for rewards of the pixels, some of which keep the picture and some of which ruin it. Of the noises on the way,
every second one, it is recorded how far the consistency with the prompt has fallen below the start's, ln P, and the
denoising losses with and without the prompt at several noise levels. Beside them the losses of ordinary samples of the
same prompt. Which of these numbers make up the belief was chosen on the pairs of TUNING; the summary is of HELD_OUT.

Each pair of prompt and seed is searched alone, once for each reward; the solvers take turns. Run the same command again
after an interruption: finished runs are kept.
"""

import argparse
from pathlib import Path

import study
import torch
from comfyui_dno import core, rewards
from comfyui_dno.core.belief import denoising_losses, fixed_noises

TUNING = (
    ("black dog", 200), ("white cat", 201), ("red duck", 202), ("yellow rabbit", 203), ("green fish", 204),
    ("blue owl", 205), ("purple snail", 206), ("red turtle", 207),
)  # fmt: skip
HELD_OUT = (
    ("red owl", 100), ("blue cat", 101), ("green dog", 102), ("white duck", 103), ("black rabbit", 104),
    ("yellow owl", 105), ("blue duck", 106), ("red rabbit", 107), ("purple cat", 108), ("black fish", 109),
    ("white dog", 110), ("green turtle", 111), ("yellow penguin", 112), ("red butterfly", 113),
    ("blue elephant", 114), ("purple hedgehog", 115),
)  # fmt: skip
LEVELS, NOISES, SAMPLES, TOGETHER = (1.5, 3.0, 6.0, 12.0), 8, 8, 4


class ConvHead:
    """A fixed random network, which climbs by patterns that mean nothing: the plainest reward to be hacked."""

    name, differentiable = "random head", True

    def __init__(self):
        generator = torch.Generator().manual_seed(7)
        self.first = torch.randn(16, 3, 7, 7, generator=generator) / 147**0.5
        self.second = torch.randn(1, 16, 5, 5, generator=generator) / 400**0.5

    def __call__(self, images, prompts=None):
        seen = torch.tanh(torch.nn.functional.conv2d(4 * images - 2, self.first, stride=4))
        return 10 * torch.nn.functional.conv2d(seen, self.second, stride=2).flatten(1).mean(dim=1)


REWARDS = {
    "brightness": rewards.Brightness, "contrast": rewards.Contrast, "jpeg proxy": rewards.JPEGProxy,
    "colour target": lambda: rewards.ColorTarget((0.9, 0.6, 0.2)), "random head": ConvHead,
}  # fmt: skip
SOLVERS = {
    "adam .1": (lambda: core.GradientAscent(0.1), None),
    "adam .1, gamma .3": (lambda: core.GradientAscent(0.1), core.ProbabilityRegularizer(0.3)),
    "trust": (core.TrustAscent, None),
    "tilt .4": (lambda: core.Tilt(0.4), None),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"steps": options.steps, "iterations": options.iterations, "levels": LEVELS, "noises": NOISES}
    runs = study.Runs(options.out, {**settings, "levels": list(LEVELS)})
    for part in (TUNING, HELD_OUT):
        groups = [part[first : first + TOGETHER] for first in range(0, len(part), TOGETHER)]
        for _number, group in enumerate(groups):
            runs.once(f"ordinary | {named(group)}", ordinary, group, options)
        for place, reward in enumerate(REWARDS):
            for number, group in enumerate(groups):
                solver = list(SOLVERS)[(number + place) % len(SOLVERS)]
                runs.once(f"{reward} | {solver} | {named(group)}", search, group, reward, solver, options)


def named(pairs):
    return ", ".join(f"{prompt} {seed}" for prompt, seed in pairs)


def measured(sample_map, latent):
    """Return of each latent the losses and gaps, each as a list by level of lists by noise."""
    noises, found = fixed_noises(latent, NOISES), []
    both = [torch.stack(each) for each in zip(
        *(denoising_losses(sample_map, latent, level, noises) for level in LEVELS), strict=True
    )]  # fmt: skip
    for item in range(len(latent)):
        loss, gap = ([[float(f"{x:.3g}") for x in level] for level in each[:, :, item].tolist()] for each in both)
        found.append({"loss": loss, "gap": gap})
    return found


@torch.no_grad()
def ordinary(pairs, options):
    """Return what ordinary samples of the pairs' prompts measure: a list by pair of lists by sample."""
    prompts = [prompt for prompt, _ in pairs]
    sample_map, judge, found = core.load_embedded(prompts, steps=options.steps), rewards.Consistency(), []
    for index in range(SAMPLES):
        latent = sample_map.latent(sample_map.randn(10**6 + index))
        consistency = judge(sample_map.images(latent), prompts).tolist()
        rows = zip(measured(sample_map, latent), consistency, strict=True)
        found.append([row | {"consistency": round(value, 4)} for row, value in rows])
    return [list(of_pair) for of_pair in zip(*found, strict=True)]


def search(pairs, reward, solver, options):
    """Return what the noises of one search of each pair measure: a list by pair of lists by noise, the start first."""
    sample_map = core.load_embedded([prompt for prompt, _ in pairs], steps=options.steps, keep_graphs=True)
    drawn = [core.load_embedded(prompt, steps=options.steps).randn(seed) for prompt, seed in pairs]
    noise = core.Noise(
        torch.cat([one.initial for one in drawn]), torch.cat([one.injected for one in drawn], dim=1)
    )
    solver, regularizer = SOLVERS[solver][0](), SOLVERS[solver][1]
    iterations, found = 1 if isinstance(solver, core.Tilt) else options.iterations, []

    def record(evaluation, best):
        if evaluation.iteration % 2 and evaluation.iteration < iterations:
            return
        with torch.no_grad():
            rows = measured(sample_map, evaluation.latent)
        numbers = {
            "score": evaluation.scores, "consistency": evaluation.watched["consistency"],
            "log_p": torch.minimum(evaluation.log_p, evaluation.log_p_initial),
        }  # fmt: skip
        for item, row in enumerate(rows):
            row |= {name: round(values[item].item(), 4) for name, values in numbers.items()}
        found.append(rows)

    core.optimize(
        sample_map, REWARDS[reward](), noise, solver, regularizer, iterations, watch=[rewards.Consistency()], floor=0.0,
        callback=record,
    )  # fmt: skip
    return [list(of_pair) for of_pair in zip(*found, strict=True)]


if __name__ == "__main__":
    main()
