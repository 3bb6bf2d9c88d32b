"""The papers' experiments: the arithmetic of their claims on made results, and the main claims in small."""

import pytest
import torch
from comfyui_dno.experiments import (
    dno_figure_2,
    dno_figure_3,
    dno_figure_4,
    dno_figure_5,
    dno_figure_7,
    dno_figure_8,
    dno_figure_12,
    dno_figure_13,
    dno_figure_16,
    dno_theorem_1,
    preference_scorers,
)
from comfyui_dno.experiments.experiment import by_seed
from comfyui_dno.experiments.ring_models import train


def effects(module, results):
    """Return each claim's effects by its text."""
    return {claim.text: claim.values(results) for claim in module.EXPERIMENT.claims}


def effect(module, results, words):
    """Return the one effect of the one claim whose text has these words."""
    (found,) = [values for text, values in effects(module, results).items() if words in text]
    (one,) = found
    return one


def arm(reward, consistency):
    return {"reward": [reward], "consistency": [consistency], "log10_p": [[0.0, -1.0, -3.0]]}


def test_the_effect_of_a_seed_is_the_mean_over_its_cases():
    results = [{"case": {"seed": seed}} for seed in (0, 0, 1)]
    assert by_seed(results, [1.0, 3.0, 5.0]) == [2.0, 5.0]


def test_points_near_a_local_maximum_are_near_the_grid_of_the_sines():
    points = torch.tensor([[0.125, 0.625], [-0.875, 0.125], [0.375, 0.125], [0.225, 0.125]])
    assert dno_figure_2.distance_to_maximum(points).tolist() == pytest.approx([0, 0, 0.25, 0.1], abs=1e-6)


def test_the_lead_of_the_sde_is_in_gains_and_not_in_rewards():
    results = [{"ring, Adam": {"ODE": [5.0, 6.0, 7.0], "SDE": [0.0, 2.0, 4.0]}}, {"embedded model, Adam": {}}]
    assert dno_figure_3.lead(results, "ring, Adam") == [1.0]


def test_consistency_at_a_reward_lies_between_the_iterations_that_it_falls_between():
    curves = {"reward": [[0.0, 1.0, 3.0]], "consistency": [[0.9, 0.8, 0.4]]}
    assert dno_figure_5.at_reward(curves, 0, 2.0) == pytest.approx(0.6)
    assert dno_figure_5.at_reward(curves, 0, -1.0) == 0.9 and dno_figure_5.at_reward(curves, 0, 9.0) == 0.4


def test_equal_reward_is_judged_where_both_searches_have_been():
    """The plain one passes the other's end, 1, halfway, at a consistency of 0.6; at its own end it is at 0.2."""
    case = {"seed": 0, "reward": "whiteness"}
    results = [{"case": case, "with": arm([0, 0.5, 1], [0.9, 0.85, 0.8]), "without": arm([0, 2, 4], [1.0, 0.2, 0.2])}]
    assert effect(dno_figure_5, results, "at the end") == pytest.approx(0.6)
    assert effect(dno_figure_5, results, "Figure 6") == pytest.approx(0.8 - 0.6)
    assert effect(dno_figure_5, results, "slower") == pytest.approx(3)
    # At 0.5 of the gain 0.85 against 0.8, at 0.75 of it 0.825 against 0.7, at its end 0.8 against 0.6.
    assert effect(dno_figure_5, results, "early stopping") == pytest.approx((0.05 + 0.125 + 0.2) / 3)


def test_a_searchs_highest_reward_is_found_where_a_sum_would_round_above_it():
    case = {"seed": 0, "reward": "whiteness"}
    with_it, without = arm([0.29, 0.86, 0.85], [1, 0.8, 0.1]), arm([0.29, 0.575, 1.36], [1, 0.8, 0.3])
    assert 0.29 + 1.0 * (0.86 - 0.29) > 0.86
    found = effect(dno_figure_5, [{"case": case, "with": with_it, "without": without}], "Figure 6")
    assert found == pytest.approx(0.8 - (0.8 - 0.5 * (0.86 - 0.575) / (1.36 - 0.575)))


def test_the_other_score_is_compared_by_what_it_gained():
    def searched(other, reward):
        return {"other": [other], "reward": [reward], "log10_p": [[0.0, -1.0]]}

    with_it, without = searched([1.0, 0.9], [0.0, 1.0]), searched([1.0, 0.2], [0.0, 1.05])
    cases = [{"seed": 0, "climbed": name} for name in dno_figure_7.CLIMBED]
    results = [{"case": case, "with": with_it, "without": without} for case in cases]
    assert effect(dno_figure_7, results, "improves the test metric") == pytest.approx(0.7)
    assert effect(dno_figure_7, results, "does not fall") == pytest.approx(-0.1)
    assert effect(dno_figure_7, results, "no significant effect") == pytest.approx(0.105 - 0.05)


def test_a_slow_method_is_compared_when_the_quick_one_is_done():
    quick = {"best": [0.0, 1.0, 2.0], "seconds": [0.0, 1.0, 2.0]}
    slow = {"best": [0.0, 2.0, 4.0], "seconds": [0.0, 4.0, 8.0]}
    results = [{"case": {"seed": 0, "reward": "jpeg"}, "Hybrid-2": quick, "ZO-SGD": slow, "Hybrid-1": slow}]
    assert dno_figure_8.ahead(results, "jpeg", "Hybrid-2", "ZO-SGD") == [-2.0]
    assert dno_figure_8.ahead(results, "jpeg", "Hybrid-2", "ZO-SGD", by_second=True) == [1.0]
    assert dno_figure_8.ahead(results, "scorer", "Hybrid-2", "ZO-SGD") == []
    seeds = [{"case": {"seed": seed, "reward": "scorer"}, "Hybrid-2": {"best": [1.0, 1.0 + seed]}} for seed in (0, 1)]
    true = {"case": {"seed": 1, "reward": dno_figure_8.TRUE}, "true": {"best": [1.0, 5.0]}}
    assert dno_figure_8.ahead_by_its_gradient([*results, *seeds, true]) == [4.0 - 1.0]


def test_the_usual_setting_is_run_once_and_compared_with_every_other():
    cases = dno_figure_16.cases(2)
    assert len(cases) == 2 * (1 + 3 + 2 + 2 + 1)
    results = [
        {"case": case, "consistency": [0.9, 0.1 * index], "reward": [0, 1]} for index, case in enumerate(cases[:9])
    ]
    (k,) = [found for found in results if (found["case"]["name"], found["case"]["value"]) == ("k", 10)]
    assert list(dno_figure_16.of_setting(results, "gamma", 1.0).values()) == [results[0]]
    assert dno_figure_16.difference(results, "k", 10, 2) == [pytest.approx(k["consistency"][-1])]


def test_theorem_one_is_held_against_the_first_order():
    found = {"case": {"model": "ring"}, "step": 0.1, "means": [0.0, 0.8, 1.4], "squares": [10.0, 6.0]}
    assert effect(dno_theorem_1, [found], "every small step raises the mean reward; ring") == pytest.approx(0.6)
    assert effect(dno_theorem_1, [found], "l <= 1 / L; ring") == pytest.approx(1.4 / 1.6 - 0.5)


def test_a_blurred_field_has_the_moments_of_true_noise_and_neighbours_that_agree():
    field = dno_figure_13.blurred(torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0)))
    assert float(field.mean()) == pytest.approx(0, abs=1e-6) and float(field.std()) == pytest.approx(1, abs=1e-5)
    # Means over 9 x 9 whose squares overlap by 8/9 are correlated by 8/9; 0.1 is four deviations of 1,024 numbers.
    assert float((field[..., 1:] * field[..., :-1]).mean()) == pytest.approx(8 / 9, abs=0.1)


def test_noises_that_are_none_are_told_from_true_noise(monkeypatch):
    monkeypatch.setattr(dno_figure_13, "STEPS", 4)
    found = dno_figure_13.run(seed=0)
    assert len(found.pop("pictures")) == 4
    told = effects(dno_figure_13, [found])
    unseen = "Section 3.1: random permutations are enough, so that they see a blurred field."
    for text, (value,) in told.items():
        if not text.startswith(("Figures 13c", "Figure 13d: random")):
            assert (value < 0) == (text == unseen), text
    dno_figure_13.EXPERIMENT.draw([found])


def test_the_regulariser_keeps_the_animal_that_the_plain_search_loses(monkeypatch):
    """At three times the learning rate a third of the iterations do."""
    for name, value in {"STEPS": 6, "ITERATIONS": 10, "LR": 0.1, "ANIMALS": 1}.items():
        monkeypatch.setattr(dno_figure_5, name, value)
    found = {"case": {"seed": 0, "reward": "whiteness"}} | dno_figure_5.run(0, "whiteness")
    names = [caption.split(", ")[1].split("\n")[0] for caption in found["pictures"]]
    assert names == ["start", "with", "equal", "without"]
    rewards = [float(caption.split("\n")[1].split(",")[0]) for caption in found["pictures"]]
    assert rewards[1] <= rewards[2] < rewards[3], "the third has just passed the second"
    for words in ("throughout", "at the end", "slower", "P(z) stays higher", "P(z) tells of the consistency"):
        assert effect(dno_figure_5, [found], words) > 0, words


def test_a_larger_gamma_is_slower_and_keeps_more_of_the_colour(monkeypatch):
    for name, value in {"STEPS": 6, "ITERATIONS": 10, "LR": 0.1}.items():
        monkeypatch.setattr(dno_figure_16, name, value)
    cases = [{"seed": 0, "name": "gamma", "value": gamma} for gamma in (0.1, 10.0)]
    results = [{"case": case} | dno_figure_16.run(**case) for case in cases]
    for words in ("a larger gamma makes the search slower", "a larger gamma makes it safer"):
        assert effect(dno_figure_16, results, words) > 0, words


def test_hybrid_2_is_ahead_of_zo_sgd_and_the_true_gradient_of_hybrid_2(monkeypatch):
    for name, value in {"STEPS": 4, "ITERATIONS": 4}.items():
        monkeypatch.setattr(dno_figure_8, name, value)
    cases = [{"seed": 0, "reward": reward} for reward in ("scorer", dno_figure_8.TRUE)]
    results = [{"case": case} | dno_figure_8.run(**case) for case in cases]
    assert dno_figure_8.ahead(results, "scorer", "Hybrid-2", "ZO-SGD")[0] > 0
    assert dno_figure_8.ahead_by_its_gradient(results)[0] > 0
    dno_figure_8.EXPERIMENT.draw(results)


def test_every_small_step_raises_the_mean_reward(monkeypatch):
    for name, value in {"POINTS": 100, "RING_ITERATIONS": 5, "PICTURES": 2, "STEPS": 4, "ITERATIONS": 2}.items():
        monkeypatch.setattr(dno_theorem_1, name, value)
    monkeypatch.setattr(dno_theorem_1, "train", lambda draw, seed: train(draw, seed, iterations=500, batch=256))
    results = [{"case": {"model": model}} | dno_theorem_1.run(0, model) for model in dno_theorem_1.MODELS]
    assert all(min(values) > 0 for values in effects(dno_theorem_1, results).values())
    dno_theorem_1.EXPERIMENT.draw(results)


def test_the_regulariser_keeps_the_points_that_the_plain_search_loses(monkeypatch):
    for name, value in {"POINTS": 20, "FAR": 20, "POINT_LR": 0.2}.items():
        monkeypatch.setattr(dno_figure_4, name, value)
    monkeypatch.setattr(dno_figure_4, "train", lambda draw, seed: train(draw, seed, iterations=800, batch=256))
    found = {"case": {"model": "ring"}} | dno_figure_4.run(0, "ring")
    for words in ("all points end out of", "the regulariser keeps them", "P(z) tells the points"):
        assert effect(dno_figure_4, [found], words) > -0.1, words
    assert effect(dno_figure_4, [found], "the regulariser keeps them") > 0.5


def test_shares_of_types_are_of_the_points_of_their_place():
    types = {"ring": ["I"] * 3 + ["III"], "line": ["III"] * 4, "end": ["none"] * 4}
    found = {name: {"types": of_place} for name, of_place in types.items()}
    assert list(effects(dno_figure_12, [found]).values()) == [
        [pytest.approx(value)] for value in (0.75 - 0.05, -0.05, 1 - 0.95, -0.05)
    ]


def test_both_scorers_prefer_pictures_to_spoiled_copies_of_either_kind():
    scorers = preference_scorers.trained(0)
    pictures, generator = preference_scorers._pictures(7), torch.Generator().manual_seed(0)
    for scorer, spoil in zip(scorers, (preference_scorers.worn, preference_scorers.meddled), strict=True):
        right = (scorer(pictures) > scorer(spoil(pictures, generator))).float().mean()
        assert right > 0.8, scorer.name
