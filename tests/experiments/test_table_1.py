"""Table 1's arithmetic on results made up for it, and one small search and tuning of each kind."""

from dataclasses import replace

import pytest
import torch
from comfyui_dno import core, rewards
from comfyui_dno.experiments import dno_table_1 as table
from comfyui_dno.experiments import preference_scorers


def a_search(way, reward, seed, start, gains):
    by_budget = {str(budget): start + gain for budget, gain in zip(table.BUDGETS, gains, strict=True)}
    case = {"way": way, "reward": reward, "seed": seed}
    measured = {"start": start, "by_budget": by_budget, "end": start + gains[-1], "seconds_spent": 30.0}
    return {"case": case, "kept": -0.1, "other": 0.5} | measured


def a_tuning(way, reward, gain, lost=(0.0, 0.0)):
    """Two noises a prompt; on other prompts each gains less by what it has `lost`."""
    seen, unseen = (
        [
            {"prompt": prompt, "start": start, "score": start + gain * (1 + place) - less, "kept": -0.2, "other": 1.0}
            for place, prompt in enumerate(prompts)
            for start, less in zip((0.0, 2.0), losses, strict=True)
        ]
        for prompts, losses in ((table.PROMPTS, (0.0, 0.0)), (table.UNSEEN, lost))
    )
    case = {"way": way, "reward": reward, "seed": 0}
    return {"case": case, "seen": seen, "unseen": unseen, "seconds_spent": 60.0}


def test_gains_are_in_units_of_plain_pictures_and_averaged_over_both_rewards():
    results = [a_tuning(way, reward, 1.0) for way in table.TUNINGS for reward in table.REWARDS]
    for reward, factor in zip(table.REWARDS, (1.0, 3.0), strict=True):
        results += [a_search("PRNO", reward, seed, 5.0, [factor * (seed + k) for k in range(4)]) for seed in (0, 1)]
    unit = torch.tensor([0.0, 2.0] * len(table.PROMPTS) * len(table.TUNINGS)).std().item()
    assert table.spread(results, "first") == pytest.approx(unit)
    assert table.gains(results, "PRNO", table.BUDGETS[1]) == pytest.approx({0: 2 / unit, 1: 4 / unit})
    assert table.gains(results, "PRNO", start=table.BUDGETS[1]) == pytest.approx({0: 4 / unit, 1: 4 / unit})
    # The prompts of seeds 0 and 1 were gained 1 and 2 by tuning, and the search gained (3 + 9) / 2 and (4 + 12) / 2.
    assert table.over_tuned(results, "ddpo") == pytest.approx([(6 - 1) / unit, (8 - 2) / unit])


@pytest.mark.parametrize(("tuned", "counts"), [
    (("first", "second"), [2, 2, 0, 2, 2, 0, 0, 2, 0, 0, 1, 2]), (("first",), [0] * 7 + [2, 0, 0, 0, 0]),
    ((), [0] * 12),
])  # fmt: skip
def test_a_report_is_made_where_cases_have_failed(tuned, counts):
    """Trust has lost another seed than PRNO, LGD with 100 samples all, and PRNO's seed 3 one reward."""
    results = [a_tuning("spin", reward, 1.0) for reward in tuned]
    results.append(a_search("PRNO", "second", 3, 5.0, range(4)))
    for way in ("PRNO", "Trust", "Tilt", "LGD, n = 10"):
        seeds = (1, 2) if way == "Trust" else (0, 1)
        results += [a_search(way, reward, seed, 5.0, range(4)) for reward in table.REWARDS for seed in seeds]
    assert [len(claim.values(results)) for claim in table.EXPERIMENT.claims] == counts
    assert len(table.EXPERIMENT.draw(results).axes) == 2
    assert len({len(row) for row in table.EXPERIMENT.table(results)}) == 1


def test_the_table_says_of_every_system_what_it_costs_and_gains():
    results = [a_tuning("alignprop", reward, 1.0, lost=(0.5, 1.5)) for reward in table.REWARDS]
    for way in ("PRNO", "Tilt"):
        results += [a_search(way, reward, seed, 5.0, [1, 2, 3, 4]) for reward in table.REWARDS for seed in (0, 1)]
    unit = torch.tensor([0.0, 2.0] * len(table.PROMPTS)).std().item()
    assert table.lost_on_others(results, "alignprop") == pytest.approx([0.5 / unit, 1.5 / unit])
    gain = [f"{value / unit:+.2f}" for value in (1, 2, 3, 4, 2.5, 1.5, 0.5, 1.0)]
    assert table.EXPERIMENT.table(results)[1:] == [
        ["plain sampling", "", "0", "0", "0", "0", "0", "0", "0", "0"],
        ["PRNO", "", *gain[:4], "", "", gain[6], "-0.10"],
        ["Tilt", "", "", "", "", "", f"{gain[3]}, 30 s", "", gain[6], "-0.10"],
        # On its four prompts it gains 1, 2, 3 and 4, on the others 1 less in the mean.
        ["alignprop", "60 s", "", "", "", "", gain[4], gain[5], gain[7], "-0.20"],
    ]


def test_more_seeds_add_searches_and_tune_nothing_anew():
    few, many = table.cases(1), table.cases(3)
    assert all(case in many for case in few)
    tunings = [case for case in many if case["way"] in table.TUNINGS]
    assert len(tunings) == len(table.TUNINGS) * len(table.REWARDS)
    assert len(many) == len(tunings) + 3 * len(table.REWARDS) * len(table.SEARCHES)
    assert len(table.cases(table.FEW + 2)) - len(table.cases(table.FEW + 1)) == 2 * (len(table.SEARCHES) - 1)


def test_every_way_of_searching_can_be_begun():
    assert all(isinstance(begin()[0], core.Solver) for begin in table.SEARCHES.values())


@pytest.mark.parametrize("way", table.ONE_RUN)
def test_one_guided_run_is_let_finish_and_counts_whole(way, monkeypatch):
    monkeypatch.setattr(table, "BUDGETS", (0,))
    monkeypatch.setattr(table, "STEPS", 4)
    monkeypatch.setitem(table.SEARCHES, "LGD, n = 100", lambda: (core.LGD(samples=2), None))
    found = table.searched(way, rewards.Brightness(), rewards.Contrast(), "black cat", 0)
    assert found["end"] >= found["start"] == found["by_budget"]["0"] and found["seconds_spent"] > 0
    results = [{"case": {"way": way, "reward": reward, "seed": 0}} | found for reward in table.REWARDS]
    results += [a_tuning("spin", reward, 1.0) for reward in table.REWARDS]
    expected = (found["end"] - found["start"]) / table.spread(results, "first")
    assert table.gains(results, way) == pytest.approx({0: expected})


def test_a_search_is_recorded_by_the_seconds_it_has_spent(monkeypatch):
    monkeypatch.setattr(table, "BUDGETS", (1, 3))
    judge, other = rewards.Brightness(), rewards.Contrast()
    found = table.searched("Trust", judge, other, "black cat", seed=0)
    seconds = [spent for spent, _ in found["curve"]]
    assert seconds == sorted(seconds) and seconds[-1] < 30
    assert found["start"] <= found["by_budget"]["1"] <= found["by_budget"]["3"]
    assert found["by_budget"]["3"] == max([found["start"]] + [s for spent, s in found["curve"] if spent <= 3])
    assert found["pictures"]["best"].dtype == torch.uint8 and found["pictures"]["best"].shape == (3, 64, 64)


def test_a_search_gains_with_its_time_and_more_than_loss_guided_diffusion(monkeypatch):
    """The main claims of the table's rows that search, on one picture and one scorer."""
    monkeypatch.setattr(table, "BUDGETS", (4, 12))
    judge, other = preference_scorers.trained(0)
    found = {way: table.searched(way, judge, other, "black cat", 0) for way in ("PRNO", "LGD, n = 10")}
    start, by_budget = found["PRNO"]["start"], found["PRNO"]["by_budget"]
    assert start <= by_budget["4"] < by_budget["12"]
    assert by_budget["12"] - start > found["LGD, n = 10"]["end"] - found["LGD, n = 10"]["start"]


def test_a_tuned_model_is_compared_with_the_one_it_was_on_the_same_noises(monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setitem(table.TUNINGS, "alignprop", replace(table.TUNINGS["alignprop"], updates=1, batch=2, lr=0.0))
    monkeypatch.setattr(table, "SAMPLES", 2)
    monkeypatch.setattr(table, "STEPS", 3)
    judge, other = rewards.Brightness(), rewards.Contrast()
    found = table.tuned("alignprop", judge, other)
    assert [row["prompt"] for row in found["unseen"]] == [p for p in table.UNSEEN for _ in range(2)]
    for row in found["seen"] + found["unseen"]:  # a learning rate of 0 changes nothing
        assert row["score"] == pytest.approx(row["start"], abs=1e-4) and row["kept"] == pytest.approx(0, abs=1e-4)
