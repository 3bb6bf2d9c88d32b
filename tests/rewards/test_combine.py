"""Several rewards as one: values, gradients part by part, and what is recorded of each part."""

import json
import math
import weakref

import numpy
import pytest
import torch
from comfyui_dno import core, rewards
from comfyui_dno.core.scoring import exact, score
from comfyui_dno.rewards.combine import TYPICAL, in_parity
from tiny_models import sample_map

PARTS = [rewards.Contrast(), rewards.Saturation(), rewards.ColorTarget((0.2, 0.4, 0.6)), rewards.Sharpness()]
WEIGHTS = [5.0, -1.0, 0.01, 0.5]


def noisy(*shape, seed=0, dtype=torch.float32):
    """Random pictures that go a little out of range."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 1.2 - 0.1


def warmth(images, prompts=None):
    """A reward of one's own: nothing but a function."""
    return (images[:, 0] - images[:, 2]).mean(dim=(1, 2))


class Counting:
    """A reward that counts how often it is called, with and without gradient."""

    def __init__(self, reward, name):
        self.reward, self.name, self.calls = reward, name, []

    def __call__(self, images, prompts=None):
        self.calls.append("gradient" if images.requires_grad else "score")
        return self.reward(images, prompts)


def test_the_score_is_the_weighted_sum():
    images = noisy(3, 3, 8, 9)
    expected = sum(weight * part(images) for part, weight in zip(PARTS, WEIGHTS, strict=True))
    torch.testing.assert_close(rewards.Combine(PARTS, WEIGHTS)(images), expected)
    torch.testing.assert_close(rewards.Combine(PARTS)(images), sum(part(images) for part in PARTS))


def test_z_scores_are_measured_from_the_prior():
    images = noisy(2, 3, 8, 9)
    combined = rewards.Combine([warmth, rewards.Contrast()], [2, 3], priors=[(0.1, 0.25), None])
    expected = 2 * (warmth(images) - 0.1) / 0.25 + 3 * rewards.Contrast()(images)
    torch.testing.assert_close(combined(images), expected)


def test_calibration_gives_every_part_mean_0_and_sd_1_and_stays():
    images = noisy(9, 3, 8, 9)
    raw = rewards.Combine(PARTS, WEIGHTS)
    combined = raw.calibrate(raw.part_scores(images))
    for part, (mean, sd) in zip(PARTS, combined.priors, strict=True):
        assert (part(images).mean().item(), part(images).std().item()) == pytest.approx((mean, sd))
    scores = combined(images)
    assert scores.mean().item() == pytest.approx(0, abs=1e-4)
    combined(noisy(2, 3, 8, 9, seed=1) * 2)
    torch.testing.assert_close(combined(images), scores)
    assert raw.priors == ((0.0, 1.0),) * 4
    with pytest.raises(ValueError, match="contrast scored .* calibration needs two or more finite scores that differ"):
        raw.calibrate(raw.part_scores(images[:1].repeat(3, 1, 1, 1)))


def test_typical_scores_are_known_by_class():
    class PickScore:
        name = "pick"

    assert rewards.typical(PickScore()) == (21.0, 1.2)
    with pytest.raises(ValueError, match="no typical mean and sd are known of contrast"):
        rewards.typical(rewards.Contrast())


@pytest.mark.parametrize("name, least, most", [
    ("HPS", 0.24, 0.29), ("PickScore", 17, 24), ("CLIPScore", 0.2, 0.4), ("ImageReward", -2, 2), ("Aesthetic", 4.5, 7),
])
def test_typical_scores_lie_in_the_range_of_generated_pictures_and_fill_much_of_it(name, least, most):
    mean, sd = TYPICAL[name]
    slack = 0.01 * (most - least)  # for rounding: 0.27 + 0.02 is HPS's most
    assert least - slack < mean - sd < mean + sd < most + slack and 2 * sd > (most - least) / 4


@pytest.mark.parametrize("parts", [False, True])
def test_reporting_by_8_bit_pixels_leaves_the_optimised_reward_smooth(parts):
    class Model:
        name, parity = "model", False

    model = Model()
    reported = in_parity(rewards.Combine([model]) if parts else model)
    assert (reported.parts[0] if parts else reported).parity is True
    assert model.parity is False


@pytest.mark.parametrize("priors", [None, [(0.2, 0.01), (0.3, 0.5), None, (1.0, 2.0)]])
def test_the_gradient_part_by_part_is_autograds_of_the_whole(priors):
    combined = rewards.Combine(PARTS, WEIGHTS, priors)
    images = noisy(2, 3, 8, 9, dtype=torch.float64).requires_grad_()
    expected = combined(images)
    (gradient,) = torch.autograd.grad(expected.sum(), images)
    scores, d_images = exact(combined, images)
    torch.testing.assert_close(scores, expected.detach())
    torch.testing.assert_close(d_images, gradient)
    assert torch.autograd.gradcheck(combined, images)


class Tower:
    """A stand-in for a network: a chain of layers whose saved tensors are counted until their graph is freed."""

    alive, peak = weakref.WeakSet(), 0
    differentiable = True

    def __init__(self, layers):
        self.name, self.layers = f"tower of {layers}", layers

    def __call__(self, images, prompts=None):
        with torch.autograd.graph.saved_tensors_hooks(self.keep, lambda kept: kept.tensor):
            for _ in range(self.layers):
                images = images.sin()
            return images.sum(dim=(1, 2, 3))

    @classmethod
    def keep(cls, tensor):
        kept = Kept(tensor)
        cls.alive.add(kept)
        cls.peak = max(cls.peak, sum(each.tensor.nbytes for each in cls.alive))
        return kept


class Kept:
    def __init__(self, tensor):
        self.tensor = tensor


def test_one_parts_graph_is_alive_at_a_time():
    """So that memory is that of the largest tower, whatever their number."""
    images, towers = noisy(2, 3, 8, 8), [Tower(2), Tower(7), Tower(3)]
    combined = rewards.Combine(towers)

    def peak(score):
        Tower.peak = 0
        score()
        return Tower.peak / images.nbytes

    assert peak(lambda: exact(combined, images)) == 7
    assert len(Tower.alive) == 0
    assert peak(lambda: combined(images.clone().requires_grad_())) == 12
    assert peak(lambda: combined.part_scores(images * 2)) == 0


def test_a_nested_combine_is_differentiated_part_by_part_too():
    images = noisy(2, 3, 8, 8)
    inner = rewards.Combine([Tower(4), Tower(5)], [0.5, 2.0])
    nested = rewards.Combine([inner, warmth], [3.0, 1.0])
    Tower.peak = 0
    scores, gradient = exact(nested, images)
    assert Tower.peak == 5 * images.nbytes
    torch.testing.assert_close(scores, 3 * (0.5 * Tower(4)(images) + 2 * Tower(5)(images)) + warmth(images))
    torch.testing.assert_close(gradient, 3 * exact(inner, images)[1] + exact(warmth, images)[1])
    assert list(nested.part_scores(images)) == ["combined", "combined/tower of 4", "combined/tower of 5", "warmth"]


def test_watched_parts_are_recorded_and_never_optimised():
    watched = Counting(rewards.JPEG(), "size")
    watched.differentiable = False
    combined = rewards.Combine([warmth, watched], [2, 100], watch_only=[False, True])
    images = noisy(2, 3, 8, 8)
    assert combined.differentiable
    torch.testing.assert_close(combined(images), 2 * warmth(images))
    torch.testing.assert_close(exact(combined, images)[1], 2 * exact(warmth, images)[1])
    assert watched.calls == []
    raw = combined.part_scores(images)
    torch.testing.assert_close(raw["warmth"], warmth(images))
    torch.testing.assert_close(raw["size"], rewards.JPEG()(images))
    assert watched.calls == ["score"]


def test_every_parts_raw_score_is_in_the_history_and_no_part_is_scored_twice():
    first, second = Counting(warmth, "warmth"), Counting(rewards.Contrast(), "contrast")
    watched = Counting(rewards.Brightness(), "brightness")
    combined = rewards.Combine([first, second, watched], [3, -1, 7], watch_only=[False, False, True])
    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64)
    result = core.optimize(noise_map, combined, noise, core.GradientAscent(lr=0.05), iterations=3, floor=0.0)
    rows = result.history.rows
    for row in rows:
        parts = zip(row["watch/warmth"], row["watch/contrast"], strict=True)
        assert row["score"] == pytest.approx([3 * a - b for a, b in parts])
        assert row["score"] != row["watch/brightness"]
    assert result.history.watched == ["warmth", "contrast", "brightness"]
    expected = rewards.Brightness()(result.images).tolist()
    assert result.history.best_row["watch/brightness"] == pytest.approx(expected)
    assert first.calls == second.calls == ["gradient"] * 3 + ["score"]
    assert watched.calls == ["score"] * len(rows)
    assert "warmth" in result.history.summary()


def test_of_a_watched_combine_the_parts_are_recorded():
    noise_map = sample_map()
    watch = (rewards.Combine([rewards.Contrast(), rewards.Saturation()]), rewards.Brightness())
    result = core.optimize(noise_map, warmth, noise_map.randn(0).to(torch.float64), watch=watch, iterations=0)
    assert result.history.watched == ["contrast", "saturation", "brightness"]
    assert result.history.rows[0]["watch/saturation"] == pytest.approx(rewards.Saturation()(result.images).tolist())


def test_raw_scores_are_those_of_the_pictures_and_prompts_given():
    def length(images, prompts):
        return warmth(images) + torch.tensor([float(len(prompt)) for prompt in prompts])

    combined = rewards.Combine([length])
    images = noisy(2, 3, 8, 8)
    exact(combined, images, ["a", "bb"])
    for other, prompts in ((images, ["a", "bbb"]), (images + 0.1, ["a", "bb"]), (images[:1], ["a"])):
        torch.testing.assert_close(combined.part_scores(other, prompts)["length"], length(other, prompts))
    prompts = ["a", "bb"]
    exact(combined, images, prompts)
    prompts[0] = "aaa"
    torch.testing.assert_close(combined.part_scores(images, prompts)["length"], length(images, prompts))
    exact(combined, images, ["a", "bb"])
    images.mul_(2)
    torch.testing.assert_close(combined.part_scores(images, ["a", "bb"])["length"], length(images, ["a", "bb"]))


def test_the_history_tells_what_each_part_counts_and_what_it_was_calibrated_by():
    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64)
    inner = rewards.Combine([rewards.Contrast()], [3], priors=[(0.25, 0.5)])
    combined = rewards.Combine([warmth, inner], [2, -1], watch_only=[True, False])
    history = core.optimize(noise_map, combined, noise, iterations=0).history
    assert json.loads(history.to_json())["settings"]["parts"] == {
        "warmth": {"weight": 2, "mean": 0.0, "sd": 1.0, "watch_only": True},
        "combined": {"weight": -1, "mean": 0.0, "sd": 1.0, "watch_only": False},
        "combined/contrast": {"weight": 3, "mean": 0.25, "sd": 0.5, "watch_only": False},
    }


def test_a_reward_of_crops_is_typically_what_it_is_of_the_whole():
    class HPS:
        pass

    assert rewards.typical(rewards.Jittered(HPS())) == rewards.typical(HPS())


def test_what_was_scored_is_given_away_once_and_as_ones_own():
    part = Counting(warmth, "warmth")
    combined, images = rewards.Combine([part]), noisy(2, 3, 8, 8)
    expected = combined(images)
    combined.part_scores(images, ("a", "b"))["warmth"].add_(100)
    assert len(part.calls) == 2  # other prompts
    score(combined, images, ["a", "b"])
    combined.part_scores(images, ("a", "b"))["warmth"].add_(100)
    assert len(part.calls) == 3 and combined._latest is None
    torch.testing.assert_close(combined(images), expected)


def test_a_rewards_own_gradient_is_made_float32_and_named_where_it_has_the_wrong_form():
    class Own:
        name = "own"

        def __init__(self, gradient):
            self.gradient = gradient

        def image_gradient(self, images, prompts):
            return warmth(images), self.gradient

    images = noisy(2, 3, 8, 8)
    scores, gradient = exact(Own(images.half().requires_grad_()), images)
    assert gradient.dtype == torch.float32 and not gradient.requires_grad and not scores.requires_grad
    for wrong, found in ((torch.zeros(1), r"\(1,\)"), (None, "NoneType")):
        with pytest.raises(ValueError, match=rf"own's image_gradient gave {found}; expected \(2, 3, 8, 8\)"):
            exact(Own(wrong), images)


def test_a_part_that_is_not_finite_is_named_and_the_search_keeps_its_best():
    calls = []

    def broken(images, prompts=None):
        calls.append(len(images))
        return warmth(images) * (float("nan") if len(calls) > 2 else 1.0)

    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64)
    combined = rewards.Combine([rewards.Contrast(), broken])
    result = core.optimize(noise_map, combined, noise, core.GradientAscent(lr=0.05), iterations=5, floor=0.0)
    assert result.history.stopped == "the reward broken is nan at iteration 2; expected finite numbers"
    assert len(result.history.rows) == 2 and result.images.isfinite().all()


def test_numbers_of_any_kind_are_kept_as_plain_ones():
    images = noisy(4, 3, 8, 8)
    mean, sd = warmth(images).mean(), warmth(images).std()
    combined = rewards.Combine([warmth], numpy.float32([2.5]), [(mean, sd)], torch.tensor([False]))
    assert json.loads(json.dumps(combined.part_settings)) == {
        "warmth": {"weight": 2.5, "mean": mean.item(), "sd": sd.item(), "watch_only": False}
    }


def test_a_part_without_gradient_is_named():
    parts = [rewards.JPEG(incompressible=True), warmth, rewards.JPEG()]
    combined = rewards.Combine([rewards.Combine(parts, watch_only=[True, False, False])])
    assert not combined.differentiable
    images = noisy(2, 3, 8, 8)
    with pytest.raises(ValueError, match="^jpeg compressibility is not differentiable, but this solver needs its"):
        exact(combined, images)
    torch.testing.assert_close(combined(images), warmth(images) + rewards.JPEG()(images))


def test_a_part_of_the_wrong_form_is_named():
    def column(images, prompts):
        return images.mean(dim=(2, 3))[:, :1]

    combined = rewards.Combine([warmth, column])
    for call in (combined, lambda images: exact(combined, images), combined.part_scores):
        with pytest.raises(ValueError, match=r"column returned \(2, 1\); expected one score per picture"):
            call(noisy(2, 3, 8, 8))


@pytest.mark.parametrize("settings, message", [
    ({"parts": []}, "found 0 parts, none to optimise"),
    ({"parts": [warmth], "watch_only": [True]}, "found 1 parts, none to optimise"),
    ({"parts": [warmth], "weights": [1, 2]}, "found 2 weights for 1 parts; expected one a part"),
    ({"parts": [warmth], "priors": [(0.1, 0.0)]}, r"prior of warmth is \(0.1, 0.0\); expected a mean and an sd"),
    ({"parts": [warmth], "weights": [math.nan]}, "the weight of warmth is nan; expected a finite number"),
    ({"parts": [warmth], "weights": [math.inf], "watch_only": [False]}, "the weight of warmth is inf; expected a fin"),
    ({"parts": [warmth], "priors": [(0, math.inf)]}, r"prior of warmth is \(0.0, inf\); expected a mean and an sd"),
    ({"parts": [warmth], "priors": [(math.nan, 1)]}, r"prior of warmth is \(nan, 1.0\); expected a mean and an sd"),
])
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        rewards.Combine(**settings)


def test_parts_of_the_same_name_are_numbered():
    named = [Counting(warmth, name) for name in ("a 2", "a", "a", "a 2")]
    assert rewards.Combine(named).names == ["a 2", "a", "a 3", "a 2 2"]
    combined = rewards.Combine([warmth, rewards.Contrast(), warmth, warmth])
    assert list(combined.part_scores(noisy(1, 3, 8, 8))) == ["warmth", "contrast", "warmth 2", "warmth 3"]


def test_scores_of_a_batch_are_those_of_its_pictures():
    images, combined = noisy(3, 3, 8, 8), rewards.Combine(PARTS, WEIGHTS)
    torch.testing.assert_close(combined(images), torch.cat([combined(picture[None]) for picture in images]))


def test_each_of_ten_ascent_steps_raises_the_sum():
    images, combined = noisy(2, 3, 16, 16), rewards.Combine(PARTS, WEIGHTS)
    scores = [combined(images)]
    for _ in range(10):
        _, gradient = exact(combined, images)
        images = images + 0.002 * gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
        scores.append(combined(images))
    assert (torch.stack(scores).diff(dim=0) > 0).all()


def test_the_gradient_is_to_be_had_inside_inference_mode_and_is_float32_at_least():
    images, combined = noisy(2, 3, 8, 8), rewards.Combine(PARTS, WEIGHTS)
    expected = exact(combined, images)
    with torch.inference_mode():
        found = exact(combined, images.clone())
        raw = combined.part_scores(images)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(raw, combined.part_scores(images))
    assert exact(combined, images.half())[1].dtype == torch.float32


def test_half_precision_pictures_keep_small_gradients():
    """1e-9 a pixel is 0 in float16, whose least number is 6e-8."""

    def faint(images, prompts):
        return (images * 1e-9).sum(dim=(1, 2, 3))

    for reward in (faint, rewards.Combine([faint])):
        gradient = exact(reward, noisy(2, 3, 8, 8).half())[1]
        torch.testing.assert_close(gradient, torch.full((2, 3, 8, 8), 1e-9), rtol=1e-6, atol=0)
