"""What the studies of this folder share: runs that survive an interruption, gains at equal work, bands over seeds.

A run is a dict of JSON types. Its curve is "score", one number an evaluation, and "seconds", the work that had been
spent when the evaluated noise was there: 0 for the start.
"""

import itertools
import json
import shlex
import statistics
import sys
import time

import numpy as np
import torch


class Runs:
    """The finished runs of a study by name, in its result file: written as each is done, never run twice.

    Args:
        path: JSON file; one that holds runs of the same settings is continued.
        settings: all that the runs depend on, JSON types.

    Raises:
        ValueError: the file holds runs of other settings.
    """

    def __init__(self, path, settings):
        self.path, self.settings, self.done = path, settings, {}
        if path.exists():
            found = json.loads(path.read_text())
            if found["settings"] != settings:
                raise ValueError(f"{path} holds runs of {found['settings']}; expected {settings}. Choose another --out")
            self.done = found["runs"]

    def once(self, name, run, *arguments):
        """Return the run of that name: what the file holds, or else run(*arguments), which is written down at once."""
        if name not in self.done:
            started = time.perf_counter()
            self.done[name] = run(*arguments)
            self.write()
            sys.stderr.write(f"{name}: {time.perf_counter() - started:.0f} s, {len(self.done)} runs done\n")
        return self.done[name]

    def write(self, **more):
        """Write the settings, what else there is to say, and the runs, one a line."""
        head = json.dumps({**more, "settings": self.settings}, indent=1).removesuffix("\n}")
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(run)}" for name, run in self.done.items())
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(f'{head},\n "runs": {{\n{lines}\n }}\n}}\n')
        unfinished.replace(self.path)

    def finish(self, script, summary):
        """Write the file with its summary and the command, which names it by where results belong, and print that."""
        kept = {str(self.path): f"tests/benchmarks/results/{self.path.name}"}
        command = shlex.join(["python", f"tests/benchmarks/{script}", *(kept.get(word, word) for word in sys.argv[1:])])
        self.write(command=command, threads=torch.get_num_threads(), torch=torch.__version__, summary=summary)
        sys.stdout.write(json.dumps(summary, indent=1) + "\n")


class Recorded:
    """A reward that keeps every score it gave, in order: what was evaluated is what this has seen."""

    def __init__(self, reward):
        self.reward, self.differentiable, self.seen = reward, getattr(reward, "differentiable", True), []

    def __call__(self, images, prompts=None):
        scores = self.reward(images, prompts)
        self.seen += scores.tolist()
        return scores


def announce(sample_map, samplings):
    """Say on stderr how long a study of that many sampling runs of the map's batch takes, from two of them."""
    noise = sample_map.randn(0)
    seconds = []
    for _ in range(2):  # the first one warms up
        started = time.perf_counter()
        sample_map.sample(noise)
        seconds.append(time.perf_counter() - started)
    sys.stderr.write(f"about {min(seconds) * samplings / 60:.0f} min in all, if the machine stays as it is now\n")


def curve(history, item=0, key="score"):
    """Return the curve of one picture of a history."""
    spent = [0.0] + [row["seconds"] for row in history.rows[:-1]]
    return {"score": [round(value, 4) for value in history.column(key, item)], "seconds": spent}


def best_so_far(values):
    """Return the running maximum."""
    return list(itertools.accumulate(values, max))


def gain(run, seconds=None):
    """Return how far the best so far is above the start: at the end, or interpolated after so many seconds of work."""
    best = best_so_far(run["score"])
    reached = best[-1] if seconds is None else float(np.interp(seconds, run["seconds"], best))
    return reached - best[0]


def paired(first, second):
    """Compare two lists of runs seed by seed: after equally many iterations, and when the sooner one's work ends."""
    pairs = list(zip(first, second, strict=True))
    ends = [min(a["seconds"][-1], b["seconds"][-1]) for a, b in pairs]
    by_second = [gain(a, end) - gain(b, end) for (a, b), end in zip(pairs, ends, strict=True)]
    return {
        "after equal iterations": wins([gain(a) - gain(b) for a, b in pairs]),
        "after equal seconds": {"seconds": mean_sd(ends)} | wins(by_second),
    }


def wins(differences):
    """Return mean and standard deviation of paired differences, and how many are above 0."""
    return {"difference": mean_sd(differences), "wins": sum(d > 0 for d in differences), "of": len(differences)}


def mean_sd(values):
    """Return [mean, standard deviation], rounded."""
    values = list(values)
    return [round(statistics.mean(values), 4), round(statistics.stdev(values), 4)]


def draw_band(axes, curves, label, color):
    """Draw mean and standard deviation of curves [(x, y), ..] as far as all of them reach."""
    grid = np.linspace(0, min(x[-1] for x, _ in curves), 101)
    values = np.stack([np.interp(grid, x, y) for x, y in curves])
    mean, deviation = values.mean(axis=0), values.std(axis=0, ddof=1)
    axes.plot(grid, mean, color=color, label=label)
    axes.fill_between(grid, mean - deviation, mean + deviation, color=color, alpha=0.15, linewidth=0)


def plot_climbs(table, path):
    """Draw the best so far by iteration and by second, one row of panels a reward.

    Args:
        table: reward -> arm -> list of runs.
        path: picture file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2 * len(table)), dpi=100, layout="constrained")
    rows = figure.subplots(len(table), 2, squeeze=False, sharey="row")
    for (reward, arms), (by_iteration, by_second) in zip(table.items(), rows, strict=True):
        for number, (arm, runs) in enumerate(arms.items()):
            best = [best_so_far(run["score"]) for run in runs]
            draw_band(by_iteration, [(range(len(values)), values) for values in best], arm, f"C{number}")
            times = [run["seconds"] for run in runs]
            draw_band(by_second, list(zip(times, best, strict=True)), arm, f"C{number}")
        by_iteration.set(xlabel="iteration", ylabel=f"{reward}, best so far")
        by_second.set(xlabel="seconds of work")
        by_iteration.legend(fontsize=8)
        for axes in (by_iteration, by_second):
            axes.grid(alpha=0.3)
    figure.savefig(path)
