"""Curves and contact sheets as PIL pictures, for people who would rather look than read."""

import functools
import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from . import lettering
from .diagnostics import TOLERANCE
from .history import thumbnail
from .words import LN10, number, probability, written


def _plain(draw):
    """Let a function draw in matplotlib's own style: a user's may ask for a font without accents, or for TeX."""

    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        from matplotlib import style

        with style.context("default"):
            return draw(*args, **kwargs)

    return drawn


def to_pictures(images):
    """Return a list of B PIL pictures.

    Args:
        images: (B, 3, H, W), or one channel for gray; uint8, or floats, which are clamped to [0, 1] (NaN is black).

    Raises:
        ValueError: images are of another shape.

    Example:
        >>> to_pictures(torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1))[0].getpixel((0, 0))
        (0, 128, 255)
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images[:1].numel():
        raise ValueError(f"pictures are {tuple(images.shape)}; expected (B, 3, H, W), one pixel or more")
    if images.dtype != torch.uint8:
        images = (images.detach().float().nan_to_num(nan=0.0).clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(image) for image in images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()]


def contact_sheet(pictures, captions=None, columns=None, size=192):
    """Lay pictures out in rows, each with its caption below.

    Args:
        pictures: PIL pictures, at least one.
        captions: one text a picture, lines separated by newlines; or None. What is wider than a tile is cut off.
        columns: pictures a row; default all in one row up to 8.
        size: width of a tile in pixels; pictures are scaled to fit, very tall ones to four times that height.

    Raises:
        ValueError: there is no picture, or not one caption a picture.

    Example:
        >>> contact_sheet([Image.new("RGB", (64, 64)), Image.new("RGB", (64, 32))], ["one", "two"], size=100).size
        (218, 129)
    """
    pictures = list(pictures)
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    columns = min(len(pictures), 8) if columns is None else columns
    if columns < 1 or size < 1:
        raise ValueError(f"columns is {columns} and size {size}; expected 1 or more")
    captions = [lettering.readable(caption).split("\n") for caption in captions or []]
    if captions and len(captions) != len(pictures):
        raise ValueError(f"there are {len(captions)} captions for {len(pictures)} pictures; expected one a picture")
    gap, lines = 6, max(map(len, captions), default=0)
    scaled = [_scaled(picture, size) for picture in pictures]
    height = max(picture.height for picture in scaled)
    tile = (size + gap, height + 17 * lines + gap)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * tile[0] + gap, rows * tile[1] + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for index, picture in enumerate(scaled):
        x, y = gap + index % columns * tile[0], gap + index // columns * tile[1]
        sheet.paste(picture, (x, y))
        if captions:
            text = "\n".join(lettering.fitted(line, size) for line in captions[index])
            draw.multiline_text((x, y + height + 2), text, fill="black", font=lettering.font(), spacing=2)
    return sheet


def side_by_side(images, size=512):
    """Lay a batch out in one picture of about `size` pixels across, in as many rows as columns; a single one as it is.

    Args:
        images: (B, 3, H, W), floats, or videos (B, F, 3, H, W), of which one frame is shown.
        size: in pixels; larger pictures are scaled down on their device.

    Example:
        >>> side_by_side(torch.zeros(5, 3, 64, 64), size=300).size
        (324, 218)
    """
    columns = math.isqrt(len(images) - 1) + 1
    pictures = to_pictures(thumbnail(images, size // columns))
    return pictures[0] if columns == 1 else contact_sheet(pictures, columns=columns, size=size // columns)


def _scaled(picture, size):
    """Return a picture scaled to `size` pixels across and at most four times as many down, one or more each way."""
    if not (picture.width and picture.height):
        raise ValueError(f"a picture is {picture.width} x {picture.height} pixels; expected one pixel or more")
    scale = min(size / picture.width, 4 * size / picture.height)
    return picture.resize([max(round(side * scale), 1) for side in picture.size], Image.Resampling.LANCZOS)


def trajectory(history, item=0, count=8, size=160):
    """Show one picture's way through the iterations: `count` snapshots, the first, the last and the best among them.

    Args:
        history: a History of one iteration or more.
        item: of the batch, from 0.
        count: pictures on the sheet.
        size: width of each, in pixels.

    Raises:
        ValueError: the history has no rows, or no such picture.

    Example:
        >>> from comfyui_dno import core
        >>> point = core.SampleMap(lambda x, sigma: x, core.Schedule((1.0, 0.0)), (1, 3, 8, 8), eta=0.0)
        >>> result = core.optimize(point, lambda x, prompts: x.mean((1, 2, 3)), point.randn(), iterations=2, floor=0)
        >>> trajectory(result.history).size  # three pictures, each of 160 pixels and three lines
        (504, 223)
    """
    _check_item(history, item)
    rows, last, best = history.rows, len(history.rows) - 1, history.best[item] if history.best else 0
    # A long search keeps not all of its pictures: the ones nearest to what is wanted are shown.
    kept = dict(zip(history.picture_rows, history.pictures, strict=True))
    wanted = [round(last * i / max(count - 1, 1)) for i in range(count)]
    chosen = {min(kept, key=lambda row: abs(row - index)) for index in wanted} - {best}
    inner = sorted(chosen - {0, last})
    if inner and len(chosen) + 1 > count:
        chosen.remove(min(inner, key=lambda index: abs(index - best)))
    captions, pictures = [], []
    for index in sorted(chosen | {best}):
        # The best may be a candidate that was tried in this iteration, not the noise of the iteration itself.
        row, picture, name = rows[index], kept.get(index), f"iteration {rows[index]['iteration']}"
        if index == best and history.best_row:
            row, picture, name = history.best_row, history.best_picture, f"{history.best_name(item)} (best)"
        if picture is None:
            continue
        p = probability(min((row[key][item] for key in ("log_p", "log_p_initial")), key=number))
        captions.append(f"{name}\n{history.reward} {written(row['score'][item], '.3f')}\nP {p}")
        pictures.append(to_pictures(picture[item : item + 1])[0])
    return contact_sheet(pictures, captions, columns=len(pictures), size=size)


@_plain
def curves(histories, item=None):
    """Plot reward, watched scores and log10 P by iteration.

    Args:
        histories: one History, or a dict of them by label.
        item: one picture of the batch, or None for all.

    Returns:
        A PIL picture.

    Raises:
        ValueError: there is no history, one has no rows, or no such picture.

    Example:
        >>> from comfyui_dno import core
        >>> row = {"iteration": 0, "score": [0.5], "log_p": [-0.1], "log_p_initial": [-0.2]}
        >>> curves(core.History(rows=[row, row | {"iteration": 1, "score": [0.6]}])).size
        (840, 340)
    """
    from matplotlib.ticker import MaxNLocator

    histories = histories if isinstance(histories, dict) else {"": histories}
    if not histories:
        raise ValueError("there is no history to draw; expected one or more")
    for history in histories.values():
        _check_item(history, item or 0)
    first = next(iter(histories.values()))
    watched = list(dict.fromkeys(name for history in histories.values() for name in history.watched))
    panels = [("score", first.reward)] + [(f"watch/{name}", name) for name in watched] + [("p", "log10 P(z)")]
    figure, row = _panels(len(panels))
    for axes, (key, title) in zip(row, panels, strict=True):
        for place, (label, history) in enumerate(histories.items()):
            if key == "p":
                _draw_column(axes, history, "log_p", f"{label} z".strip(), f"C{place}", "-", item, LN10)
                _draw_column(axes, history, "log_p_initial", f"{label} x_T".strip(), f"C{place}", ":", item, LN10)
            else:
                _draw_column(axes, history, key, label, f"C{place}", "-", item)
                floors = history.floors.get(key.removeprefix("watch/"), []) if key != "score" else []
                for least in floors if item is None else floors[item : item + 1]:
                    _draw_limit(axes, least, "floor")
        axes.set(title=lettering.label(title), xlabel="iteration")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8)
    axes.set_ylim(bottom=max(min(axes.get_ylim()[0], -7), -60), top=1)
    _draw_limit(axes, -2, "P 0.01: below, not taken for the best")
    _draw_limit(axes, -6, "P 1e-6: hardly one true noise in a million")
    return _drawn(figure)


def before_after(history, items=None, size=384):
    """Show start and best side by side, a row for each picture, with their scores.

    Args:
        history: a History of a search that is over.
        items: numbers of the pictures in the batch; None: all.
        size: width of each, in pixels.

    Raises:
        ValueError: the history has no rows, or no such picture.

    Example:
        >>> from comfyui_dno import core
        >>> point = core.SampleMap(lambda x, sigma: x, core.Schedule((1.0, 0.0)), (1, 3, 8, 8), eta=0.0)
        >>> result = core.optimize(point, lambda x, prompts: x.mean((1, 2, 3)), point.randn(), iterations=2, floor=0)
        >>> before_after(result.history, size=128).size
        (274, 183)
    """
    pictures, captions = [], []
    for item in range(len(history.best)) if items is None else items:
        _check_item(history, item)
        sides = {
            "start": (history.first_picture, history.rows[0]),
            f"best, {history.best_name(item)}": (history.best_picture, history.best_row),
        }
        for name, (picture, row) in sides.items():
            watched = [f"{watch} {written(row[f'watch/{watch}'][item], '.3f')}" for watch in history.watched]
            p = probability(min((row[key][item] for key in ("log_p", "log_p_initial")), key=number))
            numbers = ", ".join([f"{history.reward} {written(row['score'][item], '.3f')}", *watched])
            captions.append(f"{name}\n{numbers}\nP {p}")
            pictures.append(to_pictures(picture[item : item + 1])[0])
    return contact_sheet(pictures, captions, columns=2, size=size)


@_plain
def shell(noise):
    """Show where one picture's noise leaves the shell that true noise lies on.

    Args:
        noise: a Noise of one picture, (1, C, H, W); of a video, (1, C, F, H, W), the maps show the first frame.

    Returns:
        A PIL picture: the norm of each noise; local means and local energies of x_T in standard deviations of true
        noise, over 3 x 3 entries of all channels; and the histogram of z.

    Raises:
        ValueError: the noise is of several pictures, or of points.

    Example:
        >>> from comfyui_dno import core
        >>> shell(core.Noise.randn((1, 4, 16, 16), injected=3)).size
        (1680, 340)
    """
    if noise.batch != 1 or noise.initial.ndim not in (4, 5):
        found = tuple(noise.initial.shape)
        raise ValueError(f"the noise is {found}; expected (1, C, H, W), one picture's: Noise.item gives it")
    figure, (norms, means, energies, histogram) = _panels(4)
    size = noise.initial.numel()
    lengths = [number((z.float().norm() / size**0.5).item()) for z in (noise.initial, *noise.injected)]
    norms.bar(range(len(lengths)), lengths)
    norms.axhspan(1 - 3 / (2 * size) ** 0.5, 1 + 3 / (2 * size) ** 0.5, color="gray", alpha=0.4)
    known = [length for length in lengths if not math.isnan(length)]
    norms.set(title="norm (0: x_T, then in order)", ylim=(min([0.8, *known]), max([1.2, *known])))
    z = noise.initial.float() if noise.initial.ndim == 4 else noise.initial[:, :, 0].float()
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
    values = noise.flat()[0].float().cpu().numpy()
    if (np.abs(values) <= grid[-1]).any():
        histogram.hist(values[np.isfinite(values)], bins=grid, density=True, alpha=0.6)
    histogram.plot(grid, np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi), color="black", linewidth=1)
    histogram.set(title="all of z against N(0, 1)", yticks=[])
    return _drawn(figure)


@_plain
def diagnosis(found):
    """Draw the measures of a `diagnostics.Diagnosis` as bars, one group a picture; below the line counts as zero.

    Example:
        >>> from comfyui_dno import core
        >>> one = torch.ones(1)
        >>> diagnosis(core.Diagnosis(one, one, one, one, one, one, opposed=None, types=["none"])).size
        (480, 340)
    """
    figure, (axes,) = _panels(1, width=max(4.8, 1.2 * len(found.types)))
    measures = {
        "reward's gradient": found.g1_relative, "noise's influence": found.g2_relative, "alignment": found.alignment
    }  # fmt: skip
    for index, (name, values) in enumerate(measures.items()):
        places = [item + 0.25 * (index - 1) for item in range(len(found.types))]
        axes.bar(places, [number(value) for value in values.float().clamp(1e-4, 1e4).tolist()], width=0.22, label=name)
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


def _draw_limit(axes, level, text):
    """Draw a line across that the best must be above, with its meaning on it."""
    axes.axhline(level, color="gray", linewidth=0.8, linestyle="--")
    axes.annotate(
        text, (0.02, level), xycoords=("axes fraction", "data"), xytext=(0, 2), textcoords="offset points", fontsize=7,
        color="gray",
    )  # fmt: skip


def _draw_column(axes, history, key, label, color, style, item, divide_by=1.0):
    """Draw one line a picture, and a dot at its best; a gap where a value is none or not finite."""
    items = range(len(history.rows[0]["score"])) if item is None else [item]
    for index in items:
        values = [number(value) / divide_by for value in history.column(key, index)]
        iterations = [row["iteration"] for row in history.rows]
        name = lettering.label(label) if label and index == items[0] else None
        axes.plot(iterations, values, style, color=color, label=name, alpha=1.0 if len(items) == 1 else 0.7)
        if history.best and style == "-":
            place = history.best[index]
            best = number(history.best_row[key][index]) / divide_by if key in history.best_row else values[place]
            axes.plot(iterations[place], best, "o", color=color, markersize=4)


def _check_item(history, item):
    """Raise ValueError unless the history has rows, and a picture `item`."""
    if not history.rows:
        raise ValueError("the history is empty; expected one iteration or more")
    batch = len(history.rows[0]["score"])
    if not 0 <= item < batch:
        raise ValueError(f"picture {item} of a batch of {batch}; expected 0 .. {batch - 1}")
