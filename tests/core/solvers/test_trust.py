"""TrustAscent: its first steps in closed form, its spheres, what a rejection costs, what makes no difference."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from comfyui_dno import core
from comfyui_dno.core.solvers import trust
from tiny_models import SIGMAS, sample_map

START = 0.1
SHAPE = (2, 3, 6, 5)


def linear_map(shape=SHAPE, **settings):
    """D = 0.6 x, and pictures that are their latents: every part has a linear reward's own direction as gradient."""
    return core.SampleMap(lambda x, sigma: 0.6 * x, core.Schedule(SIGMAS["vp"]), shape, **settings)


def normal(*shape, seed=7):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(direction):
    return lambda images, prompts: (images * direction).flatten(1).sum(dim=1)


def mean_pixel(images, prompts):
    return images.flatten(1).mean(dim=1)


def noise_of(noise_map, seed=0):
    return noise_map.randn(seed).to(torch.float64)


def parts(noise):
    """(parts * B, n): each part of each picture."""
    return torch.cat([noise.initial[None], noise.injected]).flatten(2).flatten(0, 1)


def way(noise_map, reward, noise, solver=None, iterations=12, **settings):
    """The evaluations of a run."""
    seen = []
    core.optimize(
        noise_map, reward, noise, solver or core.TrustAscent(), iterations=iterations, floor=0.0,
        callback=lambda evaluation, best: seen.append(evaluation), **settings,
    )  # fmt: skip
    return seen


class NoPush:
    """A regulariser that is content with every noise."""

    def gradient(self, sample_map, noise, iteration=0):
        return noise.flat().new_zeros(noise.batch), noise.map(torch.zeros_like)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_first_step_is_the_closed_forms(power):
    noise_map, direction = linear_map(), normal(*SHAPE[1:])
    noise = noise_of(noise_map)
    problem = core.Problem(noise_map, linear(direction))
    solver = core.TrustAscent(power, push=NoPush()).fresh()
    moved, _ = solver.step(problem, noise)
    for z, found in zip(parts(noise), parts(moved), strict=True):
        unit = z / z.norm()
        g = direction.flatten() - (direction.flatten() @ unit) * unit
        spectrum = torch.fft.fftn(g.view(SHAPE[1:]))
        u = torch.fft.ifftn(spectrum / spectrum.abs() ** power).real.flatten()
        u = u - (u @ unit) * unit
        torch.testing.assert_close(found, z.norm() * (math.cos(START) * unit + math.sin(START) * u / u.norm()))


def test_an_improbable_noise_is_pushed_back_before_the_floor():
    """The reward says nothing here: what moves the noise is the push alone, and only below ln P = -1."""

    def indifferent(images, prompts):
        return 0 * mean_pixel(images, prompts)

    noise_map = linear_map((2, 3, 16, 16))
    noise = noise_of(noise_map, seed=2)
    noise = noise.with_flat(noise.flat() + torch.tensor([[0.0], [0.1]]))
    problem = core.Problem(noise_map, indifferent)
    before = problem.log_probabilities(noise)
    assert torch.minimum(*before)[0] > -1.0 > torch.minimum(*before)[1]
    moved, _ = core.TrustAscent().fresh().step(problem, noise)
    assert torch.equal(moved.item(0).flat(), noise.item(0).flat())
    assert (torch.stack(problem.log_probabilities(moved)) > torch.stack(before))[:, 1].all()


def test_no_part_ever_leaves_its_sphere():
    noise_map = sample_map()
    noise = noise_of(noise_map)
    last = way(noise_map, mean_pixel, noise)[-1].noise
    torch.testing.assert_close(parts(last).norm(dim=1), parts(noise).norm(dim=1))
    assert not torch.isclose(parts(last), parts(noise)).all(dim=1).any()


def test_a_rejected_trial_costs_no_backward_pass_and_shortens_the_next():
    """The reward falls wherever it goes, so each trial after the start is rejected and the next goes the same way."""
    calls, scored = [], []
    denoise = sample_map().denoise

    def counted(x, sigma):
        calls.append(x.requires_grad)
        return denoise(x, sigma)

    def falling(images, prompts):
        scored.append(images.requires_grad)
        return mean_pixel(images, prompts) - 1e3 * len(scored)

    noise_map = sample_map()
    noise_map.denoise = counted
    noise = noise_of(noise_map)
    seen = way(noise_map, falling, noise, iterations=3)
    assert calls.count(True) == 4 and len(calls) == 4 + 4 + 3 * 4 + 4  # the start's backward pass; trials; the check
    assert scored.count(True) == 1
    starts = parts(noise) / parts(noise).norm(dim=1, keepdim=True)
    for evaluation, angle in zip(seen[1:], (START, START * 0.5, START * 0.25), strict=True):
        cosine = (parts(evaluation.noise) * starts).sum(dim=1) / parts(noise).norm(dim=1)
        torch.testing.assert_close(cosine, torch.full_like(cosine, math.cos(angle)))
    assert [evaluation.gradient_norm is None for evaluation in seen] == [False, True, True, True]


def test_an_accepted_trial_lengthens_the_next_and_keeps_half_of_its_course():
    noise_map, direction = linear_map(), normal(*SHAPE[1:])
    noise = noise_of(noise_map)
    solver = core.TrustAscent(push=NoPush()).fresh()
    problem = core.Problem(noise_map, linear(direction))
    trials = [noise]
    for _ in range(2):
        trials.append(solver.step(problem, trials[-1])[0])
    fresh, _ = core.TrustAscent(push=NoPush()).fresh().step(problem, trials[1])
    for start, first, second, alone in zip(*map(parts, (*trials, fresh)), strict=True):
        length = start.norm()
        u = (alone - math.cos(START) * first) / (math.sin(START) * length)
        v = (first - math.cos(START) * start) / (math.sin(START) * length)
        v = u + 0.5 * (v - (v @ first) * first / length**2)
        angle = 1.6 * START
        expected = math.cos(angle) * first + math.sin(angle) * length * v / v.norm()
        torch.testing.assert_close(second, expected)


def test_after_rejections_it_tries_the_same_way_from_where_it_stood_and_without_momentum():
    """Scores are told what to be: start, a better trial, and two worse ones, the second better than the first."""
    told = iter([0.0, 0.0, 2.0, 2.0, -1.0, 1.0])  # each accepted noise is scored once more, for its gradient
    direction, noise_map = normal(*SHAPE[1:]), linear_map()

    def reward(images, prompts):
        return linear(direction)(images, prompts) * 1e-9 + next(told)

    noise = noise_of(noise_map)
    problem, solver = core.Problem(noise_map, reward), core.TrustAscent(push=NoPush()).fresh()
    trials = [noise]
    for _ in range(4):
        trials.append(solver.step(problem, trials[-1])[0])
    alone, _ = core.TrustAscent(push=NoPush()).fresh().step(core.Problem(noise_map, linear(direction)), trials[1])
    angles = (0.5 * 1.6 * START, 0.25 * 1.6 * START)
    for trial, angle in zip(trials[3:], angles, strict=True):
        for stood, found, without in zip(*map(parts, (trials[1], trial, alone)), strict=True):
            u = (without - math.cos(START) * stood) / math.sin(START)
            torch.testing.assert_close(found, math.cos(angle) * stood + math.sin(angle) * u)


def test_no_trial_turns_by_more_than_the_largest_angle(monkeypatch):
    """Every trial is accepted, so that eight of them would turn by 0.1 * 1.6^8 = 4.3."""
    monkeypatch.setattr(trust, "PROBABLE_ENOUGH", -math.inf)
    asked, noise_map = itertools.count(), linear_map((1, 4, 16, 16))

    def reward(images, prompts):
        count = next(asked)
        return linear(normal(4, 16, 16, seed=100 + count))(images, prompts) * 1e-9 + count

    seen = way(noise_map, reward, noise_of(noise_map), iterations=10)
    turned = [
        torch.nn.functional.cosine_similarity(parts(a.noise), parts(b.noise)).acos().max()
        for a, b in zip(seen, seen[1:], strict=False)
    ]
    assert max(turned) == pytest.approx(0.6) and turned[0] == pytest.approx(START)


def test_a_trial_of_higher_reward_and_improbable_noise_is_rejected():
    noise_map, direction = linear_map((1, 3, 16, 16)), normal(3, 16, 16)
    noise = noise_of(noise_map)
    problem = core.Problem(noise_map, linear(direction))
    solver = core.TrustAscent().fresh()
    solver.step(problem, noise)
    drifted = noise.map(lambda z: z + 0.5 * direction)
    assert (problem.evaluate(drifted).scores > problem.evaluate(noise).scores).all()
    assert torch.minimum(*problem.log_probabilities(drifted)) < math.log(0.01) + 1
    solver.step(problem, drifted)
    solver.step(problem, noise.map(lambda z: z + 0.45 * direction))  # more probable than that, less than the start
    assert torch.equal(solver._held.noise.flat(), noise.flat())


@pytest.mark.parametrize("scale", [1000.0, 1e-12])
def test_the_rewards_scale_makes_no_difference(scale):
    noise_map = sample_map()
    noise = noise_of(noise_map)
    once = way(noise_map, mean_pixel, noise)[-1].noise
    scaled = way(noise_map, lambda i, p: scale * mean_pixel(i, p), noise)[-1].noise
    torch.testing.assert_close(scaled.flat(), once.flat())


def test_another_picture_of_the_batch_makes_no_difference():
    """The first picture's reward falls wherever it goes; the other climbs as it would alone."""

    def reward(images, prompts):
        scores = mean_pixel(images, prompts)
        return torch.cat([-(scores[:1] - first).abs(), scores[1:]]) if len(images) == 2 else scores

    noise_map, alone = sample_map(batch=2), sample_map(batch=1)
    noise = noise_of(noise_map)
    first = mean_pixel(noise_map.sample(noise), None)[0]
    seen, expected = way(noise_map, reward, noise), way(alone, mean_pixel, noise.item(1))
    for both, one in zip(seen, expected, strict=True):
        torch.testing.assert_close(both.noise.item(1).flat(), one.noise.flat())
    assert seen[-1].scores[1] > seen[0].scores[1]


@pytest.mark.parametrize("part", ["all", "initial", "last 2"])
def test_what_is_not_searched_stays_where_it_is(part):
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., :3] = 1
    noise_map = sample_map(mask=mask, part=part)
    noise = noise_of(noise_map)
    moved = way(noise_map, mean_pixel, noise, iterations=4)[-1].noise
    searched = noise_map.active_entries(noise)
    assert torch.equal(moved.flat()[~searched], noise.flat()[~searched])
    assert (moved.flat() != noise.flat())[searched].all()
    torch.testing.assert_close(parts(moved).norm(dim=1), parts(noise).norm(dim=1))


def test_it_climbs_further_than_the_papers_settings_in_as_many_calls():
    noise_map = sample_map()
    noise = noise_of(noise_map)
    trust = way(noise_map, mean_pixel, noise, iterations=10)
    adam = way(noise_map, mean_pixel, noise, core.GradientAscent(), iterations=10)
    assert (trust[-1].scores > adam[-1].scores).all()


@pytest.mark.parametrize("estimator", [core.Hybrid1(q=16), core.Hybrid2(q=8)])
def test_estimated_gradients_feed_it(estimator):
    def reward(images, prompts):
        return mean_pixel(images.detach(), prompts)

    reward.differentiable = False
    noise_map = sample_map()
    seen = way(noise_map, reward, noise_of(noise_map), core.TrustAscent(estimator=estimator))
    assert (seen[-1].scores > seen[0].scores).all()


def test_a_picture_whose_score_breaks_ends_and_the_others_go_on():
    calls = []

    def breaks(images, prompts):
        calls.append(1)
        return mean_pixel(images, prompts) * torch.tensor([1.0, math.nan if len(calls) > 3 else 1.0])

    noise_map = sample_map()
    seen = way(noise_map, breaks, noise_of(noise_map))
    assert seen[-1].scores[0] > seen[0].scores[0] and seen[-1].noise.flat().isfinite().all()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"whitening": 1.5}, r"expected a number in \[0, 1\]"),
        ({"whitening": math.nan}, r"expected a number in \[0, 1\]"),
        ({"estimator": core.ZerothOrder()}, r"expected Exact\(\), Hybrid1\(..\) or Hybrid2"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        core.TrustAscent(**settings)


@pytest.mark.parametrize("floors", [{}, {"flatness": core.Drop(0.05)}])
def test_it_climbs_on_from_noises_that_pass_the_floors_alone(floors):
    def flatness(images, prompts):  # falls while the mean is climbed
        return -(images.flatten(1).mean(dim=1) - 0.1).square()

    noise_map = linear_map()
    noise = noise_of(noise_map)
    result = core.optimize(
        noise_map, mean_pixel, noise, core.TrustAscent(push=NoPush()), iterations=15, floor=0.0, watch=[flatness],
        floors=floors,
    )  # fmt: skip
    memory = result.noise.checkpoint.memory
    start, stands = (flatness(noise_map.sample(each), None) for each in (noise, memory["noise"]))
    assert (stands >= start - 0.05).all() == bool(floors)
    # It has come as far as the floor lets it, by steps that shrink before it.
    if floors:
        assert (stands < start - 0.04).all() and (memory["angle"].initial < 0.1).all()


def test_a_start_below_a_floor_is_climbed_from_all_the_same():
    noise_map = linear_map()
    seen = way(noise_map, mean_pixel, noise_of(noise_map), watch=[mean_pixel], floors={"mean_pixel": 9.0})
    assert (seen[-1].scores > seen[0].scores + 0.1).all()


def counting(noise_map):
    """The same map, and a list that gets an entry for each forward call of its network."""
    calls = []

    def denoise(x, sigma):
        calls.append(len(x))
        return noise_map.denoise(x, sigma)

    return replace(noise_map, denoise=denoise), calls


def test_a_tilted_run_is_its_first_trial_and_is_not_sampled_again_at_the_end():
    noise_map, calls = counting(linear_map())
    noise, reward = noise_of(noise_map), linear(normal(*SHAPE[1:]))
    tilt = way(noise_map, reward, noise, core.Tilt(0.3), iterations=1)
    of_tilt = len(calls)
    ours = way(noise_map, reward, noise, core.TrustAscent(tilt=0.3), iterations=1)
    assert len(calls) == 2 * of_tilt
    assert torch.equal(ours[1].noise.flat(), tilt[1].noise.flat()) and torch.equal(ours[1].scores, tilt[1].scores)


def test_it_climbs_on_from_an_accepted_tilt():
    noise_map, reward = linear_map(), linear(normal(*SHAPE[1:]))
    seen = way(noise_map, reward, noise_of(noise_map), core.TrustAscent(tilt=0.3, push=NoPush()), iterations=4)
    scores = torch.stack([evaluation.scores for evaluation in seen])
    assert (scores.diff(dim=0) > 0).all()
    # The second step is as long as a first one is: the tilt says nothing of how long steps may be.
    turned = torch.nn.functional.cosine_similarity(parts(seen[1].noise), parts(seen[2].noise))
    torch.testing.assert_close(turned.acos(), torch.full_like(turned, START), rtol=1e-5, atol=0)


def test_after_a_rejected_tilt_it_climbs_from_the_start():
    noise_map, reward = linear_map(), linear(normal(*SHAPE[1:]))
    noise = noise_of(noise_map)

    def guarded(images, prompts):  # the tilt goes beyond what the floor admits, small steps do not
        return -reward(images, prompts)

    plain = way(noise_map, reward, noise, core.TrustAscent(push=NoPush()), iterations=3)
    tilted_by = way(noise_map, reward, noise, core.Tilt(0.3), iterations=1)[1].scores - plain[0].scores
    drop = core.Drop((tilted_by.min() / 2).item())
    solver = core.TrustAscent(tilt=0.3, push=NoPush())
    seen = way(noise_map, reward, noise, solver, iterations=4, watch=[guarded], floors={"guarded": drop})
    assert torch.equal(seen[2].noise.flat(), noise.flat())
    torch.testing.assert_close(seen[3].noise.flat(), plain[1].noise.flat(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", [{"eta": 0.0}, {"part": "initial"}])
def test_where_nothing_can_be_tilted_it_begins_with_a_step(settings):
    noise_map, reward = linear_map(**settings), linear(normal(*SHAPE[1:]))
    noise = noise_of(noise_map)
    with_tilt, without = (way(noise_map, reward, noise, core.TrustAscent(tilt=k), iterations=3) for k in (0.3, 0.0))
    for one, other in zip(with_tilt, without, strict=True):
        assert torch.equal(one.noise.flat(), other.noise.flat())


def test_a_tilted_run_is_not_lost_where_the_search_ends_after_it():
    noise_map, reward = linear_map(), linear(normal(*SHAPE[1:]))
    noise, solver = noise_of(noise_map), core.TrustAscent(tilt=0.3)
    found = core.optimize(noise_map, reward, noise, solver, iterations=9, seconds=0.0, floor=0.0)
    tilted = core.optimize(noise_map, reward, noise, core.Tilt(0.3), iterations=1, floor=0.0)
    assert len(found.history.rows) == 2 and torch.equal(found.noise.flat(), tilted.noise.flat())


@pytest.mark.parametrize(("steps", "tilted"), [(15, False), (16, True)])
def test_by_itself_it_begins_with_a_tilted_run_where_there_are_many_steps(steps, tilted):
    sigmas = [*torch.linspace(4, 0.2, steps).tolist(), 0.0]
    noise_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule(sigmas), (1, 3, 4, 4))
    noise, reward = noise_of(noise_map), linear(normal(3, 4, 4))
    by_itself, told = (
        way(noise_map, reward, noise, core.TrustAscent(tilt=tilt), iterations=1) for tilt in (None, 0.3 * tilted)
    )
    assert torch.equal(by_itself[1].noise.flat(), told[1].noise.flat())
    assert core.default_solver().tilt is None
    # What ComfyUI is asked for: a tilt decodes while a step's graph waits.
    assert core.default_solver().guesses(steps) == tilted


def test_a_search_that_goes_on_judges_where_it_stands_by_its_own_reward():
    """The first reward is higher everywhere: by its scores no trial of the second would ever be accepted."""
    noise_map = linear_map()
    noise, solver = noise_of(noise_map), core.TrustAscent()
    first = core.optimize(
        noise_map, lambda images, prompts: mean_pixel(images, prompts) + 30, noise, solver, iterations=4
    )
    again = core.optimize(noise_map, mean_pixel, first.noise, solver, iterations=8)
    whole = core.optimize(noise_map, mean_pixel, noise, solver, iterations=12)
    assert again.history.column("score")[1:] == pytest.approx(whole.history.column("score")[5:], abs=1e-4)


def test_a_search_that_goes_on_without_a_floor_is_not_held_to_it():
    noise_map, floors = sample_map(), {"contrast": core.Drop(9.0)}

    def contrast(images, prompts):
        return images.flatten(1).std(dim=1)

    first = core.optimize(
        noise_map, mean_pixel, noise_of(noise_map), core.TrustAscent(), iterations=3, watch=[contrast], floors=floors
    )
    again = core.optimize(noise_map, mean_pixel, first.noise, core.TrustAscent(), iterations=6)
    assert max(again.history.column("score")) > first.history.column("score")[-1] + 1e-4


def test_the_noise_of_a_batch_in_which_a_picture_broke_is_saved_and_loaded(tmp_path):
    def breaking(images, prompts):
        return mean_pixel(images, prompts) * torch.tensor([math.nan, 1.0])

    noise_map = sample_map()
    found = core.optimize(noise_map, breaking, noise_of(noise_map), core.TrustAscent(), iterations=3)
    found.noise.save(tmp_path / "noise.safetensors")
    loaded = core.Noise.load(tmp_path / "noise.safetensors")
    assert torch.equal(loaded.initial, found.noise.initial)
    again = core.optimize(noise_map, breaking, loaded, core.TrustAscent(), iterations=2)
    assert again.history.column("score", 1)[-1] > found.history.column("score", 1)[0]


@pytest.mark.parametrize("kind", ["ended", "masked"])
def test_a_picture_of_which_nothing_is_searched_makes_no_rejected_trial_cost_a_backward_pass(kind):
    """The other picture's second trial fails, since its reward falls whenever it is asked again."""
    mask = torch.ones(2, 1, 6, 6)
    mask[0] = 0
    noise_map, asked, passes = sample_map(mask=mask if kind == "masked" else None), itertools.count(), []

    def falling(images, prompts):
        broken = torch.tensor([math.nan if kind == "ended" else 1.0, 1.0])
        return (mean_pixel(images, prompts) - 10 * next(asked)) * broken

    noise_map.on_step = lambda phase, index, total: phase == "backward" and index == 0 and passes.append(1)
    core.optimize(noise_map, falling, noise_of(noise_map), core.TrustAscent(), iterations=5)
    assert len(passes) == 1


def test_a_tilted_run_that_a_stop_cuts_off_from_its_trial_is_kept():
    noise_map = sample_map()
    rows = []
    solver = core.TrustAscent(tilt=0.3)
    found = core.optimize(
        noise_map, mean_pixel, noise_of(noise_map), solver, iterations=5, stop=lambda: bool(rows),
        callback=lambda evaluation, best: rows.append(1),
    )  # fmt: skip
    start = core.optimize(noise_map, mean_pixel, noise_of(noise_map), iterations=0)
    assert found.history.stopped == "stopped by hand"
    assert (mean_pixel(found.images, None) > mean_pixel(start.images, None)).all()
