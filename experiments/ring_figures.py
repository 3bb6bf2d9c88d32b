"""The drawings of `ring`: each takes what an experiment returned and gives a matplotlib Figure."""

import math

import numpy as np
import torch
from matplotlib.figure import Figure

from .ring_models import INNER, OUTER, distance_to_ring

TYPES = {
    "none": ("still improving", "tab:red"),
    "I": ("type I", "tab:green"),
    "II": ("type II", "tab:blue"),
    "III": ("type III", "tab:orange"),
}
"""Label and colour of each type, in drawing order."""


def evolution(run, reward):
    """Draw Figure 2: the points of each snapshot over the reward."""
    figure, panels = _panels(len(run.snapshots))
    for axes, (iteration, evaluation) in zip(panels, run.snapshots.items(), strict=True):
        shade = _background(axes, reward, 1.5)
        _outline_ring(axes)
        _scatter(axes, evaluation.images, color="tab:red")
        axes.set_title(f"{iteration} iterations: mean {run.means[iteration]:.2f}", fontsize=11)
    figure.colorbar(shade, ax=panels, label="reward", shrink=0.8)
    return figure


def ode_and_sde(means):
    """Draw Figure 3, left: the mean reward by iteration, one panel a solver."""
    figure = Figure(figsize=(9, 3.6), dpi=100, layout="constrained")
    for axes, (solver, curves) in zip(figure.subplots(1, len(means), sharey=True), means.items(), strict=True):
        for (kind, curve), style in zip(curves.items(), ("--", "-"), strict=True):
            axes.plot(curve, style, label=kind)
        axes.set(title=solver, xlabel="iteration")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.axes[0].set_ylabel("mean reward")
    return figure


def out_of_distribution(found, reward, iterations):
    """Draw Figure 4 a and b, the regularised search, and what the exact denoiser makes of the noise of b."""
    titles = {
        "before": "true noise",
        "without": f"{iterations} iterations, no regulariser",
        "with": "with the regulariser",
        "exact": "2nd panel's noise, exact denoiser",
    }
    figure, panels = _panels(len(titles), height=3.8)
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        shade = _background(axes, reward, 1.7)
        _outline_ring(axes)
        points = found[name].images
        _scatter(axes, points, color="tab:red")
        axes.set_title(f"{title}\n{float(distance_to_ring(points).median()):.2f} off the ring", fontsize=10)
    figure.colorbar(shade, ax=panels, label="reward", shrink=0.7)
    return figure


def probabilities(found):
    """Draw Figure 13a: points coloured by P(z), before and after a search without the regulariser."""
    figure, panels = _panels(2)
    for axes, (name, title) in zip(panels, {"before": "true noise", "without": "optimised"}.items(), strict=True):
        _outline_ring(axes)
        log_p = found[name].log_p.numpy() / math.log(10)
        dots = _scatter(axes, found[name].images, c=log_p, cmap="viridis", vmin=-4, vmax=0)
        axes.set_title(f"{title}, median P(z) {10 ** np.median(log_p):.1g}", fontsize=10)
        axes.set(xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), aspect="equal")
    figure.colorbar(dots, ax=panels, label="log10 P(z)", shrink=0.8, extend="min")
    return figure


def stops(stopped):
    """Draw Figure 12, and type II at the end of a line: points coloured by why they stopped."""
    titles = {
        "ring": "ring, at the end of Figure 2",
        "line": "line, reward x2",
        "end": "line, reward x1, exact denoiser",
    }
    figure, panels = _panels(len(titles), height=3.9)
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        stop = stopped[name]
        types(axes, stop.reward, stop.points, stop.diagnosis.types, name == "ring")
        axes.set_title(title, fontsize=11)
    return figure


def types(axes, reward, points, kinds, on_ring):
    """Draw points (B, 2) in the colours of the types they stopped by, with the ring or the line."""
    _background(axes, reward, 1.5)
    if on_ring:
        _outline_ring(axes)
    else:
        axes.plot([-1, 1], [0, 0], color="tab:cyan", linewidth=0.8)
    for kind, (label, color) in TYPES.items():
        chosen = torch.tensor([found == kind for found in kinds])
        if chosen.any():
            _scatter(axes, points[chosen], color=color, label=f"{label}: {kinds.count(kind)}")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, fontsize=8, frameon=False, markerscale=2,
        columnspacing=0.8, handletextpad=0,
    )  # fmt: skip


def scene(axes, reward, points, limit=1.5):
    """Draw points (B, 2) over the ring and the shades of a reward."""
    _background(axes, reward, limit)
    _outline_ring(axes)
    _scatter(axes, points, color="tab:red")


def _panels(count, height=3.5):
    figure = Figure(figsize=(3.2 * count + 0.6, height), dpi=100, layout="constrained")
    return figure, list(figure.subplots(1, count, sharey=True))


def _background(axes, reward, limit):
    """Shade the reward over the square of +- limit."""
    side = torch.linspace(-limit, limit, 200, dtype=torch.float32)
    x2, x1 = torch.meshgrid(side, side, indexing="ij")
    values = reward(torch.stack([x1.flatten(), x2.flatten()], dim=1)).view(200, 200)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    extent = (-limit, limit, -limit, limit)
    return axes.imshow(values.numpy(), cmap="Greys", alpha=0.6, origin="lower", extent=extent, interpolation="bilinear")


def _outline_ring(axes):
    angle = np.linspace(0, 2 * math.pi, 200)
    for radius in (INNER, OUTER):
        axes.plot(radius * np.cos(angle), radius * np.sin(angle), color="tab:cyan", linewidth=0.8)


def _scatter(axes, points, **style):
    return axes.scatter(*points.T.numpy(), s=9, linewidths=0.2, edgecolors="white", zorder=3, **style)
