"""Does the model's own belief in a picture see that a search has ruined it? `core.Belief` beside P, embedded model.

    python tests/benchmarks/belief.py --out tests/benchmarks/results/belief.json

Searches for rewards of the pixels, some of which keep the picture and some of which ruin it. Of the noises on the way,
every second one, it is recorded how far the consistency with the prompt has fallen below the start's, ln P, and the
denoising losses with and without the prompt at several noise levels. Beside them the losses of ordinary samples of the
same prompt. From these numbers every form of the belief can be computed without sampling again. The form was chosen on
the pairs of TUNING; the summary tells of both sets, and HELD_OUT is what counts.

"lost" are noises whose consistency is more than LOST below the start's; the area under the curve is the share of pairs
of a lost noise and another one, which the measure puts in the right order. "kept" are those within KEPT: a false alarm
is one of them below a threshold, a miss a lost one above it.

Pairs of prompt and seed are searched in batches of four, whose pictures are independent; the solvers take turns. Run
the same command again after an interruption: finished runs are kept.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
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
CHOSEN = [6.0, 12.0]
PLANS = {
    "tuning": {"levels": [1.5, 3.0, *CHOSEN], "samples": 8, "iterations": 10, "every": 2},
    "held out": {"levels": CHOSEN, "samples": 4, "iterations": 8, "every": 4},
}
"""What is measured of each set: the first explores, the second tells how good is what was chosen by it."""
NOISES, TOGETHER = 8, 4
LOST, KEPT = 0.2, 0.05
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)


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
    parser.add_argument("--rewards", type=int, default=len(REWARDS), help="for which each held-out pair is searched")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = study.Runs(options.out, {"steps": options.steps, "noises": NOISES, "plans": PLANS})
    for pairs, plan, count in zip((TUNING, HELD_OUT), PLANS.values(), (len(REWARDS), options.rewards), strict=True):
        groups = [pairs[first : first + TOGETHER] for first in range(0, len(pairs), TOGETHER)]
        for group in groups:
            runs.once(f"ordinary | {named(group)}", ordinary, group, plan, options.steps)
        turns = itertools.product(range(count), enumerate(groups), enumerate(REWARDS))
        for turn, (number, group), (place, reward) in turns:
            if (number + place) % len(REWARDS) == turn:
                solver = list(SOLVERS)[(number + place) % len(SOLVERS)]
                name = f"{reward} | {solver} | {named(group)}"
                runs.once(name, search, group, reward, solver, plan, options.steps)
    found = {name: rows_of(runs.done, pairs) for name, pairs in zip(PLANS, (TUNING, HELD_OUT), strict=True)}
    plot(found["held out"], options.out.with_suffix(".png"))
    runs.finish("belief.py", {name: summary(rows, PLANS[name]) for name, rows in found.items()})


def named(pairs):
    return ", ".join(f"{prompt} {seed}" for prompt, seed in pairs)


def measured(sample_map, latent, levels):
    """Return of each latent the losses and gaps, each as a list by level of lists by noise."""
    noises, found = fixed_noises(latent, NOISES), []
    pairs = [denoising_losses(sample_map, latent, level, noises) for level in levels]
    both = [torch.stack(each) for each in zip(*((loss, without - loss) for loss, without in pairs), strict=True)]
    for item in range(len(latent)):
        loss, gap = ([[float(f"{x:.3g}") for x in level] for level in each[:, :, item].tolist()] for each in both)
        found.append({"loss": loss, "gap": gap})
    return found


@torch.no_grad()
def ordinary(pairs, plan, steps):
    """Return what ordinary samples of the pairs' prompts measure: a list by pair of lists by sample."""
    prompts = [prompt for prompt, _ in pairs]
    sample_map, judge, found = core.load_embedded(prompts, steps=steps), rewards.Consistency(), []
    for index in range(plan["samples"]):
        latent = sample_map.latent(sample_map.randn(10**6 + index))
        consistency = judge(sample_map.images(latent), prompts).tolist()
        rows = zip(measured(sample_map, latent, plan["levels"]), consistency, strict=True)
        found.append([row | {"consistency": round(value, 4)} for row, value in rows])
    return [list(of_pair) for of_pair in zip(*found, strict=True)]


def search(pairs, reward, solver, plan, steps):
    """Return what the noises of one search of each pair measure: a list by pair of lists by noise, the start first."""
    sample_map = core.load_embedded([prompt for prompt, _ in pairs], steps=steps, keep_graphs=True)
    drawn = [core.load_embedded(prompt, steps=steps).randn(seed) for prompt, seed in pairs]
    noise = core.Noise(torch.cat([one.initial for one in drawn]), torch.cat([one.injected for one in drawn], dim=1))
    solver, regularizer = SOLVERS[solver][0](), SOLVERS[solver][1]
    iterations, found = 1 if isinstance(solver, core.Tilt) else plan["iterations"], []

    def record(evaluation, best):
        if evaluation.iteration % plan["every"] and evaluation.iteration < iterations:
            return
        with torch.no_grad():
            rows = measured(sample_map, evaluation.latent, plan["levels"])
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
    ).whole()  # fmt: skip
    return [list(of_pair) for of_pair in zip(*found, strict=True)]


def rows_of(runs, pairs):
    """Return every noise that a search of the pairs came to, but for the starts: what was measured of it, flat."""
    ordinary, rows = {}, []
    for name, run in runs.items():
        if name.startswith("ordinary |"):
            ordinary |= zip(name.removeprefix("ordinary | ").split(", "), run, strict=True)
    for name, run in runs.items():
        reward, *solver, members = name.split(" | ")
        for pair, (start, *others) in zip(members.split(", "), run, strict=True) if solver else ():
            if any(pair == named([each]) for each in pairs):
                told = {"kind": f"{reward} | {solver[0]}", "ordinary": ordinary[pair], "start": start}
                lost = [{"lost": start["consistency"] - row["consistency"]} for row in others]
                rows += [row | told | each for row, each in zip(others, lost, strict=True)]
    return rows


def evidence(row, levels, noises):
    """Return the mean over the levels, by number, of ln (loss without the prompt / loss with it)."""
    loss, gap = (np.array(row[key])[levels, :noises].mean(axis=1) for key in ("loss", "gap"))
    return np.log1p(gap / loss).mean()


def belief(row, levels=(-2, -1), noises=4, samples=4):
    """Return what `core.Belief` says of such settings; with no samples, in units of the start's evidence."""
    levels = list(levels)
    usual = [evidence(each, levels, noises) for each in row["ordinary"][:samples] or [row["start"]]]
    return evidence(row, levels, noises) / np.mean(usual)


def small_loss(row, levels=(-2, -1), samples=4):
    """Return how small the loss with the prompt is beside ordinary samples', what a belief without a negative is."""
    own, *usual = (
        np.log(np.array(each["loss"])[list(levels)].mean(axis=1)) for each in (row, *row["ordinary"][:samples])
    )
    return np.exp(np.mean(usual) - own.mean())


def difference(row, levels=(-2, -1), noises=4, samples=4):
    """Return the losses' difference in place of their ratio, in standard deviations of the ordinary samples'."""
    own, *usual = (np.array(each["gap"])[list(levels), :noises].mean(axis=1) for each in (row, *row["ordinary"]))
    usual = np.stack(usual[:samples])
    return ((own - usual.mean(axis=0)) / usual.std(axis=0, ddof=1)).mean()


def area(values, lost):
    """Return the area under the curve of "lost" by low values; None where all are lost, or none."""
    below, above = values[lost], values[~lost]
    if not len(below) or not len(above):
        return None
    pairs = below[:, None] - above[None]
    return round(float((pairs < 0).mean() + (pairs == 0).mean() / 2), 3)


def summary(rows, plan):
    """Return the areas by belief, its variants and P, and misses and false alarms by threshold."""
    fallen = np.array([row["lost"] for row in rows])
    lost, kept, log_p = fallen > LOST, fallen <= KEPT, np.array([row["log_p"] for row in rows])
    ours = np.array([belief(row) for row in rows])

    def of(function, **settings):
        return area(np.array([function(row, **settings) for row in rows]), lost)

    kinds = [np.array([row["kind"] == kind for row in rows]) for kind in dict.fromkeys(row["kind"] for row in rows)]
    within = [[area(values[kind], lost[kind]) for kind in kinds] for values in (ours, log_p)]
    return {
        "noises": len(rows), "lost": int(lost.sum()), "kept": int(kept.sum()),
        "area": {
            "belief": area(ours, lost), "the loss alone": of(small_loss),
            "the difference of the losses": of(difference), "ln P": area(log_p, lost),
        },
        "area, lost against kept": {
            name: area(values[lost | kept], lost[lost | kept]) for name, values in (("belief", ours), ("ln P", log_p))
        },
        "area, mean over the rewards and solvers that lost some": {
            name: round(float(np.mean([each for each in areas if each is not None])), 3)
            for name, areas in zip(("belief", "ln P"), within, strict=True)
        },
        "area by levels": {
            ", ".join(str(plan["levels"][level]) for level in levels): of(belief, levels=levels)
            for count in (1, 2, 3, 4)
            for levels in itertools.combinations(range(len(plan["levels"])), count)
        },
        "area by noises": {count: of(belief, noises=count) for count in (1, 2, 4, 8)},
        "area by ordinary samples": {
            count: of(belief, samples=count) for count in (0, 1, 2, 4, 8) if count <= plan["samples"]
        },
        "misses and false alarms below": {
            least: [round(float((ours[lost] >= least).mean()), 2), round(float((ours[kept] < least).mean()), 2)]
            for least in THRESHOLDS
        },
    }  # fmt: skip


def plot(rows, path):
    """Draw the curves of "lost" by belief, by the loss alone and by P, and belief against what was lost."""
    from matplotlib.figure import Figure

    fallen = np.array([row["lost"] for row in rows])
    lost, ours = fallen > LOST, np.array([belief(row) for row in rows])
    figure = Figure(figsize=(9, 3.8), dpi=100, layout="constrained")
    curves, points = figure.subplots(1, 2)
    measures = {
        "belief": ours, "its loss alone": np.array([small_loss(row) for row in rows]),
        "ln P": np.array([row["log_p"] for row in rows]),
    }  # fmt: skip
    for name, values in measures.items():
        order = lost[np.argsort(values, kind="stable")]
        curve = np.cumsum(~order) / (~order).sum(), np.cumsum(order) / order.sum()
        curves.plot(*curve, label=f"{name}, area {area(values, lost):.2f}")
    curves.set(xlabel="share of the others that is refused", ylabel="share of the lost that is refused")
    curves.legend(fontsize=8)
    for number, reward in enumerate(REWARDS):
        of_reward = np.array([row["kind"].startswith(f"{reward} |") for row in rows])
        points.plot(ours[of_reward], fallen[of_reward], ".", color=f"C{number}", markersize=4, label=reward)
    points.axhline(LOST, color="grey", linewidth=0.8)
    points.set(xlabel="belief", ylabel="consistency lost since the start")
    points.legend(fontsize=8)
    for axes in (curves, points):
        axes.grid(alpha=0.3)
    figure.savefig(path)


if __name__ == "__main__":
    main()
