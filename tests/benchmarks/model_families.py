"""What works for which model: python tests/benchmarks/model_families.py

Measures the tiny versions of all model families (`tests/support/families`) in the ComfyUI that the tests use
(`COMFYUI_PATH`, else the fetched one), goes on where an earlier run of that version ended, and writes docs/models.md
from the results of all versions.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
sys.path[:0] = [str(SUPPORT), str(Path(__file__).parent)]

import inside  # noqa: E402
from families import FAMILIES, NOT_TRIED, VERSION  # noqa: E402
from study import Runs  # noqa: E402

RESULTS = ROOT / "tests" / "benchmarks" / "results"
PAGE = ROOT / "docs" / "models.md"

LIMITS = {
    "KSampler": 2e-4, "ancestral": 2e-4, "along": 1e-2, "random": 3e-2, "by blocks": 1e-5, "candidates": 1e-4,
    "replay": 1e-5,
}  # fmt: skip
"""Above these a number is wrong. What was measured is a tenth of them, but for the families whose note says why."""

HEAD = """# Models

What was measured of each model family that ComfyUI knows. `python tests/benchmarks/model_families.py` wrote this page.
Each is a tiny model with random weights, made by ComfyUI's own class of that family and sampled in 3 steps, a batch of
two, in float32 on a CPU. So this tells whether the nodes do for a family what they say, not how much a search gains.

- **KSampler**: at 0 iterations and eta 0, how far the latent is from that of `euler`, in parts of its largest number.
- **ancestral**: likewise at eta 1 from `euler_ancestral`, which was given the same noises.
- **gradient**: its error against central differences, along the gradient / along a random direction.
- **by blocks**: how far the gradient of memory "low", made block by block, is from that of whole steps, in parts of its
  largest number / the number of blocks that the network goes back by.
- **rise**: what three iterations of Adam add to the brightness of the worse picture.
- **candidates**: how far a search that samples its candidates together is from one that samples one at a time.
- **replay**: how far the stock SamplerCustomAdvanced, given the found noise by DNO Replay Noise, is from the latent.

A number in bold is wrong: {limits}; and a rise that is none. A dash was not measured, for the
reason that the remark gives.
"""
COLUMNS = (
    "family", "class", "KSampler", "ancestral", "gradient", "by blocks", "rise", "candidates", "replay", "remark",
)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--again", nargs="+", metavar="NAME", default=[], help="measure these families anew; 'all', 'wrong'"
    )
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write docs/models.md")
    options = parser.parse_args()
    if not options.page_only:
        measure(options.again)
    PAGE.write_text(page(result_files()))


def measure(again):
    """Measure the families of the tests' ComfyUI that have no result yet, and those that are wanted `again`."""
    (version,) = inside_comfyui(VERSION)
    settings = {name: version[name] for name in ("comfyui", "torch")}
    runs = Runs(result_file(version["comfyui"]), settings)
    kept = [name for name in runs.done if name in version["families"] and name not in again and "all" not in again]
    runs.done = {name: runs.done[name] for name in kept if right(runs.done[name]) or "wrong" not in again}
    while wanted := [name for name in version["families"] if name not in runs.done]:
        for row in inside_comfyui(*wanted):
            runs.once(row["family"], lambda row=row: row)
        if wanted[0] not in runs.done:  # the process died of the family that came first
            runs.once(wanted[0], lambda: {"failed": {"twin": "ComfyUI's process died of it"}})
    runs.write(classes=version["classes"])


def result_file(version):
    return RESULTS / f"model_families_{version}.json"


def result_files():
    """Return the results of all versions, the newest first."""
    return sorted(RESULTS.glob("model_families_*.json"), reverse=True)


def results_of(version):
    """Return the rows of a ComfyUI version by name, as they were measured."""
    return json.loads(result_file(version).read_text())["runs"]


def inside_comfyui(*names):
    """Yield what a ComfyUI process tells of these families as it is told; of itself for the name `VERSION`."""
    return inside.inside_comfyui("families", *names)


def page(results):
    """Return docs/models.md from the result files of all versions."""
    limits = ", ".join(f"{name} above {limit:.0e}" for name, limit in LIMITS.items())
    parts = [HEAD.format(limits=limits)]
    for path in results:
        found = json.loads(path.read_text())
        settings, rows = found["settings"], found["runs"]
        fully = sum(right(row) for row in rows.values())
        parts.append(
            f"## ComfyUI {settings['comfyui']}\n\n{len(rows)} families, {fully} of them right in everything (PyTorch"
            f" {settings['torch']}; [result](../{path.relative_to(ROOT).as_posix()})).\n"
        )
        order = [family for family in FAMILIES if family.name in rows]
        others = [f"- {each.name}: {why_not(each, rows[each.name])}" for each in order if not right(rows[each.name])]
        parts.append("Every family of the table works, but for these:\n\n" + "\n".join(others) + "\n")
        table = [COLUMNS, ["---"] * len(COLUMNS), *(cells(family, rows[family.name]) for family in order)]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in table) + "\n")
        left = [f"- `{model}` {NOT_TRIED[model]}." for model in found["classes"] if model in NOT_TRIED]
        parts.append("Not tried:\n\n" + "\n".join(left) + "\n")
    return "\n".join(parts)


def numbers(row):
    """Return a row's numbers by name, those of gradients beside the others, without what could not be measured."""
    flat = {name: row[name] for name in ("KSampler", "ancestral", "candidates", "replay") if name in row}
    if "by blocks" in row:
        flat["by blocks"] = row["by blocks"]["off"]
    return {**flat, **row.get("gradient", {})}


def is_wrong(name, value):
    return not (value > 0 if name == "rise" else value <= LIMITS[name])


def right(row):
    """Whether everything of a row was measured and nothing is wrong."""
    found = numbers(row)
    return set(found) == {*LIMITS, "rise"} and not any(is_wrong(*each) for each in found.items())


def why_not(family, row):
    """Return what is not right of a family, in words."""
    wrong = [name for name, value in numbers(row).items() if is_wrong(name, value)]
    return "; ".join(filter(None, [remark(family, row), wrong and f"too far off: {', '.join(wrong)}"])) or "see below"


def cells(family, row):
    """Return a family's line of the table."""
    found = {name: cell(name, value) for name, value in numbers(row).items()}
    slopes = f"{found['along']} / {found['random']}" if "along" in found else "-"
    blocks = f"{found['by blocks']} / {row['by blocks']['blocks']}" if "by blocks" in found else "-"
    middle = [found.get(name, "-") for name in ("KSampler", "ancestral")]
    rest = [found.get(name, "-") for name in ("rise", "candidates", "replay")]
    return [family.name, f"`{family.model}`", *middle, slopes, blocks, *rest, remark(family, row)]


def cell(name, value):
    text = f"{value:.3f}" if name == "rise" else f"{value:.0e}".replace("e-0", "e-")
    return f"**{text}**" if is_wrong(name, value) else text


def remark(family, row):
    """Return the family's note, why measures failed, each reason once, and which blocks went back whole."""
    reasons = {}
    for name, reason in row["failed"].items():
        reasons.setdefault(reason, []).append(name)
    told = [f"{', '.join(names)}: {reason.partition(': ')[2] or reason}" for reason, names in reasons.items()]
    return "; ".join(filter(None, [family.note, *told, of_blocks(row.get("by blocks"))])).replace("|", "/")


def of_blocks(found):
    """Return what of a network could not go back block by block, in words; None where all did, or none was asked."""
    if found and found["blocks"] == 0:
        return "its blocks are not called by their forward, so that memory low takes as much as step"
    return found and found["left whole"] and f"{', '.join(found['left whole'])} went back whole"


if __name__ == "__main__":
    main()
