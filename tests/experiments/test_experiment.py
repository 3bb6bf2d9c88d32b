"""The contract of experiments, and the arithmetic of their verdicts."""

import math

import pytest
from comfyui_dno.experiments import experiment
from comfyui_dno.experiments.all_experiments import ALL
from comfyui_dno.experiments.experiment import FAILS, HOLDS, UNDECIDED, t_quantile, verdict

TABLE = {1: 12.706205, 2: 4.302653, 3: 3.182446, 4: 2.776445, 5: 2.570582, 7: 2.364624, 15: 2.131450, 31: 2.039513}
"""Degrees of freedom -> the 0.975 quantile of Student's distribution, as printed in its tables."""


@pytest.mark.parametrize("degrees, expected", TABLE.items())
def test_students_quantile_is_that_of_the_printed_tables(degrees, expected):
    assert t_quantile(degrees) == pytest.approx(expected, abs=1e-6)  # the tables' own rounding


def test_students_quantile_becomes_the_normal_ones():
    # t - z is (z^3 + z) / (4 n) to first order in 1 / n, 2.4e-4 at n = 10,000.
    assert t_quantile(10_000) == pytest.approx(1.959964 + (1.959964**3 + 1.959964) / 40_000, abs=1e-6)


def test_the_interval_is_the_mean_and_students_error_of_it():
    found = verdict([1.0, 2.0, 3.0, 6.0])
    deviation = math.sqrt((4 + 1 + 0 + 9) / 3)
    assert found.mean == 3.0 and found.size == pytest.approx(3 / deviation)
    assert found.high - found.mean == pytest.approx(TABLE[3] * deviation / 2, abs=1e-5)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


@pytest.mark.parametrize("effects, word", [
    ([0.9, 1.0, 1.1], HOLDS), ([-0.9, -1.0, -1.1], FAILS), ([-1.0, 1.0, 0.5], UNDECIDED), ([1.0, 1.0], HOLDS),
    ([0.0, 0.0], UNDECIDED), ([5.0], UNDECIDED), ([], UNDECIDED),
])  # fmt: skip
def test_a_claim_holds_where_the_interval_lies_above_nought(effects, word):
    assert verdict(effects).word == word


def test_every_experiment_is_named_as_its_module():
    assert all(ALL[name].run.__module__.rpartition(".")[2] == name for name in ALL)


def test_more_seeds_add_cases_and_change_none():
    for found in ALL.values():
        few, more = found.cases(1), found.cases(3)
        assert all(case in more for case in few) and len(more) > len(few)
        assert len({str(case) for case in more}) == len(more)


def test_every_claim_says_where_the_paper_has_it():
    for found in ALL.values():
        assert found.claims and found.question.endswith("?")
        for claim in found.claims:
            assert claim.text.split(":")[0] != claim.text and claim.effect


@pytest.mark.parametrize("name", ALL)
def test_claims_on_no_results_have_no_effects(name):
    """Which is what is left where each seed has lost a case."""
    assert [list(claim.values([])) for claim in ALL[name].claims] == [[] for _ in ALL[name].claims]


def test_the_examples_of_the_contract_run():
    import doctest

    assert doctest.testmod(experiment).failed == 0
