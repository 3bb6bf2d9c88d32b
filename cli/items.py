"""The items of a batch, every prompt with every seed, and their folders on disk.

A folder appears under its own name only when it is complete, so that whatever has its name is finished.
"""

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from PIL import Image

from ..core import plots
from ..core.files import to_json, whole_file
from ..core.words import written

MOST_TILES = 400
"""Pictures on the contact sheet; more would make a file that nothing opens."""
TILE = 160
RECORDED = {"settings", "rows", "best", "best_row", "reward", "stopped"}
"""What is read of an item's history."""


@dataclass(frozen=True)
class Item:
    """One prompt with one seed.

    Attributes:
        line: of the prompt in its file, from 1.
        prompt: without surrounding blanks.
        seed: of its noise.
        folder: where its files are when it is finished.
    """

    line: int
    prompt: str
    seed: int
    folder: Path

    @property
    def finished(self):
        """Whether its folder is there."""
        return self.folder.is_dir()

    @property
    def error(self):
        """The file that says why its last try failed."""
        return self.folder.with_name(f"{self.folder.name}.error.txt")

    def record(self):
        """Return the history of a finished item."""
        path = self.folder / "history.json"
        advice = "remove the item's folder, and the same command makes it again"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({error}); {advice}") from error
        if not isinstance(record, dict) or not record.keys() >= RECORDED or not record["rows"]:
            raise ValueError(f"{path} is not the history of a search; {advice}")
        return record


def read_items(path, seeds, out):
    """Return the items of a file of prompts, one a line; blank lines and those that begin with # are left out."""
    lines = enumerate(_text(Path(path)).split("\n"), start=1)
    prompts = [(line, text.strip()) for line, text in lines if text.strip() and not text.strip().startswith("#")]
    if not prompts:
        raise ValueError(f"{path} holds no prompt; expected one a line")
    return [Item(line, prompt, seed, out / _name(line, prompt, seed)) for line, prompt in prompts for seed in seeds]


def _text(path):
    """Return the text of a file of prompts, with or without the mark that some editors begin it with, lines end in \\n.

    `str.splitlines` would end a line at characters that no editor counts as an end.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise OSError(f"the file of prompts {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8; save as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{path} is not a text file in UTF-8, for it holds NUL characters; save as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_finished(items, settings):
    """Raise ValueError where a finished item was made with other settings than `settings` and its prompt and seed."""
    for item in items:
        if item.finished:
            wanted = json.loads(to_json(settings | {"prompt": item.prompt, "seed": item.seed}))
            found = item.record()["settings"]
            if "keep_graphs" in found:  # of a version before `--memory`
                found["memory"] = "fast" if found["keep_graphs"] else "step"
            changed = [name for name, value in wanted.items() if found.get(name) != value]
            if changed:
                name = changed[0]
                raise ValueError(
                    f"{item.folder} was made with {name} {found.get(name)!r}, not {wanted[name]!r}; use another --out,"
                    " or the settings it was made with"
                )


def summarise(items, out):
    """Write summary.json, summary.csv and contact_sheet.png from what is on disk; return the number not finished."""
    rows = [_row(item) for item in items]
    failed = sum(row["status"] != "finished" for row in rows)
    with whole_file(out / "summary.json") as path:
        path.write_text(to_json({"finished": len(rows) - failed, "not finished": failed, "items": rows}, indent=1))
    with whole_file(out / "summary.csv") as path, open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    if failed < len(rows):
        with whole_file(out / "contact_sheet.png") as path:
            _contact_sheet(items, rows).save(path)
    return failed


def _contact_sheet(items, rows):
    """Show each finished item's picture, a row of seeds a prompt where they fit into one."""
    tiles, captions = [], []
    for item, row in zip(items, rows, strict=True):
        if row["status"] == "finished" and len(tiles) < MOST_TILES:
            tiles.append(_tile(item.folder / "after.png"))
            prompt = shorten(item.prompt, 16, placeholder="..")  # what fits under a tile
            before, best = (written(row[name], ".3g") for name in ("before", "best"))
            captions.append(f"{prompt}, {item.seed}\n{before} -> {best}")
    return plots.contact_sheet(tiles, captions, min(len({item.seed for item in items}), 8), TILE)


def _row(item):
    row = {"item": item.folder.name, "prompt": item.prompt, "seed": item.seed}
    if not item.finished:
        error = item.error.read_text(encoding="utf-8", errors="replace") if item.error.is_file() else "not tried"
        return row | {"status": "failed", "stopped": (error.strip() or "unknown").splitlines()[-1]}
    record = item.record()
    first, best = record["rows"][0], record["best_row"]
    row |= {"status": "finished", "stopped": record["stopped"], "reward": record["reward"]}
    row |= {"before": first["score"][0], "best": best["score"][0]}
    row["iteration"] = record["rows"][record["best"][0]]["iteration"]
    row |= {name: best[name][0] for name in ("log_p", "log_p_initial")}
    row["warnings"] = " ".join(record.get("warnings", []))
    for name in best:
        if name.startswith("watch/"):
            row |= {f"{name}/before": first[name][0], f"{name}/best": best[name][0]}
    return row


def _name(line, prompt, seed):
    """Return a folder name that every file system takes, e.g. 0003_black-cat_0012."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40]
    return f"{line:04d}_{slug or 'prompt'}_{seed:04d}"


def _tile(path):
    """Return a small copy, so that a sheet of many pictures holds none of them whole."""
    with Image.open(path) as picture:
        picture.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
        return picture.convert("RGB")
