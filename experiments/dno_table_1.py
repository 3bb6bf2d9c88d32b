"""Table 1: what a search of the noise gains beside systems that tune the model, and what either costs.

A case is one search of one picture, recorded by the seconds that it has spent; or one tuning, whose model then samples
the prompts that it was tuned on, and others, from new seeds. Both preference scorers are searched in turn, and the
other one is watched: what one of them likes for its own errors, the other does not.
"""

import itertools
import statistics
import time
from collections import Counter

from .. import core, rewards
from .drawing import panels
from .experiment import Claim, Experiment
from .noise_searches import small
from .preference_scorers import trained
from .tuned_models import CFG, STEPS, TUNINGS, tune

PROMPTS = ("black cat", "red dog", "blue owl", "green duck")
"""What is searched, and what the systems are tuned on."""
UNSEEN = ("white cat", "yellow dog", "red owl", "blue duck")
REWARDS = ("first", "second")
"""The scorers, by which one is searched; of seed 0."""
BUDGETS = (2, 4, 8, 16)
"""Seconds of one core for one picture. A plain one takes about 0.5."""
SAMPLES = 4
"""Pictures of each prompt that a tuned model is judged by."""
PATIENCE = 10_000
"""Iterations that no search comes to in its time."""

SEARCHES = {
    "best of N": lambda: (core.Search.best_of_n(4), None),
    "LGD, n = 10": lambda: (core.LGD(samples=10), None),
    "LGD, n = 100": lambda: (core.LGD(samples=100), None),
    "ReNO": lambda: (core.GradientAscent.reno(), core.NormRegularizer()),
    "ZeNO": lambda: (core.ZeNO(candidates=8, beta=0.1), None),
    "DNO": lambda: (core.GradientAscent(0.03), None),
    "PRNO": lambda: (core.GradientAscent(0.03), core.ProbabilityRegularizer(gamma=0.1)),
    "Tilt": lambda: (core.Tilt(0.3), None),
    "Fast": lambda: (core.Fast(calls=40, coarse_steps=4), None),
    "Trust": lambda: (core.TrustAscent(), None),
}
"""Rows of the table that search: a solver and a regulariser. The last three are ours."""
ONE_RUN = "LGD, n = 10", "LGD, n = 100", "Tilt"
"""Those that are one guided run, and over when it is, however long it takes."""
LONG, FEW = ("LGD, n = 100",), 4
"""Those that take minutes, and how many seeds they are given."""


def cases(seeds):
    """Return the tunings of both rewards, which are made once, and the searches of every way, reward and seed."""
    tunings = [{"way": way, "reward": reward, "seed": 0} for way in TUNINGS for reward in REWARDS]
    searches = itertools.product(range(seeds), REWARDS, SEARCHES)
    return tunings + [
        {"way": way, "reward": reward, "seed": seed} for seed, reward, way in searches if seed < FEW or way not in LONG
    ]


def run(way, reward, seed):
    """Return what `tuned` or `searched` does."""
    judges = dict(zip(REWARDS, trained(0), strict=True))
    other = judges[REWARDS[1 - REWARDS.index(reward)]]
    if way in TUNINGS:
        return tuned(way, judges[reward], other)
    return searched(way, judges[reward], other, PROMPTS[seed % len(PROMPTS)], seed)


def searched(way, judge, other, prompt, seed):
    """Search one picture for as long as the largest budget, or until its one run is over.

    Returns:
        curve: (seconds, best score so far) of each evaluation; by_budget: the best score by each budget; end: that of
        the whole search; start: that of the picture without a search; of the last best, kept: its consistency less the
        start's, and other: what the other scorer gives it, less the start's; seconds_spent.
    """
    sample_map = core.load_embedded(prompt, steps=STEPS, cfg=CFG, memory="fast", eta=0.0 if way == "ReNO" else 1.0)
    sample_map.part = "initial" if way == "ReNO" else "all"
    solver, regularizer = SEARCHES[way]()
    curve, started = [], time.process_time()

    def note(evaluation, best):
        curve.append((time.process_time() - started, best.scores.item()))

    def late():
        return way not in ONE_RUN and time.process_time() - started > BUDGETS[-1]

    result = core.optimize(
        sample_map, judge, sample_map.randn(seed), solver, regularizer, 1 if way in ONE_RUN else PATIENCE,
        watch=(rewards.Consistency(), other), callback=note, stop=late,
    )  # fmt: skip
    first, best = result.whole().history.rows[0], result.history.best_row
    rises = {key: best[f"watch/{name}"][0] - first[f"watch/{name}"][0]
             for key, name in (("kept", "consistency"), ("other", other.name))}  # fmt: skip
    start = first["score"][0]
    in_time = {budget: [score for seconds, score in curve if seconds <= budget] for budget in BUDGETS}
    return {
        "start": start, "by_budget": {str(budget): max([start, *found]) for budget, found in in_time.items()},
        "end": best["score"][0], "curve": curve, "seconds_spent": curve[-1][0],
        "pictures": {"best": small(result.images)}, **rises,
    }  # fmt: skip


def tuned(way, judge, other):
    """Tune the model and judge it by new seeds.

    Returns:
        seconds_spent on tuning; and of the prompts that it was tuned on, "seen", and of others, "unseen", for each
        picture prompt, start (by the model as it was), score, kept and other, as `searched` has them.
    """
    unet, seconds = tune(TUNINGS[way], judge, PROMPTS)
    found = {name: _judged(unet, prompts, judge, other) for name, prompts in (("seen", PROMPTS), ("unseen", UNSEEN))}
    pictures = {name: rows[0].pop("picture") for name, rows in found.items()}
    return {"seconds_spent": seconds, "pictures": pictures} | found


def _judged(unet, prompts, judge, other):
    rows, consistency = [], rewards.Consistency()
    for prompt in prompts:
        batch = [prompt] * SAMPLES
        maps = [core.load_embedded(batch, steps=STEPS, cfg=CFG, unet=each) for each in (None, unet)]
        before, after = (sample_map.sample(sample_map.randn(100)) for sample_map in maps)
        kept = consistency(after, batch) - consistency(before, batch)
        columns = {"start": judge(before), "score": judge(after), "kept": kept, "other": other(after) - other(before)}
        for place in range(SAMPLES):
            rows.append({"prompt": prompt} | {name: values[place].item() for name, values in columns.items()})
        rows[0].setdefault("picture", small(after))
    return rows


def of(results, way, reward):
    """Return the results of a way and a reward, seed -> result; of a case that has failed there is none."""
    found = {}
    for result in results:
        if (result["case"]["way"], result["case"]["reward"]) == (way, reward):
            found[result["case"]["seed"]] = result
    return found


def gains(results, way, budget=BUDGETS[-1], start=None):
    """Return a search's gain by a budget over its start, or over its score by the budget `start`: seed -> gain.

    Of one guided run it is the gain of the whole run. Each is the mean over both rewards, in units of the standard
    deviation of plain pictures' scores.
    """
    found = {}
    for reward in REWARDS:
        unit = spread(results, reward)
        for seed, row in of(results, way, reward).items() if unit else ():
            begin = row["start"] if start is None else row["by_budget"][str(start)]
            end = row["end"] if way in ONE_RUN else row["by_budget"][str(budget)]
            found.setdefault(seed, []).append((end - begin) / unit)
    return {seed: statistics.fmean(both) for seed, both in sorted(found.items()) if len(both) == len(REWARDS)}


def tuned_gains(results, way, prompts="seen"):
    """Return the mean gain of a tuned model over the model as it was, in the same units, prompt -> gain."""
    found = {}
    for reward in REWARDS:
        for tuning in of(results, way, reward).values():
            for row in tuning[prompts]:
                gain = (row["score"] - row["start"]) / spread(results, reward)
                found.setdefault(row["prompt"], []).append(gain)
    return {prompt: statistics.fmean(values) for prompt, values in found.items()}


def spread(results, reward):
    """Return the standard deviation of plain pictures' scores: those that tuned models are compared with.

    It is None where no tuning is there.
    """
    starts = [row["start"] for way in TUNINGS for found in of(results, way, reward).values() for row in found["seen"]]
    return statistics.stdev(starts) if starts else None


def lost_on_others(results, way):
    """Return a tuned model's gain on the prompts that it was tuned on, minus that on others: one for each noise."""
    found = {"seen": {}, "unseen": {}}
    for prompts, by_noise in found.items():
        for reward in REWARDS:
            for tuning in of(results, way, reward).values():
                noises = Counter()  # every prompt was sampled from the same ones
                for row in tuning[prompts]:
                    gain = (row["score"] - row["start"]) / spread(results, reward)
                    by_noise.setdefault(noises[row["prompt"]], []).append(gain)
                    noises[row["prompt"]] += 1
    return [statistics.fmean(gain) - statistics.fmean(found["unseen"][noise]) for noise, gain in found["seen"].items()]


def over(one, other):
    """Return the differences of two dicts of gains, one for each seed that both have."""
    return [one[seed] - other[seed] for seed in one if seed in other]


def over_tuned(results, way):
    """Return PRNO's gain by the largest budget, less that of a tuned model on the same prompt: one a seed."""
    by_prompt, ours = tuned_gains(results, way), gains(results, "PRNO")
    return over(ours, {seed: by_prompt[p] for seed in ours if (p := PROMPTS[seed % len(PROMPTS)]) in by_prompt})


def table(results):
    """Return the table's rows: means over rewards and seeds.

    Gains are of the best so far, in standard deviations of plain pictures' scores; by the other scorer, and in
    consistency with the prompt, the last best is compared with the start.
    """
    budgets = [f"gain by {budget} s" for budget in BUDGETS]
    beside = ["on other prompts", "by the other scorer at the end", "consistency, end minus start"]
    rows = [["system", "tuned for", *budgets, "gain of one run, or of the tuned model", *beside]]
    rows.append(["plain sampling", "", *["0"] * (len(rows[0]) - 2)])
    for way in SEARCHES:
        found = [(reward, row) for reward in REWARDS for row in of(results, way, reward).values()]
        if gained := gains(results, way):
            seconds = statistics.fmean(row["seconds_spent"] for _, row in found)
            whole = f"{_mean(gained.values())}, {seconds:.0f} s" if way in ONE_RUN else ""
            by_budget = [gains(results, way, budget).values() for budget in BUDGETS if way not in ONE_RUN]
            cells = [_mean(values) for values in by_budget] or [""] * len(BUDGETS)
            rows.append([way, "", *cells, whole, "", *_beside(results, found)])
    for way in TUNINGS:
        tunings = [(reward, tuning) for reward in REWARDS for tuning in of(results, way, reward).values()]
        if tunings:
            seconds = statistics.fmean(tuning["seconds_spent"] for _, tuning in tunings)
            seen, unseen = (_mean(tuned_gains(results, way, prompts).values()) for prompts in ("seen", "unseen"))
            beside = _beside(results, [(reward, row) for reward, tuning in tunings for row in tuning["seen"]])
            rows.append([way, f"{seconds:.0f} s", *[""] * len(BUDGETS), seen, unseen, *beside])
    return rows


def _beside(results, found):
    """Return the mean gain by the other scorer, and that of the consistency, of pairs of a reward and a row."""
    units = {reward: spread(results, REWARDS[1 - place]) for place, reward in enumerate(REWARDS)}
    other = [row["other"] / units[reward] for reward, row in found if units[reward]]
    return [_mean(other), _mean(row["kept"] for _, row in found)]


def _mean(values):
    values = list(values)
    return f"{statistics.fmean(values):+.2f}" if values else ""


def draw(results):
    """Draw the gain of every search by the seconds spent, and that of every tuned model beside it."""
    figure, (axes,) = panels(1, 2, 6.0, 4.6)
    for place, reward in zip(axes, REWARDS, strict=True):
        unit = spread(results, reward)
        for number, way in enumerate(SEARCHES):
            if unit and (found := of(results, way, reward).values()):
                spent, rises = BUDGETS, [[row["by_budget"][str(b)] - row["start"] for row in found] for b in BUDGETS]
                if way in ONE_RUN:
                    spent = [statistics.fmean(row["seconds_spent"] for row in found)]
                    rises = [[row["end"] - row["start"] for row in found]]
                means = [statistics.fmean(rise) / unit for rise in rises]
                place.plot(spent, means, "D-" if way in ONE_RUN else "o-", color=f"C{number}", markersize=4, label=way)
        for number, way in enumerate(TUNINGS):
            for found in of(results, way, reward).values():
                mean = statistics.fmean((row["score"] - row["start"]) / unit for row in found["seen"])
                label = f"{way}, tuned for {found['seconds_spent']:.0f} s"
                place.axhline(mean, linestyle=(":", "-.", "--")[number], color="black", linewidth=1, label=label)
        place.set_xscale("log", base=2)
        place.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
        place.set(xlabel="seconds of one core for a picture", ylabel="gain, standard deviations of plain pictures")
        place.set_title(f"searched: the {reward} preference scorer", fontsize=11)
        place.grid(alpha=0.3)
    if axes[1].lines:
        axes[1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


EXPERIMENT = Experiment(
    name="dno_table_1",
    title="Table 1: searching beside tuning",
    question="Does a search of the noise reach what tuning the model for the reward reaches, and for what price?",
    setting=(
        f"The embedded model, {STEPS} steps, cfg {CFG:g}, eta 1 (ReNO: eta 0). Two preference scorers trained on its"
        f" pictures. Searches: {', '.join(SEARCHES)}, one picture each, by {', '.join(map(str, BUDGETS))} s of one"
        f" core, and {', '.join(ONE_RUN)} for as long as their one run takes; Adam at 0.03, PRNO with gamma 0.1. Tuned"
        " by LoRA of rank 4 on four prompts: "
        + ", ".join(f"{each.name} {each.updates} updates of {each.batch} at {each.lr:g}" for each in TUNINGS.values())
        + ". The paper has Stable Diffusion 1.5, 50 steps, Adam at 0.01, one to ten minutes, and tuning of 12 to 56"
        " hours, whose numbers are those of the systems' own papers."
    ),
    cases=cases,
    run=run,
    claims=(
        Claim(
            "Table 1: PRNO is above plain sampling in its smallest time.",
            f"gain of PRNO in {BUDGETS[0]} s, standard deviations of plain pictures",
            lambda results: list(gains(results, "PRNO", BUDGETS[0]).values()),
        ),
        Claim(
            "Table 1: the longer the search, the higher the reward.",
            f"gain of PRNO from {BUDGETS[1]} to {BUDGETS[3]} s, standard deviations of plain pictures",
            lambda results: list(gains(results, "PRNO", start=BUDGETS[1]).values()),
        ),
        Claim(
            "Table 1 and Section 5.2: LGD performs badly with such rewards, with 100 samples, too.",
            f"gain of PRNO in {BUDGETS[-1]} s minus that of LGD, n = 100, standard deviations of plain pictures; the"
            f" first {FEW} seeds",
            lambda results: over(gains(results, "PRNO"), gains(results, "LGD, n = 100")),
        ),
        Claim(
            "Table 1: PRNO in its smallest time is above LGD already.",
            f"gain of PRNO in {BUDGETS[0]} s minus that of LGD, n = 10, in its longer run, standard deviations of plain"
            " pictures",
            lambda results: over(gains(results, "PRNO", BUDGETS[0]), gains(results, "LGD, n = 10")),
        ),
        *(
            Claim(
                f"Table 1: PRNO in its longest time is above {name}, without any tuning.",
                f"gain of PRNO in {BUDGETS[-1]} s minus that of {name} on the same prompt, standard deviations of plain"
                " pictures",
                lambda results, way=way: over_tuned(results, way),
            )
            for way, name in (("spin", "SPIN"), ("ddpo", "DDPO"), ("alignprop", "AlignProp"))
        ),
        *(
            Claim(
                f"Section 1.2: {name} generalises less well to prompts that it was not tuned on.",
                f"gain of {name} on its prompts minus that on others, standard deviations of plain pictures; of one"
                f" tuning, {SAMPLES} noises",
                lambda results, way=way: lost_on_others(results, way),
            )
            for way, name in (("spin", "SPIN"), ("ddpo", "DDPO"), ("alignprop", "AlignProp"))
        ),
        Claim(
            "Ours: Trust gains more than PRNO by Adam in the same time.",
            f"gain of Trust minus that of PRNO in {BUDGETS[-1]} s, standard deviations of plain pictures",
            lambda results: over(gains(results, "Trust"), gains(results, "PRNO")),
        ),
        Claim(
            "Ours: Tilt, one guided run, gains more than LGD, the paper's one guided run.",
            "gain of Tilt minus that of LGD, n = 10, standard deviations of plain pictures",
            lambda results: over(gains(results, "Tilt"), gains(results, "LGD, n = 10")),
        ),
    ),
    draw=draw,
    table=table,
    whole_seeds=False,  # the tunings are of seed 0, and compared with the searches of all
    needs={"peft": "peft"},
)
