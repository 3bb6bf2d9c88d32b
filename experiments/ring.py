"""The paper's toy experiments: a diffusion model of points on a ring, trained here in seconds, optimised by this core.

    climb                   Figure 2     the points climb a reward: after 0, 10, 50 and 100 iterations
    ode_and_sde             Figure 3     mean reward by iteration, eta 0 against eta 1
    out_of_distribution     Figure 4     a reward that pulls off the ring, without and with the regulariser
                            Figure 13a   P(z) of the same points
    stops                   Figure 12    why each point stopped: type I, II or III

A picture is a point here: a latent (B, 2) that decodes to itself, so that z has n = 2 (1 + 49) = 100 numbers. Each
experiment is one batch through `optimize`, one picture a point; `figures` runs and draws them all.

The exact denoisers of the same two distributions tell what the trained network's errors do. [ours, not the paper's]
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from ..core.diagnostics import Diagnosis, diagnose
from ..core.files import to_json, whole_file
from ..core.optimize import optimize
from ..core.problem import Problem
from ..core.regularizer import ProbabilityRegularizer
from ..core.sample_map import SampleMap
from ..core.schedule import Schedule, scaled_linear_alphas_cumprod
from ..core.solvers import GradientAscent
from .ring_models import TRAINING, distance_to_ring, exact_line, exact_ring, line, on_ring, ring, train

TARGET = 1.4
"""Both coordinates of the point that Figure 4's reward pulls to."""


def waves(points, prompts=None):
    """Score by Figure 2's reward, sin(4 pi x1) + sin(4 pi x2) - ((x1 - 1)^2 - x2^2) / 5, full of local maxima."""
    x1, x2 = points.unbind(dim=1)
    return (4 * math.pi * x1).sin() + (4 * math.pi * x2).sin() - ((x1 - 1).square() - x2.square()) / 5


def nearness(points, prompts=None):
    """Score by Figure 4's reward, -(x1 - 1.4)^2 - (x2 - 1.4)^2: at most -0.61 on the ring, and 0 off it."""
    return -(points - TARGET).square().sum(dim=1)


def height(points, prompts=None):
    """Score by Figure 12b's reward, x2."""
    return points[:, 1]


def rightness(points, prompts=None):
    """Score by x1, which pulls along the line to its end."""
    return points[:, 0]


def point_map(denoise, batch, eta=1.0):
    """Return the SampleMap of a denoiser of points: DDIM with the paper's 50 steps."""
    schedule = Schedule.ddim(scaled_linear_alphas_cumprod(), 50, "leading")
    return SampleMap(denoise, schedule, (batch, 2), eta, keep_graphs=True)


@dataclass(frozen=True)
class Climb:
    """One run of the optimiser on a batch of points.

    Attributes:
        means: the mean reward after 0, 1, .. iterations.
        snapshots: iteration -> its Evaluation, whose `images` are the points (B, 2).
    """

    means: list = field(default_factory=list)
    snapshots: dict = field(default_factory=dict)


def climb(sample_map, reward, iterations=100, snapshots=(), solver=None, regularizer=None, seed=0, tick=None):
    """Optimise one noise a point, from true noise, and keep the Evaluations of the iterations in `snapshots`.

    Args:
        sample_map, reward, iterations, regularizer: as `optimize` takes them.
        solver: default the paper's, Adam.
        snapshots: iterations, 0 .. `iterations`.
        seed: of the noise.
        tick: called after every iteration.
    """
    run = Climb()

    def keep(evaluation, best):
        run.means.append(float(evaluation.scores.mean()))
        if evaluation.iteration in snapshots:
            run.snapshots[evaluation.iteration] = evaluation
        if tick:
            tick()

    noise = sample_map.randn(seed)
    solver = solver or GradientAscent()
    optimize(sample_map, reward, noise, solver, regularizer, iterations, callback=keep, floor=0.0).whole()
    return run


def ode_and_sde(denoise, iterations=100, batch=200, seed=0, tick=None):
    """Climb Figure 2's reward through the ODE and the SDE, at the same learning rate, by Adam and by plain ascent.

    The SDE is the faster one under Adam, as in Figure 3, but not in plain gradient ascent. Both gradients by the noise
    are equally long (median 6.2 and 6.5 at true noise): about as much of the image's spread comes through x_T alone as
    through all of z. But Adam moves every entry by the learning rate, whatever its share of the gradient, and the SDE
    has 50 times as many entries.

    Returns:
        solver -> "ODE" and "SDE" -> the mean reward after 0, 1, .. iterations.
    """
    solvers = {
        "Adam": GradientAscent(lr=0.01),
        "plain gradient ascent": GradientAscent(lr=0.01, optimizer="sgd", momentum=0),
    }
    maps = {"ODE": point_map(denoise, batch, eta=0.0), "SDE": point_map(denoise, batch, eta=1.0)}
    return {
        name: {kind: climb(m, waves, iterations, (), solver, None, seed, tick).means for kind, m in maps.items()}
        for name, solver in solvers.items()
    }


def out_of_distribution(denoise, iterations=1000, batch=50, lr=0.01, gamma=10.0, seed=0, tick=None):
    """Climb Figure 4's reward without and with the regulariser.

    Without it every point ends at the target, 0.78 off the ring, its noise at P(z) of about 1e-7. The network's errors
    alone take it there: the exact denoiser draws each of these noises on the ring. With the regulariser the points
    stop just outside the ring, 0.06 off it, and P(z) does not tell them from true noise. Lemma 1 is about many
    numbers, and here are 100: ln p2 is below 0 only where the second moments are 0.87 off, so that z may shrink to 0.6
    of the usual length unseen. For the same reason gamma is 10 here; at the paper's 1 the points leave, though later.

    Returns:
        Evaluations: "before"; "without" and "with" the regulariser, at the end; "exact", the noise of "without" sampled
        by the ring's exact denoiser.
    """
    sample_map, found = point_map(denoise, batch), {}
    for name, regularizer in {"without": None, "with": ProbabilityRegularizer(gamma)}.items():
        run = climb(sample_map, nearness, iterations, (0, iterations), GradientAscent(lr), regularizer, seed, tick)
        found["before"], found[name] = run.snapshots[0], run.snapshots[iterations]
    found["exact"] = Problem(point_map(exact_ring, batch), nearness).evaluate(found["without"].noise)
    return found


@dataclass(frozen=True)
class Stop:
    """A batch of points at the end of a climb.

    Attributes:
        points: (B, 2).
        reward: what they climbed.
        diagnosis: why they stopped.
    """

    points: torch.Tensor
    reward: object
    diagnosis: Diagnosis

    @classmethod
    def of(cls, denoise, reward, noise):
        """Sample and diagnose `noise`; two probes make ||G2|| exact for points."""
        sample_map = point_map(denoise, noise.batch)
        return cls(sample_map.sample(noise), reward, diagnose(Problem(sample_map, reward), noise, probes=2))


def stops(denoise, denoise_line, climbed, iterations=200, batch=100, seed=0, tick=None):
    """Tell the types of Figure 12 apart.

    The ring gives types I and III. Where the paper reports type II, at the border of the ring, ||G2|| is not 0: only
    the radial part of the Jacobian vanishes, and points still move along the border, so that a reward which pulls
    outwards is orthogonal to what is left, type III. That holds for the exact denoiser too. Type II needs a support
    whose border is a point, such as the end of the line, and a denoiser that is exact: the trained network's Jacobian
    stays at about a tenth of the usual there, and its points walk on, out of distribution.

    Args:
        denoise, denoise_line: trained on the ring and on the line.
        climbed: the Noise at the end of Figure 2.
        iterations, batch, seed, tick: of the climb to the end of the line, `exact_line`'s.

    Returns:
        "ring", "line" and "end" -> Stop.
    """
    ends = climb(point_map(exact_line, batch), rightness, iterations, [iterations], seed=seed, tick=tick)
    return {
        "ring": Stop.of(denoise, waves, climbed),
        "line": Stop.of(denoise_line, height, point_map(denoise_line, batch).randn(seed)),
        "end": Stop.of(exact_line, rightness, ends.snapshots[iterations].noise),
    }


def separation(inside, outside):
    """Return the probability that a random one of `inside` is larger than one of `outside` (the area under the ROC)."""
    difference = inside[:, None] - outside
    return float((difference > 0).float().mean() + (difference == 0).float().mean() / 2)


@dataclass(frozen=True)
class Size:
    """How much `figures` computes.

    Attributes:
        training: iterations that each network is trained for.
        points: batch of Figure 2; the others take a part of it.
        iterations: of the optimiser.
        far: its iterations on the reward that pulls off the ring.
    """

    training: int = TRAINING
    points: int = 400
    iterations: int = 100
    far: int = 1000


def figures(folder, seed=0, progress=True, size=None):
    """Train both models, run every experiment, and write the figures as PNG and their numbers as toy.json.

    Args:
        folder: where to; it is made.
        seed: of training and noise.
        progress: show a bar for each figure.
        size: a Size; the default takes about two minutes on one core.

    Returns:
        The numbers of toy.json.
    """
    from . import ring_figures as draw

    folder, size = Path(folder), size or Size()
    folder.mkdir(parents=True, exist_ok=True)

    def bar(name, total):
        return tqdm(total=total, desc=name, disable=not progress)

    with bar("training", 2 * size.training) as shown:
        denoise, denoise_line = (train(points, seed, size.training, tick=shown.update) for points in (ring, line))
    with bar("Figure 2", size.iterations + 1) as shown:
        snapshots = sorted({0, size.iterations // 10, size.iterations // 2, size.iterations})
        run = climb(point_map(denoise, size.points), waves, size.iterations, snapshots, seed=seed, tick=shown.update)
    with bar("Figure 3", 4 * (size.iterations + 1)) as shown:
        means = ode_and_sde(denoise, size.iterations, size.points // 2, seed, tick=shown.update)
    with bar("Figures 4 and 13a", 2 * (size.far + 1)) as shown:
        found = out_of_distribution(denoise, size.far, size.points // 8, seed=seed, tick=shown.update)
    with bar("Figure 12", 2 * size.iterations + 1) as shown:
        climbed = run.snapshots[size.iterations].noise
        stopped = stops(denoise, denoise_line, climbed, 2 * size.iterations, size.points // 4, seed, shown.update)
    drawings = {
        "figure_02_evolution": draw.evolution(run, waves),
        "figure_03_ode_and_sde": draw.ode_and_sde(means),
        "figure_04_out_of_distribution": draw.out_of_distribution(found, nearness, size.far),
        "figure_12_types": draw.stops(stopped),
        "figure_13_probability": draw.probabilities(found),
    }
    for name, drawing in drawings.items():
        with whole_file(folder / f"{name}.png") as path:
            drawing.savefig(path)
    numbers = _numbers(run, means, found, stopped)
    with whole_file(folder / "toy.json") as path:
        path.write_text(to_json(numbers, indent=1))
    return numbers


def _numbers(run, means, found, stopped):
    """Return what the figures show, as JSON types."""
    before, without = found["before"], found["without"]
    return {
        "evolution": {
            "mean_reward": {iteration: run.means[iteration] for iteration in run.snapshots},
            "on_ring": {iteration: _share_on_ring(snapshot) for iteration, snapshot in run.snapshots.items()},
        },
        "ode_and_sde": means,
        "out_of_distribution": {
            name: {
                "on_ring": _share_on_ring(evaluation),
                "median_distance_to_ring": float(distance_to_ring(evaluation.images).median()),
                "mean_reward": float(evaluation.scores.mean()),
                "median_log_p": float(evaluation.log_p.median()),
            }
            for name, evaluation in found.items()
        },
        "probability_separation": separation(before.log_p, without.log_p),
        "types": {name: Counter(stop.diagnosis.types) for name, stop in stopped.items()},
    }


def _share_on_ring(evaluation):
    return float(on_ring(evaluation.images).float().mean())
