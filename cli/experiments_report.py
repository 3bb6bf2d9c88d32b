"""The report of `dno experiments`: what each experiment asked and found, as Markdown, HTML and CSV, with its figures.

report.md, report.html    the same twice; the pictures lie beside them
verdicts.csv              a row a claim, with the effect of every seed
<experiment>.csv          a row a case, with its numbers, of each curve start and end
<experiment>.png          its figure
<experiment>_pictures.jpg its contact sheet, where it has pictures
cases.zip                 what every case has measured, curves and all; unpacked into another --out, none is run anew
"""

import csv
import html
import math
import zipfile
from dataclasses import dataclass

import torch
from PIL import Image

from ..core import plots
from ..core.files import whole_file
from ..core.words import counted, duration
from .report import STYLE, html_table

PAGE = "report.html"
TILE, ACROSS, DOWN, SINGLE = 112, 8, 6, 16
"""Of a contact sheet: pixels of a picture, at most so many in a row, rows, and cases where each has one picture."""
VERDICT = ["claim", "effect", "verdict", "mean", "95 % interval", "effect size", "seeds"]


@dataclass(frozen=True)
class Found:
    """An experiment with what it found.

    Attributes:
        experiment: an Experiment.
        results: of its finished cases.
        judged: those of them that claims and figure are made of.
        missing: how many cases have failed.
        verdicts: one a claim.
    """

    experiment: object
    results: list
    judged: list
    missing: int
    verdicts: list

    @classmethod
    def of(cls, experiment, jobs):
        from ..experiments.experiment import verdict

        results = [job.result() for job in jobs if job.finished]
        broken = {job.case["seed"] for job in jobs if not job.finished} if experiment.whole_seeds else ()
        judged = [result for result in results if result["case"]["seed"] not in broken]
        verdicts = [verdict(claim.values(judged)) for claim in experiment.claims]
        return cls(experiment, results, judged, len(jobs) - len(results), verdicts)

    @property
    def claimed(self):
        """Pairs of each claim and its verdict; none of an experiment that cannot be run here."""
        return [] if self.experiment.lacks else list(zip(self.experiment.claims, self.verdicts, strict=True))


def write(experiments, jobs, options):
    """Write the report of finished cases into `options.out`.

    Args:
        experiments: those that were asked for.
        jobs: name -> Jobs.
        options: of the command: out and seeds.

    Returns:
        A row of texts a claim: experiment, verdict, effect, claim.
    """
    found = [Found.of(each, jobs[each.name]) for each in experiments]
    for each in found:
        _write_pictures(each, options.out)
        _write_csv(options.out / f"{each.experiment.name}.csv", [_flat(result) for result in each.results])
    verdicts = [
        {"experiment": each.experiment.name, "claim": claim.text, "effect": claim.effect, **_numbers(verdict)}
        for each in found for claim, verdict in each.claimed
    ]  # fmt: skip
    _write_csv(options.out / "verdicts.csv", verdicts)
    _write_archive(options.out)
    blocks = _head(found, options) + [block for each in found for block in _section(each, options.out)]
    for name, render in (("report.md", _markdown), (PAGE, _page)):
        with whole_file(options.out / name) as path:
            path.write_text(render(blocks), encoding="utf-8")
    return [
        [each.experiment.name, verdict.word, _signed(verdict.mean), claim.text]
        for each in found for claim, verdict in each.claimed
    ]  # fmt: skip


def _head(found, options):
    """Return the blocks that the report begins with: what was run, and all verdicts."""
    results = [result for each in found for result in each.results]
    seconds = sum(result["seconds"] for result in results)
    commits = ", ".join(sorted({result["commit"] for result in results}))
    about = (
        f"{counted(options.seeds, 'seed')}, {counted(len(results), 'case')}, {duration(seconds)} of one core in all;"
        f" commit {commits or 'unknown'}, torch {torch.__version__}. A claim holds where the 95 % interval of its mean"
        " effect over the seeds lies above 0, does not hold where it lies below, and is undecided else. Effect size is"
        " mean / standard deviation."
    )
    rows = [["experiment", *VERDICT]]
    for each in found:
        rows += [[each.experiment.name, *_row(claim, verdict)] for claim, verdict in each.claimed]
    return [("h1", "The papers' experiments"), ("p", about), ("table", rows)]


def _section(found, out):
    """Return the blocks of one experiment."""
    experiment = found.experiment
    seconds = sum(result["seconds"] for result in found.results)
    blocks = [("h2", f"{experiment.title} ({experiment.name})"), ("p", experiment.question)]
    if experiment.lacks:
        return [*blocks, ("p", experiment.lacks)]
    blocks += [("p", f"{experiment.setting} {counted(len(found.results), 'case')}, {duration(seconds)} of one core.")]
    if found.missing:
        with_them = ", with all else of its seed" if experiment.whole_seeds else ""
        blocks += [("p", f"{counted(found.missing, 'case')} failed: missing below{with_them}.")]
    blocks += [("table", [VERDICT, *(_row(claim, verdict) for claim, verdict in found.claimed)])]
    if experiment.table is not None and found.judged:
        blocks += [("table", experiment.table(found.judged))]
    pictures = [file for file in (_figure(experiment), _sheet(experiment)) if (out / file).is_file()]
    return blocks + [("image", experiment.title, file) for file in pictures]


def _figure(experiment):
    return f"{experiment.name}.png"


def _sheet(experiment):
    return f"{experiment.name}_pictures.jpg"


def _row(claim, verdict):
    interval = f"{_signed(verdict.low)} .. {_signed(verdict.high)}" if len(verdict.effects) > 1 else "unknown"
    size, seeds = _signed(verdict.size), str(len(verdict.effects))
    return [claim.text, claim.effect, verdict.word, _signed(verdict.mean), interval, size, seeds]


def _signed(value):
    """Write a number with its sign and three digits."""
    return "unknown" if math.isnan(value) else f"{value:+.3g}"


def _numbers(verdict):
    numbers = {name: getattr(verdict, name) for name in ("mean", "low", "high", "size")}
    effects = " ".join(f"{effect:.6g}" for effect in verdict.effects)
    return {"verdict": verdict.word, **numbers, "seeds": len(verdict.effects), "effects": effects}


def _flat(result):
    """Return a case and its result as one row of numbers and texts: of a curve its start and its end."""
    measured = {key: value for key, value in result.items() if key not in ("case", "pictures")}
    return {f"case {name}": value for name, value in result["case"].items()} | _columns("", measured)


def _columns(name, value):
    """Return the columns of what is called `name`: a number, a curve, a dict or a list of few such things."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return {name: value}
    if isinstance(value, dict):
        parts = {f"{name} {key}".strip(): part for key, part in value.items()}
    elif all(isinstance(entry, (int, float)) for entry in value):
        parts = {f"{name} start": value[0], f"{name} end": value[-1]} if value else {}
    else:
        parts = {f"{name} {index}": part for index, part in enumerate(value)} if len(value) <= ACROSS else {}
    return {key: column for name, part in parts.items() for key, column in _columns(name, part).items()}


def _write_csv(path, rows):
    with whole_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def _write_archive(out):
    """Put the files of all finished cases that lie there into cases.zip, without their pictures."""
    with whole_file(out / "cases.zip") as path, zipfile.ZipFile(path, "w") as archive:
        for case in sorted(out.glob("cases/*/*.json")):
            file = zipfile.ZipInfo(case.relative_to(out).as_posix())  # without a date: the same cases, the same bytes
            file.create_system = 3  # Windows would say otherwise
            archive.writestr(file, case.read_bytes(), zipfile.ZIP_DEFLATED, compresslevel=9)


def _write_pictures(found, out):
    """Draw the figure and the contact sheet of an experiment that has results."""
    if found.judged:
        with whole_file(out / _figure(found.experiment)) as path:
            found.experiment.draw(found.judged).savefig(path)
    pictured = [result for result in found.results if result["pictures"]]
    if pictured:
        with whole_file(out / _sheet(found.experiment)) as path:
            _contact_sheet(pictured).save(path, quality=85)


def _contact_sheet(results):
    """Show each case's pictures in a row, as many as each has, with their names, the first with its case as well.

    Where a case has only one, the cases stand side by side.
    """
    width = min(ACROSS, *(len(result["pictures"]) for result in results))
    pictures, captions = [], []
    for result in results[: DOWN if width > 1 else SINGLE]:
        about = ", ".join(str(value) for value in result["case"].values() if value not in result["pictures"])
        for index, (name, path) in enumerate(list(result["pictures"].items())[:width]):
            pictures.append(Image.open(path).convert("RGB"))
            captions.append(f"{about if index == 0 else ''}\n{name}")
    return plots.contact_sheet(pictures, captions, columns=width if width > 1 else ACROSS, size=TILE)


def _markdown(blocks):
    """Return the blocks as Markdown."""
    return "\n\n".join(_MARKDOWN[kind](*rest) for kind, *rest in blocks) + "\n"


def _markdown_table(rows):
    lines = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


_MARKDOWN = {
    "h1": lambda text: f"# {text}",
    "h2": lambda text: f"## {text}",
    "p": lambda text: text,
    "table": _markdown_table,
    "image": lambda text, file: f"![{text}]({file})",
}


def _page(blocks):
    """Return the blocks as an HTML page."""
    parts = []
    for kind, *rest in blocks:
        if kind == "table":
            parts.append(html_table(*rest))
        elif kind == "image":
            text, file = (html.escape(part) for part in rest)
            parts.append(f'<p><img alt="{text}" src="{file}"></p>')
        else:
            parts.append(f"<{kind}>{html.escape(rest[0])}</{kind}>")
    title = html.escape(blocks[0][1])
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
