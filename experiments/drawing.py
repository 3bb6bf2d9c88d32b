"""What the experiments' figures share."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator


def panels(rows, columns, width=4.0, height=3.2):
    """Return a Figure and its grid of axes, an array (rows, columns)."""
    figure = Figure(figsize=(width * columns, height * rows), dpi=100, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def band(axes, curves, label, color, xs=None, style="-"):
    """Draw mean and standard deviation over curves of one length, each a list of numbers."""
    values = np.array(curves, dtype=float)
    xs = np.arange(values.shape[1]) if xs is None else xs
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    axes.plot(xs, mean, style, color=color, label=label)
    axes.fill_between(xs, mean - deviation, mean + deviation, color=color, alpha=0.15, linewidth=0)
    axes.grid(alpha=0.3)


def logarithmic(axes):
    """Make the axis across logarithmic, with 1, 2, 5, 10, .. written out, of which a short range has some too."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def spread(axes, groups):
    """Draw the numbers of each group, label -> list, as dots with their mean."""
    for place, values in enumerate(groups.values()):
        axes.plot([place] * len(values), values, "o", color=f"C{place}", alpha=0.5, markersize=4)
        axes.plot([place - 0.2, place + 0.2], [np.mean(values)] * 2, color=f"C{place}", linewidth=2)
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(alpha=0.3, axis="y")
