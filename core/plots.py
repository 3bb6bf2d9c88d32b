"""Curves and contact sheets as PIL pictures, for people who would rather look than read."""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F

from .diagnostics import TOLERANCE

LN10 = math.log(10)


def to_pictures(images):
    """Return a list of B PIL pictures of images (B, 3, H, W): floats in [0, 1], clamped, or uint8."""
    if images.dtype != torch.uint8:
        images = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()]


def contact_sheet(pictures, captions=None, columns=None, size=192):
    """Lay pictures out in rows, each with its caption below.

    Args:
        pictures: PIL pictures, at least one.
        captions: one text a picture, lines separated by newlines; or None.
        columns: pictures a row; default all in one row up to 8.
        size: width of a tile in pixels; pictures are scaled to fit.
    """
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    columns = columns or min(len(pictures), 8)
    font, gap = ImageFont.load_default(13), 6
    lines = max((caption.count("\n") + 1 for caption in captions), default=0) if captions else 0
    height = round(size * max(picture.height / picture.width for picture in pictures))
    tile = (size + gap, height + 17 * lines + gap)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * tile[0] + gap, rows * tile[1] + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        x, y = gap + index % columns * tile[0], gap + index // columns * tile[1]
        scaled = (size, round(size * picture.height / picture.width))
        sheet.paste(picture.resize(scaled, Image.Resampling.LANCZOS), (x, y))
        if captions:
            draw.multiline_text((x, y + height + 2), captions[index], fill="black", font=font, spacing=2)
    return sheet


def trajectory(history, item=0, count=8, size=160):
    """Show one picture's way through the iterations: `count` snapshots, the first, the last and the best among them."""
    last, best = len(history.rows) - 1, history.best[item] if history.best else 0
    chosen = {round(last * i / max(count - 1, 1)) for i in range(count)} - {best}
    inner = sorted(chosen - {0, last})
    if inner and len(chosen) + 1 > count:
        chosen.remove(min(inner, key=lambda index: abs(index - best)))
    chosen = sorted(chosen | {best})
    captions, pictures = [], []
    for index in chosen:
        # The best may be a candidate that was tried in this iteration, not the noise of the iteration itself.
        row, picture = history.rows[index], history.pictures[index]
        name = f"iteration {row['iteration']}"
        if index == best and history.best_row:
            row, picture, name = history.best_row, history.best_picture, f"{history.best_name(item)} (best)"
        p = probability(min(row["log_p"][item], row["log_p_initial"][item]))
        captions.append(f"{name}\n{history.reward} {row['score'][item]:.3f}\nP {p}")
        pictures.append(to_pictures(picture[item : item + 1])[0])
    return contact_sheet(pictures, captions, columns=len(pictures), size=size)


def curves(histories, item=None):
    """Plot reward, watched scores and log10 P by iteration.

    Args:
        histories: one History, or a dict of them by label.
        item: one picture of the batch, or None for all.

    Returns:
        A PIL picture.
    """
    from matplotlib.ticker import MaxNLocator

    histories = histories if isinstance(histories, dict) else {"": histories}
    first = next(iter(histories.values()))
    watched = list(dict.fromkeys(name for history in histories.values() for name in history.watched))
    panels = [("score", first.reward)] + [(f"watch/{name}", name) for name in watched] + [("p", "log10 P(z)")]
    figure, row = _panels(len(panels))
    for axes, (key, title) in zip(row, panels, strict=True):
        for number, (label, history) in enumerate(histories.items()):
            if key == "p":
                _draw_column(axes, history, "log_p", f"{label} z".strip(), f"C{number}", "-", item, LN10)
                _draw_column(axes, history, "log_p_initial", f"{label} x_T".strip(), f"C{number}", ":", item, LN10)
            else:
                _draw_column(axes, history, key, label, f"C{number}", "-", item)
        axes.set(title=title, xlabel="iteration")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8)
    axes.axhline(-6, color="gray", linewidth=0.8, linestyle="--")
    axes.set_ylim(bottom=max(axes.get_ylim()[0], -60), top=1)
    return _drawn(figure)


def shell(noise):
    """Show where one picture's noise leaves the shell that true noise lies on.

    Args:
        noise: a Noise of one picture, (1, C, H, W).

    Returns:
        A PIL picture: the norm of each noise; local means and local energies of x_T in standard deviations of true
        noise, over 3 x 3 entries of all channels; and the histogram of z.
    """
    figure, (norms, means, energies, histogram) = _panels(4)
    size = noise.initial.numel()
    lengths = [(z.norm() / size**0.5).item() for z in (noise.initial, *noise.injected)]
    norms.bar(range(len(lengths)), lengths)
    norms.axhspan(1 - 3 / (2 * size) ** 0.5, 1 + 3 / (2 * size) ** 0.5, color="gray", alpha=0.4)
    norms.set(title="norm (0: x_T, then in order)", ylim=(min(0.8, *lengths), max(1.2, *lengths)))
    z = noise.initial.float()
    counts = z.shape[1] * 9 * F.avg_pool2d(torch.ones_like(z[:, :1]), 3, stride=1, padding=1)
    local = {
        means: ("x_T: local mean", _local_mean(z) * counts.sqrt()),
        energies: ("x_T: local energy", (_local_mean(z.square()) - 1) * (counts / 2).sqrt()),
    }
    for axes, (title, field) in local.items():
        shown = axes.imshow(field[0, 0].cpu().numpy(), cmap="RdBu_r", vmin=-6, vmax=6)
        figure.colorbar(shown, ax=axes, label="standard deviations")
        axes.set(title=title, xticks=[], yticks=[])
    grid = np.linspace(-4.5, 4.5, 91)
    histogram.hist(noise.flat()[0].float().cpu().numpy(), bins=grid, density=True, alpha=0.6)
    histogram.plot(grid, np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi), color="black", linewidth=1)
    histogram.set(title="all of z against N(0, 1)", yticks=[])
    return _drawn(figure)


def diagnosis(found):
    """Draw the measures of a `diagnostics.Diagnosis` as bars, one group a picture; below the line counts as zero."""
    figure, (axes,) = _panels(1, width=max(4.8, 1.2 * len(found.types)))
    measures = {
        "reward's gradient": found.g1_relative, "noise's influence": found.g2_relative, "alignment": found.alignment
    }  # fmt: skip
    for index, (name, values) in enumerate(measures.items()):
        places = [item + 0.25 * (index - 1) for item in range(len(found.types))]
        axes.bar(places, values.float().clamp(min=1e-4).tolist(), width=0.22, label=name)
    axes.axhline(TOLERANCE, color="black", linestyle="--", linewidth=0.8)
    axes.set(yscale="log", ylim=(1e-3, 50), title="what the gradient is made of")
    labels = ["still improving" if kind == "none" else f"type {kind}" for kind in found.types]
    axes.set_xticks(range(len(labels)), [f"{index}: {label}" for index, label in enumerate(labels)])
    axes.legend(fontsize=8, ncols=3, loc="upper center")
    return _drawn(figure)


def _panels(count, width=4.2):
    """Return a matplotlib figure and its row of `count` axes; matplotlib is imported here, not with the pack."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, 3.4), dpi=100, layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _drawn(figure):
    """Return a matplotlib figure as a PIL picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _local_mean(z):
    """Return the mean of z (1, C, H, W) over channels and the 3 x 3 entries around each, (1, 1, H, W)."""
    return F.avg_pool2d(z.mean(dim=1, keepdim=True), 3, stride=1, padding=1, count_include_pad=False)


def _draw_column(axes, history, key, label, color, style, item, divide_by=1.0):
    """Draw one line a picture, and a dot at its best."""
    items = range(len(history.rows[0]["score"])) if item is None else [item]
    for index in items:
        values = [math.nan if value is None else value / divide_by for value in history.column(key, index)]
        iterations = [row["iteration"] for row in history.rows]
        name = label if label and index == items[0] else None
        axes.plot(iterations, values, style, color=color, label=name, alpha=1.0 if len(items) == 1 else 0.7)
        if history.best and style == "-":
            best = history.best_row.get(key, history.rows[history.best[index]][key])[index]
            axes.plot(iterations[history.best[index]], best / divide_by, "o", color=color, markersize=4)


def probability(log_p):
    """Write a probability given by its natural logarithm: 0.31, or 1e-23 where it is small."""
    return f"{math.exp(log_p):.2f}" if log_p > math.log(0.01) else f"1e{log_p / LN10:.0f}"
