"""One search as a page for people: a single HTML file that needs no other, and a table for the console."""

import base64
import html
import io
import json
import shlex

from ..core import plots
from ..core.words import probability, written

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #ccc; text-align: left; }

pre { background: #f3f3f3; padding: .75rem; overflow-x: auto; }
p.warning { background: #fff3d0; padding: .5rem .75rem; }
"""


def findings(history):
    """Return what a search found as rows of texts, the first the names of the columns; one row a picture."""
    rows = [["picture", f"{history.reward}: start", "best", *history.watched, "P", "found"]]
    for item in range(len(history.best)):
        first, best = history.rows[0], history.best_row
        watched = (
            f"{written(first[f'watch/{name}'][item], '.3f')} -> {written(best[f'watch/{name}'][item], '.3f')}"
            for name in history.watched
        )
        p = probability(min(best["log_p"][item], best["log_p_initial"][item]))
        scores = [written(row["score"][item], ".3f") for row in (first, best)]
        rows.append([str(item), *scores, *watched, p, history.best_name(item)])
    return rows


def table(rows):
    """Return rows of texts as lines with aligned columns.

    Example:
        >>> print(table([["picture", "best"], ["0", "0.712"]]))
        picture  best
        0        0.712
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def page(result, command):
    """Return the HTML of a search: start and best, curves, the way there, settings, and the command that repeats it.

    Args:
        result: core's Result.
        command: the words of the command line.
    """
    history = result.history
    pictures = [("Start and best", plots.before_after(history)), ("Curves", plots.curves(history))]
    pictures += [
        (f"The way of picture {item}" if len(history.best) > 1 else "The way there", plots.trajectory(history, item))
        for item in range(len(history.best))
    ]
    parts = [f"<p>{html.escape(history.stopped)}; {history.rows[-1]['seconds']:.0f} s</p>"]
    parts += [f'<p class="warning">{html.escape(text)}</p>' for text in history.warnings]
    parts += [html_table(findings(history))]
    parts += [f'<h2>{name}</h2>\n<img alt="{name}" src="{_inline(picture)}">' for name, picture in pictures]
    parts += [f"<h2>The command that repeats it</h2>\n<pre>{html.escape(shlex.join(command))}</pre>"]
    settings = [["setting", "value"]] + [[name, _value(value)] for name, value in sorted(history.settings.items())]
    parts += ["<h2>Settings</h2>", html_table(settings)]
    title = html.escape(f"{history.settings.get('prompt', '')}: {history.reward}")
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    body = "\n".join([f"<h1>{title}</h1>", *parts])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def html_table(rows):
    """Return rows of texts, the first the names of the columns, as an HTML table."""
    names, *rest = rows
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>\n" for row in rest)
    return f"<table><tr>{head}</tr>\n{body}</table>"


def _value(value):
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 300 else f"{text[:300]} .."


def _inline(picture):
    """Return a PIL picture as a data URL."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
