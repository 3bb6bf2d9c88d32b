"""What works around the sampler: python tests/benchmarks/sampler_uses.py

Measures the uses of KSampler and of what surrounds it (`tests/support/uses`) in the ComfyUI that the tests use
(`COMFYUI_PATH`, else the fetched one), goes on where an earlier run of that version ended, and writes docs/uses.md
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
from study import Runs  # noqa: E402
from uses.verdicts import verdicts  # noqa: E402

RESULTS = ROOT / "tests" / "benchmarks" / "results"
PAGE = ROOT / "docs" / "uses.md"

HEAD = """# Uses

What was measured of what users do around KSampler: `python tests/benchmarks/sampler_uses.py` wrote this page. Each use
was made by ComfyUI's own nodes on a tiny model with random weights, sampled in 3 steps, most as a batch of two, on a
CPU. So this tells whether the DNO Sampler does with a use what it says, not how much a search gains.

- **0 iterations**: the latent is that of KSampler's `euler` at eta 0, and DNO Replay Noise gives it again at eta 1.
- **gradient**: agrees with differences of the reward; three iterations of Adam raise it; the found noise replays.
- **candidates**: a search with three candidates in one call finds what it finds with one a call, and the found noise
  replays.

"right" is all of that: latents to 1e-5 of their largest value, gradients to 0.5 % along themselves (in half precision
as far as it goes). "refused" means one sentence before anything was sampled; the model may have been asked.
"""
COLUMNS = ("use", "0 iterations", "gradient", "candidates", "remark")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--again", nargs="+", metavar="NAME", default=[], help="measure these uses anew; 'all'")
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write docs/uses.md")
    options = parser.parse_args()
    if not options.page_only:
        measure(options.again)
    PAGE.write_text(page(sorted(RESULTS.glob("sampler_uses_*.json"), reverse=True)))


def measure(again):
    """Measure the uses that have no result yet in the tests' ComfyUI, and those that are wanted `again`."""
    (version,) = inside_comfyui()
    settings = {name: version[name] for name in ("comfyui", "torch")}
    runs = Runs(RESULTS / f"sampler_uses_{version['comfyui']}.json", settings)
    names = version["uses"]
    kept = [name for name in names if name in runs.done and name not in again and "all" not in again]
    runs.done = {name: runs.done[name] for name in kept}
    while wanted := [name for name in names if name not in runs.done]:
        for row in inside_comfyui(*wanted):
            runs.once(row["use"], lambda row=row: row)
        if wanted[0] not in runs.done:  # the process died of the use that came first
            runs.once(wanted[0], lambda: {"missing": "ComfyUI's process died of it"})
    runs.done = {name: runs.done[name] for name in names}
    runs.write()


def inside_comfyui(*names):
    """Yield what a ComfyUI process tells of these uses as it is told; without names, what it is."""
    return inside.inside_comfyui("uses", *names)


def page(results):
    """Return docs/uses.md from the result files of all versions."""
    parts = [HEAD]
    for path in results:
        found = json.loads(path.read_text())
        rows = {name: row for name, row in found["runs"].items() if "missing" not in row}
        judged = {name: verdicts(row) for name, row in rows.items()}
        good = sum(all(each.is_good for each in judgement.values()) for judgement in judged.values())
        parts.append(
            f"## ComfyUI {found['settings']['comfyui']}\n\n{len(rows)} uses, {good} of them right or refused (PyTorch"
            f" {found['settings']['torch']}; [result](../{path.relative_to(ROOT).as_posix()})).\n"
        )
        for group in dict.fromkeys(row["group"] for row in rows.values()):
            lines = [cells(name, judged[name]) for name in judged if rows[name]["group"] == group]
            table = [(group, *COLUMNS[1:]), ["---"] * len(COLUMNS), *lines]
            parts.append("\n".join(f"| {' | '.join(row)} |" for row in table) + "\n")
        left = [name for name, row in found["runs"].items() if "missing" in row]
        if left:
            parts.append(f"Not in this version: {', '.join(left)}.\n")
    return "\n".join(parts)


def cells(name, judgement):
    """Return a use's line of the table; what is not good is bold, and each reason is told once."""
    words = [each.word if each.is_good else f"**{each.word}**" for each in judgement.values()]
    reasons = {each.why: None for each in judgement.values() if each.why}
    return [name, *words, "; ".join(reasons).replace("|", "/").replace("*", "\\*")]


if __name__ == "__main__":
    main()
