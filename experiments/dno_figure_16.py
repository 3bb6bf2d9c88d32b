"""Figure 16: what the length k, the number b of permutations, the weight gamma, and pairings do in the regulariser."""

from .. import core, rewards
from .drawing import band, panels
from .embedded import curves, prompts_of, search
from .experiment import Claim, Experiment

STEPS, ITERATIONS, LR = 8, 24, 0.03
USUAL = {"k": 2, "permutations": 100, "gamma": 1.0, "structured": False}
PANELS = {"k": (1, 2, 10, 100), "permutations": (1, 10, 100), "gamma": (0.1, 1.0, 10.0), "structured": (False, True)}
ENOUGH = 0.1
"""What two ends may differ by that count as alike, in consistency."""


def run(seed, name, value):
    """Search one noise with one setting of the regulariser."""
    (prompt,) = prompts_of("white", seed, 1)
    sample_map = core.load_embedded(prompt, steps=STEPS, keep_graphs=True)
    regularizer = core.ProbabilityRegularizer(**(USUAL | {name: value}))
    judge = rewards.Brightness(negative=True)
    history = search(sample_map, judge, seed, core.GradientAscent(LR), regularizer, ITERATIONS)
    return {key: of_pictures[0] for key, of_pictures in curves(history).items()}


def cases(seeds):
    """Return a case for each seed and setting, the usual one once."""
    settings = [(name, value) for name, values in PANELS.items() for value in values if value != USUAL[name]]
    return [
        {"seed": seed, "name": name, "value": value}
        for seed in range(seeds) for name, value in [("k", USUAL["k"]), *settings]
    ]  # fmt: skip


def of_setting(results, name, value):
    """Return seed -> result of one setting."""
    key = ("k", USUAL["k"]) if value == USUAL[name] else (name, value)
    cases = [(result["case"], result) for result in results]
    return {case["seed"]: result for case, result in cases if (case["name"], case["value"]) == key}


def difference(results, name, first, second, curve="consistency"):
    """Return where a curve ends at the first value of a setting, minus at the second; one a seed that has both."""
    ends = [of_setting(results, name, value) for value in (first, second)]
    return [ends[0][seed][curve][-1] - ends[1][seed][curve][-1] for seed in ends[0] if seed in ends[1]]


def draw(results):
    """Draw reward and consistency by iteration, a column a setting."""
    figure, axes = panels(2, len(PANELS))
    for (top, bottom), (name, values) in zip(axes.T, PANELS.items(), strict=True):
        for index, value in enumerate(values):
            chosen = of_setting(results, name, value).values()
            label = f"{'b' if name == 'permutations' else name} {value}"
            band(top, [found["reward"] for found in chosen], label, f"C{index}")
            band(bottom, [found["consistency"] for found in chosen], label, f"C{index}")
        top.set(title="reward", xlabel="iteration")
        bottom.set(title="consistency with the prompt", xlabel="iteration")
        top.legend(fontsize=8)
    return figure


EXPERIMENT = Experiment(
    name="dno_figure_16",
    title="Figure 16: the regulariser's settings",
    question="What do k, b and gamma do to reward and consistency?",
    setting=(
        f'"white <animal>" for blackness, embedded model, {STEPS} steps (paper: 50), cfg 3, eta 1, Adam at {LR} (paper:'
        f" 0.01), {ITERATIONS} iterations; k 2, b 100, gamma 1 but for what is varied; structured: the worst pairing of"
        " z with itself is in the term too [ours]."
    ),
    cases=cases,
    run=run,
    claims=(
        Claim(
            "Figure 16a: k = 1 underperforms k = 2.",
            "consistency at the end with k 2 minus with k 1",
            lambda results: difference(results, "k", 2, 1),
        ),
        Claim(
            "Figure 16a: k = 1 underperforms k = 2.",
            "reward at the end with k 2 minus with k 1",
            lambda results: difference(results, "k", 2, 1, "reward"),
        ),
        Claim(
            "Figure 16a: k = 1 underperforms k = 10.",
            "consistency at the end with k 10 minus with k 1",
            lambda results: difference(results, "k", 10, 1),
        ),
        Claim(
            "Figure 16a: k = 100 is a poor choice.",
            "consistency at the end with k 2 minus with k 100",
            lambda results: difference(results, "k", 2, 100),
        ),
        Claim(
            "Figure 16b: the number of permutations has a minor impact once it is large.",
            f"{ENOUGH} minus the difference of the consistencies at the end with b 10 and b 100",
            lambda results: [ENOUGH - abs(d) for d in difference(results, "permutations", 10, 100)],
        ),
        Claim(
            "Figure 16b: too few permutations, b = 1, underperform.",
            "consistency at the end with b 100 minus with b 1",
            lambda results: difference(results, "permutations", 100, 1),
        ),
        Claim(
            "Figure 16b: too few permutations, b = 1, underperform.",
            "reward at the end with b 100 minus with b 1",
            lambda results: difference(results, "permutations", 100, 1, "reward"),
        ),
        Claim(
            "Figure 16c: a larger gamma makes the search slower.",
            "reward at the end with gamma 0.1 minus with gamma 10",
            lambda results: difference(results, "gamma", 0.1, 10.0, "reward"),
        ),
        Claim(
            "Figure 16c: a larger gamma makes it safer.",
            "consistency at the end with gamma 10 minus with gamma 0.1",
            lambda results: difference(results, "gamma", 10.0, 0.1),
        ),
        Claim(
            "Figure 16, ours: pairings of z with itself in the term make it safer.",
            "consistency at the end with them minus without",
            lambda results: difference(results, "structured", True, False),
        ),
    ),
    draw=draw,
)
