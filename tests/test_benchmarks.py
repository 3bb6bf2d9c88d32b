"""The benchmark commands: their summaries on made-up runs with known answers, and their searches at a small size."""

import json
import math
from pathlib import Path

import belief
import black_box
import calls
import gradient_free
import in_place
import model_families
import numpy as np
import pytest
import sde_ode
import study
import terrain
import torch
import zeno
from comfyui_dno import core
from comfyui_dno.experiments import ring, ring_models


def run(*score, each=1.0):
    """A run whose iterations take `each` seconds."""
    return {"score": list(score), "seconds": [each * i for i in range(len(score))], "last": {"norm": 1.0}, "slope": 2.0}


def test_a_finished_run_is_not_run_again(tmp_path, capsys):
    path, calls = tmp_path / "study.json", []
    for _ in range(2):
        runs = study.Runs(path, {"lr": 0.1})
        assert runs.once("a", lambda: calls.append("a") or {"score": [1.5]}) == {"score": [1.5]}
    assert calls == ["a"]
    runs.finish("study.py", {"gain": 2})
    record = json.loads(path.read_text())
    assert record["runs"] == {"a": {"score": [1.5]}} and record["summary"] == {"gain": 2}
    assert json.loads(capsys.readouterr().out) == {"gain": 2}
    assert study.Runs(path, {"lr": 0.1}).done == record["runs"]


def test_a_result_tells_the_command_to_type_and_no_folder_of_whoever_ran_it(tmp_path, monkeypatch, capsys):
    path = tmp_path / "study.json"
    monkeypatch.setattr(study.sys, "argv", ["study.py", "--arms", "Hybrid-2, ou", "--out", str(path)])
    study.Runs(path, {}).finish("study.py", {})
    expected = "python tests/benchmarks/study.py --arms 'Hybrid-2, ou' --out tests/benchmarks/results/study.json"
    assert json.loads(path.read_text())["command"] == expected
    for result in (Path(study.__file__).parent / "results").glob("*.json"):
        command = json.loads(result.read_text()).get("command", "")
        assert command.endswith(f"--out tests/benchmarks/results/{result.name}") or not command, command


def test_what_was_done_before_an_interruption_is_kept(tmp_path):
    runs = study.Runs(tmp_path / "study.json", {})
    runs.once("a", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        runs.once("b", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert study.Runs(tmp_path / "study.json", {}).done == {"a": 1}


def test_runs_of_other_settings_are_not_mixed_in(tmp_path):
    study.Runs(tmp_path / "study.json", {"lr": 0.1}).once("a", lambda: 1)
    with pytest.raises(ValueError, match="Choose another --out"):
        study.Runs(tmp_path / "study.json", {"lr": 0.2})


def test_a_curves_seconds_are_those_spent_before_its_noise_was_there():
    rows = [{"score": [1.0, 5.0], "seconds": 3.0}, {"score": [2.0, 6.0], "seconds": 7.0}]
    assert study.curve(core.History(rows=rows), 1) == {"score": [5.0, 6.0], "seconds": [0.0, 3.0]}


def test_equal_seconds_charge_the_slower_arm():
    """Two arms gain 1 an iteration; one takes 1 s, the other 4 s for each of 4 iterations."""
    fast, slow = run(0, 1, 2, 3, 4), run(0, 1, 2, 3, 4, each=4.0)
    found = study.paired([fast, fast], [slow, slow])
    assert found["after equal iterations"] == {"difference": [0, 0], "wins": 0, "of": 2}
    assert found["after equal seconds"] == {"seconds": [4, 0], "difference": [3, 0], "wins": 2, "of": 2}


def test_gains_are_those_of_the_best_so_far():
    fallen = run(1, 5, 2, 0)
    assert study.gain(fallen) == 4
    assert study.gain(fallen, seconds=0.5) == 2
    assert study.gain(fallen, seconds=2.5) == 4


def test_wins_count_pairs_and_not_means():
    assert study.wins([-9.0, 1.0, 2.0, 3.0]) == {"difference": [-0.75, 5.5603], "wins": 3, "of": 4}


def test_the_gradient_free_summary_orders_the_arms_and_says_what_they_cost():
    climbs = {
        "reference": [run(1, 9, 10), run(3, 9, 12)],
        "ZO-SGD": [run(1, 2, 2, each=8.0), run(3, 3, 5, each=8.0)],
        "Hybrid-1": [run(1, 1, 1), run(3, 2, 2)],
        "Hybrid-2": [run(1, 3, 5, each=3.0), run(3, 5, 7, each=3.0)],
    }
    arms = ("ZO-SGD", "Hybrid-1", "Hybrid-2")
    starts = [{"numbers": 4} | {arm: {"cosine": value, "shift": 0.0} for arm in arms} for value in (0.1, 0.3)]
    found = gradient_free.summary(climbs, starts)
    assert found["start"] == [2, 1.4142]
    assert found["gain"] == {
        "reference": [9, 0], "ZO-SGD": [1.5, 0.7071], "Hybrid-1": [0, 0], "Hybrid-2": [4, 0]
    }  # fmt: skip
    assert found["order"] == ["reference", "Hybrid-2", "ZO-SGD", "Hybrid-1"]
    assert found["seconds an iteration"]["ZO-SGD"] == [8, 0]
    assert found["Hybrid-2 over ZO-SGD"]["after equal iterations"]["wins"] == 2
    assert found["Hybrid-1 over ZO-SGD"]["after equal iterations"]["wins"] == 0
    assert found["gradients at the start"]["Hybrid-1"] == {"cosine": [0.2, 0.1414], "shift": [0, 0]}


def test_the_sde_is_sooner_where_it_has_gained_the_odes_all():
    arms = {"SDE": [run(1, 3, 5, 7), run(0, 1, 2, 4)], "ODE": [run(2, 3, 4, 5), run(0, 2, 4, 6)]}
    found = sde_ode.summary(arms)
    key = "the SDE gains what the ODE gains in 3 iterations"
    assert found[key] == {"pairs": 1, "of": 2, "median iterations": 2}
    assert found["gain"]["after 1 iterations"] == {"SDE": [1.5, 0.7071], "ODE": [1.5, 0.7071]}
    assert found["gain"]["after 3 iterations"]["SDE"] == [5, 1.4142]
    assert found["SDE over ODE"]["after equal iterations"] == {"difference": [0.5, 3.5355], "wins": 1, "of": 2}


def test_a_batchs_items_become_runs_of_their_own():
    points = ring.point_map(ring_models.exact_ring, 3)
    noise = points.randn(0)
    runs = sde_ode.runs_of(sde_ode.climb(points, ring.waves, noise, lr=0.01, iterations=2))
    expected = ring.waves(points.sample(noise)).tolist()
    assert [run["score"][0] for run in runs] == pytest.approx(expected, abs=1e-4)
    assert all(len(run["score"]) == 3 and run["seconds"] == runs[0]["seconds"] for run in runs)
    slopes = core.Exact()(core.Problem(points, ring.waves), noise).gradient.flat().norm(dim=1)
    assert [run["slope"] for run in runs] == pytest.approx(slopes.tolist(), abs=1e-5)


def test_searches_are_compared_seed_by_seed():
    winner = {"evaluations": 35, "climbed": 1.0, "norm": 1.0, "log_p": -1.0, "log_p_x_T": -2.0}
    table = {
        "ZeNO, linear weights": [{"best": [0, 4, 8], **winner}] * 2,
        "pCN": [{"best": [0, 3, 5], **winner}, {"best": [0, 9, 9], **winner}],
    }
    found = zeno.summary(table)
    assert found["best"]["pCN"] == [7, 2.8284]
    assert found["ZeNO, linear weights, over"]["pCN"] == {"difference": [1, 2.8284], "wins": 1, "of": 2}


@pytest.mark.parametrize("count, expected", [(1, 0.0), (2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi))])
def test_the_largest_of_normal_numbers_has_its_known_mean(count, expected):
    assert zeno.expected_maximum(count) == pytest.approx(expected, abs=1e-4)


def test_every_search_makes_the_evaluations_it_is_compared_at(tmp_path):
    """N = 4, K = 12: 61 evaluations. Of 60 seeds two searches climb by 5.1 +- 0.7, by these draws and by PyTorch's."""
    runs = study.Runs(tmp_path / "zeno.json", {})
    table = zeno.run_part(runs, "linear", zeno.identity_map(), zeno.linear_reward(), [0, 1], 62, 4)
    assert {run["evaluations"] for runs in table.values() for run in runs} == {61}
    found = zeno.summary(table)
    climbed, _ = found["last centre minus start"]["ZeNO, linear weights"]
    assert abs(climbed - 5.1) < 4 * 0.7
    assert abs(found["best"]["best of N"][0] - zeno.expected_maximum(60)) < 1
    assert found["ZeNO, linear weights, over"]["best of N"]["wins"] == 2


def test_an_estimators_gradient_is_compared_with_the_exact_one():
    """Where r(M(z)) is linear the differences have no shift, and their spread is the slope's."""
    noise_map = zeno.identity_map()
    reward = zeno.linear_reward()
    found = gradient_free.compare(noise_map, reward, reward, seed=0)
    assert found["numbers"] == 3072
    for arm, estimator in gradient_free.estimators(0).items():
        expected = math.sqrt(estimator.q / (3072 + estimator.q))
        assert found[arm]["cosine"] == pytest.approx(expected, rel=0.5)
        assert found[arm]["spread"] == pytest.approx(found[arm]["slope"], rel=0.7)
        assert abs(found[arm]["shift"]) < found[arm]["slope"]
        assert found[arm]["slope"] == pytest.approx(estimator.mu, rel=1e-3)


def test_bands_reach_as_far_as_every_curve():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    study.draw_band(axes, [([0, 1, 2], [0, 1, 2]), ([0, 2, 4], [0, 4, 8])], "arm", "C0")
    (line,) = axes.lines
    x, y = torch.tensor(line.get_xydata()).T
    assert x.max() == 2 and y[-1] == 3  # the mean of 2 and 4


def test_the_networks_whose_cost_is_compared_have_one_gradient():
    """In place or not, watched or not: and each arm's graph is counted."""
    every, x = in_place.arms(hidden=64, blocks=1), torch.randn(1, 16, 64)
    expected = {kind: in_place.differentiate(*every[kind], x) for kind in ("Flux-like, not in place", "SD-like")}
    for name, arm in every.items():
        (kind,) = (kind for kind in expected if kind.split("-")[0] == name.split("-")[0])
        torch.testing.assert_close(in_place.differentiate(*arm, x), expected[kind], rtol=1e-5, atol=1e-6)
        assert in_place.held(*arm, x) > 10 * x.nbytes


ROW = {
    "failed": {}, "KSampler": 2e-7, "ancestral": 2e-7, "candidates": 0.0, "replay": 0.0,
    "gradient": {"along": 1e-4, "random": 1e-3, "rise": 0.1},
    "by blocks": {"off": 3e-7, "blocks": 12, "left whole": ["Mixer"]},
}  # fmt: skip


def test_a_family_is_right_where_all_was_measured_and_nothing_is_wrong():
    without = {name: value for name, value in ROW.items() if name != "gradient"}
    assert model_families.right(ROW)
    assert not model_families.right(without)
    assert not model_families.right({**ROW, "replay": 1e-3})
    assert not model_families.right({**ROW, "candidates": math.nan})
    assert not model_families.right({**ROW, "gradient": {**ROW["gradient"], "rise": -0.1}})
    assert not model_families.right({**ROW, "by blocks": {**ROW["by blocks"], "off": 2e-5}})


def test_the_table_sets_what_is_wrong_in_bold_and_gives_each_reason_once():
    family = model_families.FAMILIES[0]
    row = {**ROW, "candidates": 0.3, "failed": {"replay": "ValueError: no noise", "ancestral": "ValueError: no noise"}}
    del row["replay"], row["ancestral"]
    assert model_families.cells(family, row) == [
        family.name, f"`{family.model}`", "2e-7", "-", "1e-4 / 1e-3", "3e-7 / 12", "0.100", "**3e-1**",
        "-", "replay, ancestral: no noise; Mixer went back whole",
    ]  # fmt: skip


def test_the_table_says_where_no_block_was_gone_back_by():
    found = {"off": 0.0, "blocks": 0, "left whole": []}
    assert "takes as much as step" in model_families.cells(model_families.FAMILIES[0], {**ROW, "by blocks": found})[-1]


def test_the_page_of_models_is_what_was_measured():
    assert model_families.PAGE.read_text() == model_families.page(model_families.result_files())


def test_a_gain_counts_what_was_found_in_time_and_passes_the_floors():
    found = {
        "calls": [20, 60, 100, 140, 180], "score": [1.0, 1.5, 3.0, 2.0, 4.0],
        "consistency": [0.9, 0.88, 0.7, 0.86, 0.9],
        "log_p": [-1.0, -1.0, -1.0, -1.0, -5.0], "log_p_initial": [-1.0] * 5,
    }  # fmt: skip
    assert [calls.gain(found, budget) for budget in (10, 40, 60, 100, 200)] == [0, 0, 0.5, 0.5, 1.0]
    assert calls.gain(found, 200, kept=False) == 3.0
    assert calls.gain({**found, "score": [1.0, 0.5, 0.6, 0.7, 0.8]}, 200) == 0  # the start itself


@pytest.mark.parametrize("solver, spent", [("tilt .3", [0, 3]), ("tilt .5 decoder", [0, 2]), ("adam .03", [0, 4])])
def test_calls_are_counted_forward_and_backward(solver, spent, monkeypatch):
    """Of two steps: the start is 2 calls, a tilted run 2 and 1 back, a gradient 2 back before the next noise's 2."""
    monkeypatch.setitem(calls.MAPS, 2, {"eta": 1.0, "cfg": 3.0})
    monkeypatch.setitem(calls.BUDGETS, 2, (6,))
    found = calls.run("red owl", 100, 2, "brightness", solver)
    assert found["calls"][:2] == [2 + each for each in spent]
    assert len({len(column) for column in found.values()}) == 1


@pytest.mark.parametrize("reward", calls.REWARDS)
def test_every_reward_of_the_study_can_be_climbed(reward):
    sample_map = core.load_embedded("red owl", steps=2)
    score, images = calls.reward_of(reward, sample_map, 100), torch.rand(1, 3, 128, 128).requires_grad_()
    assert torch.autograd.grad(score(images, ["red owl"]).sum(), images)[0].any()


def test_black_box_searches_have_equal_evaluations():
    """6 calls of 16 and the start, with a last look one more, or as many of Hybrid-2's five as fit."""
    expected = {"ZeNO, geometric": 98, "Hybrid-2, Adam": 96, "Hybrid-2, ou": 96}
    for arm in black_box.arms(6, 100):
        found = black_box.run("surrogate", "detector", arm, 6, 100)
        assert found["evaluations"] == expected.get(arm, 97)
        assert found["best"] >= found["start"] == black_box.run("surrogate", "detector", "TRS", 1, 100)["start"]


def test_the_detector_counts_bright_tiles():
    images = torch.zeros(2, 3, 64, 64)
    images[1, :, :8, :24] = 0.6
    images[1, :, 8:16, :4] = 1.0  # half a tile
    assert black_box.Detector(0.55)(images).tolist() == [0, 3]


def test_black_box_gains_are_of_the_seeds_that_every_arm_has_run():
    found = {"start": 1.0, "log_p": -1.0, "seconds": 2.0}
    done = {
        f"jpeg | {arm} | 6 | {seed}": {**found, "best": 2.0 + seed + (arm == "TRS")}
        for arm, seeds in (("TRS", (0, 1, 2)), ("pCN", (0, 1))) for seed in seeds
    }  # fmt: skip
    table = black_box.summary(done)["jpeg"]["97 evaluations"]
    assert table["seeds"] == 2
    assert table["TRS"]["gain"] == [2.5, 0.7071] and table["pCN"]["gain"] == [1.5, 0.7071]
    assert black_box.summary({"jpeg | TRS | 6 | 0": {**found, "best": 2.0}})["jpeg"]["97 evaluations"] == {}


def measurement(loss, gap, consistency=0.9):
    """What the study of the belief keeps of a picture: of two levels the losses and gaps by noise."""
    return {"loss": [[loss] * 4] * 2, "gap": [[gap] * 4] * 2, "consistency": consistency, "log_p": -1.0}


def test_the_studys_belief_is_the_evidence_in_units_of_ordinary_samples_or_of_the_start():
    row = {**measurement(1.0, 1.0), "ordinary": [measurement(1.0, 3.0)] * 4, "start": measurement(2.0, 14.0)}
    assert belief.belief(row) == pytest.approx(math.log(2) / math.log(4))
    assert belief.belief(row, samples=0) == pytest.approx(math.log(2) / math.log(8))
    assert belief.small_loss({**row, **measurement(4.0, 1.0)}) == pytest.approx(1 / 4)


def test_the_area_is_the_share_of_pairs_in_the_right_order():
    values, lost = np.array([0.1, 0.5, 0.5, 0.9]), np.array([True, True, False, False])
    assert belief.area(values, lost) == 0.875  # of four pairs three, and a tie
    assert belief.area(values, np.zeros(4, dtype=bool)) is None


def test_the_study_of_the_belief_tells_its_sets_apart_and_measures_from_the_start(tmp_path):
    groups = [belief.named([pair]) for pair in (belief.TUNING[0], belief.HELD_OUT[0])]
    runs = {}
    for group, end, gap in zip(groups, (0.6, 0.86), (0.1, 0.5), strict=True):
        runs[f"ordinary | {group}"] = [[measurement(1.0, each) for each in (0.8, 0.9, 1.0, 1.1)]]
        runs[f"contrast | trust | {group}"] = [[measurement(1.0, 1.0), measurement(1.0, gap, end)]]
    (tuning,), (held_out,) = (belief.rows_of(runs, pairs) for pairs in (belief.TUNING, belief.HELD_OUT))
    assert (tuning["lost"], held_out["lost"]) == pytest.approx((0.3, 0.04))
    assert tuning["kind"] == "contrast | trust" and tuning["start"]["consistency"] == 0.9
    belief.plot([tuning, held_out], tmp_path / "belief.png")
    found = belief.summary([tuning, held_out], {"levels": [6.0, 12.0], "samples": 4})
    assert (found["lost"], found["kept"], found["area"]["belief"]) == (1, 1, 1.0)


def test_a_search_of_the_study_of_the_belief_measures_the_start_and_the_end():
    plan = {"levels": [6.0], "samples": 1, "iterations": 1, "every": 1}
    (rows,) = belief.search((("red owl", 100),), "contrast", "tilt .4", plan, steps=2)
    (samples,) = belief.ordinary((("red owl", 100),), plan, steps=2)
    assert len(rows) == 2 and rows[1]["score"] > rows[0]["score"]
    assert all(np.shape(each["loss"]) == np.shape(each["gap"]) == (1, belief.NOISES) for each in (*rows, *samples))


def half(x, sigma, difficulty):
    """A network in place of the terrains': half of x without its noise level, near the heights of terrains."""
    return [x / (2 * sigma.view(-1, 1, 1, 1)) - 0.4]


@pytest.mark.parametrize("steps", terrain.SIGMAS)
def test_terrains_are_sampled_as_consistency_models_are(monkeypatch, steps):
    monkeypatch.setattr(terrain, "network", lambda: half)
    sample_map = terrain.terrains(steps)
    noise = sample_map.randn(seed=1)
    fresh = iter(noise.injected)
    x = 80 * noise.initial
    for sigma, sigma_next in sample_map.schedule.intervals:
        (x,) = half(x, torch.tensor([sigma]), None)
        x = x + sigma_next * next(fresh) if sigma_next else x
    torch.testing.assert_close(sample_map.sample(noise), ((x + 1) / 2).expand(-1, 3, -1, -1))


@pytest.mark.parametrize("arm", terrain.arms("ramp"))
def test_searches_for_terrains_have_equal_evaluations(monkeypatch, tmp_path, arm):
    monkeypatch.setattr(terrain, "network", lambda: half)
    found = terrain.run("ramp", arm, 2, 1, tmp_path / "terrain.json")
    assert len(found["scores"]) == 17 and found["best"] >= found["scores"][0]


def test_rewards_of_terrains_judge_their_heights():
    ramp = torch.linspace(0.15, 0.45, 8).repeat_interleave(16).expand(1, 3, 128, 128)
    step = torch.zeros(1, 3, 128, 128)
    step[..., 60:] = 0.1  # a cliff through 16 of the 256 tiles
    assert terrain.Ramp()(ramp).abs() < 1e-4 and abs(terrain.Ramp()(ramp + 0.1) + 10) < 1e-4
    assert terrain.Passable()(torch.cat([step, torch.zeros_like(step)])).tolist() == [240, 256]
