"""Fast: the climb is TrustAscent's on the coarse map, the picture is made anew with all steps, and nothing is lost."""

import itertools
import time
from dataclasses import replace

import pytest
import torch
from comfyui_dno import core
from comfyui_dno.core.solvers import fast
from comfyui_dno.core.solvers.fast import grid_of, strays
from tiny_models import TinyDenoiser, decode

SHAPE = (2, 3, 8, 8)
SIGMAS = {
    "vp": (9.0, 7.0, 5.0, 3.0, 2.2, 1.6, 1.0, 0.6, 0.3, 0.0),
    "flow": (1.0, 0.95, 0.85, 0.75, 0.6, 0.5, 0.35, 0.2, 0.1, 0.0),
    "flow_rf": (1.0, 0.95, 0.85, 0.75, 0.6, 0.5, 0.35, 0.2, 0.1, 0.0),
}
STEPS = 9
NETWORK = TinyDenoiser()
SOLVER = core.Fast(calls=44, coarse_steps=4)  # 5 updates


def steady(x, sigma):
    """A denoised that changes little from step to step, as a trained model's does."""
    return 0.3 * NETWORK(x, torch.ones_like(sigma))


def fine_map(family="vp", shape=SHAPE, denoise=None, **settings):
    return core.SampleMap(
        denoise or steady, core.Schedule(SIGMAS[family], family), shape, decode=decode, **settings
    )  # fmt: skip


def noise_of(noise_map, seed=0):
    return noise_map.randn(seed).to(torch.float64)


def mean_pixel(images, prompts):
    return images.flatten(1).mean(dim=1)


def contrast(images, prompts):
    return images.flatten(1).std(dim=1)


contrast.name = "contrast"


def rising():
    """A reward that is higher each time it is asked, so that every trial is accepted."""
    asked = itertools.count()
    return lambda images, prompts: mean_pixel(images, prompts) + 1e3 * next(asked)


def run(noise_map, reward=mean_pixel, noise=None, solver=SOLVER, iterations=1, **settings):
    noise = noise_of(noise_map) if noise is None else noise
    return core.optimize(noise_map, reward, noise, solver, iterations=iterations, **settings)


def scores(result, row):
    return torch.tensor(result.history.rows[row]["score"], dtype=torch.float64)


@pytest.mark.parametrize("family", SIGMAS)
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_it_is_trust_ascents_climb_on_the_coarse_map_lifted(family, eta):
    noise_map = fine_map(family, eta=eta)
    noise = noise_of(noise_map, seed=1)
    found = run(noise_map, noise=noise)
    coarse = core.CoarseMap.of(noise_map, grid_of(STEPS, 4))
    climbed = run(coarse, noise=coarse.down(noise), solver=core.TrustAscent(), iterations=5)
    expected, latent = coarse.lift(climbed.noise, noise)
    torch.testing.assert_close(found.noise.flat(), expected.flat())
    torch.testing.assert_close(found.latent, climbed.latent)
    assert torch.equal(noise_map.latent(found.noise), found.latent)
    assert (scores(found, 1) > scores(found, 0)).all() and not found.history.warnings


def test_it_costs_the_calls_of_the_climb_and_two_runs_and_the_check():
    calls = []

    def denoise(x, sigma):
        calls.append(float(sigma[0]))
        denoised = steady(x, sigma)
        if denoised.requires_grad:
            denoised.register_hook(lambda gradient: calls.append(-1.0))
        return denoised

    run(fine_map(denoise=denoise, keep_graphs=True))
    sigmas, grid = list(SIGMAS["vp"][:-1]), grid_of(STEPS, 4)
    start, climb, lift, check = calls[:9], calls[9:-18], calls[-18:-9], calls[-9:]
    assert start == lift == check == sigmas
    assert len(climb) <= 44 and set(climb) == {-1.0, *(sigmas[index] for index in grid[:-1])}


def test_no_more_steps_than_coarse_ones_are_climbed_on_themselves():
    """As TrustAscent does, also where nothing could be lifted: without injected noise."""
    for settings in ({}, {"eta": 0.0}, {"part": "initial"}):
        noise_map = fine_map(**settings)
        found = run(noise_map, solver=core.Fast(calls=63, coarse_steps=12))
        expected = run(noise_map, solver=core.TrustAscent(), iterations=3)
        assert torch.equal(found.noise.flat(), expected.noise.flat())
        assert scores(found, 1).tolist() == expected.history.best_row["score"]


def test_a_seed_begins_the_climb_near_its_own_picture():
    """Of 10 seeds' coarse starts nearly each (9; by chance it were 1) is nearest to its own fine picture."""
    fine = core.load_embedded(["red owl"] * 10, steps=20)
    noise = fine.randn(0)
    coarse = core.CoarseMap.of(fine, grid_of(20, 5))
    far = torch.cdist(coarse.latent(coarse.down(noise)).flatten(1), fine.latent(noise).flatten(1))
    assert (far.argmin(dim=1) == torch.arange(10)).sum() >= 8


def test_the_pictures_of_a_batch_are_searched_alone():
    both = run(fine_map())
    for item in range(2):
        alone = run(fine_map(shape=(1, *SHAPE[1:])), noise=noise_of(fine_map()).item(item))
        torch.testing.assert_close(both.noise.item(item).flat(), alone.noise.flat())


def test_further_iterations_climb_on_all_steps_and_go_on_from_a_checkpoint(tmp_path):
    noise_map = fine_map()
    whole = run(noise_map, iterations=3)
    assert (scores(whole, 3) > scores(whole, 1)).all()
    first = run(noise_map, iterations=1)
    for more in (1, 1):
        first.noise.save(tmp_path / "noise.safetensors")
        first = run(noise_map, noise=core.Noise.load(tmp_path / "noise.safetensors"), iterations=more)
    torch.testing.assert_close(first.noise.flat(), whole.noise.flat())


def test_who_stops_it_in_the_climb_gets_the_picture_that_was_shown():
    calls, shown = [], []

    def preview(stage, evaluation, best):
        shown.append((stage, best.scores.clone()))

    noise_map = fine_map(on_step=lambda *stage: calls.append(stage))
    found = run(noise_map, preview=preview, stop=lambda: len(shown) == 3)
    assert [stage for stage, _ in shown] == [f"trial {trial} of 5, on 4 of 9 steps" for trial in range(3)]
    torch.testing.assert_close(found.history.best_row["score"], shown[-1][1].tolist())
    assert (torch.tensor(found.history.best_row["score"]) > scores(found, 0)).all()
    assert "the climb on 4 steps ended after 3 of 5 trials: stopped by hand" in found.history.warnings


def test_a_spent_time_budget_ends_the_climb_and_leaves_time_for_the_lift(monkeypatch):
    """Each look at the clock finds it a second later."""
    clock = itertools.count(time.perf_counter())
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    found = run(fine_map(), seconds=20)
    assert "trials: the time budget of 20 s is spent" in found.history.warnings[0]
    assert (scores(found, -1) > scores(found, 0)).all()
    untouched = run(fine_map(), seconds=1)
    assert len(untouched.history.rows) == 1 and torch.equal(untouched.noise.flat(), noise_of(fine_map()).flat())


def test_it_stops_at_a_target():
    start = run(fine_map(), iterations=0)
    aim = scores(start, 0).max().item()
    at_once = run(fine_map(), target=aim - 1)
    assert len(at_once.history.rows) == 1
    soon, never = run(fine_map(), target=aim + 0.003), run(fine_map(), target=9.0)
    assert (scores(soon, 1) >= aim + 0.003).all() and (scores(soon, 1) < scores(never, 1)).all()
    assert "every picture reached the target" in soon.history.warnings[0]


def test_floors_hold_in_the_climb_and_name_what_they_held():
    start = run(fine_map(), iterations=0)
    least = contrast(start.images, None)
    free = run(fine_map(), reward=lambda images, prompts: -contrast(images, prompts))
    assert (contrast(free.images, None) < least - 0.003).all()
    held = run(
        fine_map(), reward=lambda images, prompts: -contrast(images, prompts), watch=[contrast],
        floors={"contrast": core.Drop(0.003)},
    )  # fmt: skip
    found = contrast(held.images, None)
    assert (found >= least - 0.003).all() and (found < least).all()
    assert held.history.held == [["contrast"], ["contrast"]]


@pytest.mark.parametrize("coarse_steps", [4, STEPS])
@pytest.mark.parametrize("error, words", [
    (KeyboardInterrupt(), "interrupted"), (RuntimeError("CUDA out of memory. Tried to allocate"), "out of memory"),
    (ConnectionError("the server was busy"), "the reward failing failed: ConnectionError: the server was busy"),
])  # fmt: skip
def test_what_a_climb_has_found_is_kept_where_it_is_cut_off(error, words, coarse_steps):
    asked = itertools.count()

    def failing(images, prompts):
        if next(asked) == 7:
            raise error
        return mean_pixel(images, prompts)

    found = run(fine_map(), reward=failing, solver=core.Fast(calls=100, coarse_steps=coarse_steps), iterations=3)
    start = run(fine_map(), iterations=0)
    assert (mean_pixel(found.images, None) > mean_pixel(start.images, None) + 0.002).all()
    trials = (100 - coarse_steps) // (2 * coarse_steps)
    assert any(f"of {trials} trials: {words}" in each for each in found.history.warnings)
    assert len(found.history.rows) == (1 if words == "interrupted" else 4)
    assert found.history.stopped == ("interrupted" if words == "interrupted" else "3 iterations done")


@pytest.mark.parametrize("coarse_steps", [4, STEPS])
def test_what_a_climb_has_found_is_kept_where_the_reward_never_works_again(coarse_steps):
    asked = itertools.count()

    def failing(images, prompts):
        if next(asked) >= 7:
            raise ConnectionError("the server is gone")
        return mean_pixel(images, prompts)

    found = run(fine_map(), reward=failing, solver=core.Fast(calls=100, coarse_steps=coarse_steps), iterations=1)
    start = run(fine_map(), iterations=0)
    assert (mean_pixel(found.images, None) > mean_pixel(start.images, None) + 0.002).all()
    assert any("of 12 trials: the reward failing failed" in each or "of 5 trials" in each
               for each in found.history.warnings)  # fmt: skip
    with pytest.raises(RuntimeError, match="the server is gone"):
        found.whole()


@pytest.mark.parametrize("answers", range(3, 40, 4))
def test_what_a_climb_has_found_is_kept_where_a_watched_reward_with_a_floor_fails(answers):
    """In the climb, or as late as at the picture that was lifted."""
    left = [answers]

    def watched(images, prompts):
        left[0] -= 1
        if left[0] < 0:
            raise KeyError("tokens")
        return torch.zeros(len(images))

    found = run(fine_map(), solver=core.Fast(calls=60, coarse_steps=4), watch=(watched,), floors={"watched": -1.0})
    first, best = found.history.rows[0]["score"], found.history.best_row["score"]
    assert found.failure is None or "the reward watched failed: KeyError: 'tokens'" in str(found.failure)
    assert all(b > a for a, b in zip(first, best, strict=True))


def test_a_reward_that_loses_the_gradient_is_refused():
    with pytest.raises(RuntimeError, match="lost the gradient"):
        run(fine_map(), reward=lambda images, prompts: mean_pixel(images, prompts).detach())


def test_another_error_in_the_climb_is_raised():
    asked = itertools.count()

    def failing(x, sigma):
        if next(asked) == 20:
            raise RuntimeError("a shape")
        return steady(x, sigma)

    with pytest.raises(RuntimeError, match="a shape"):
        run(fine_map(denoise=failing))
    assert next(asked) == 21


def test_what_the_climb_learns_of_memory_the_fine_map_knows():
    noise_map = fine_map(memory=1.0)
    run(noise_map)
    assert set(noise_map.plan.sizes) == {"step", "decoder"} and noise_map.plan.kept > 0


def test_a_floor_that_the_lifted_picture_would_miss_by_a_hair_is_kept_clear_of():
    """The climb presses against the floor; here each further score is a little lower, as by rounding."""
    asked = itertools.count()

    def drifting(images, prompts):
        return contrast(images, prompts) - 1e-7 * next(asked)

    floors = {"drifting": core.Drop(0.0003)}
    noise_map, solver = fine_map(shape=(6, 3, 8, 8)), core.Fast(calls=200, coarse_steps=4)
    found = run(noise_map, solver=solver, watch=[drifting], floors=floors)
    before, after = (found.history.rows[row]["watch/drifting"] for row in (0, -1))
    assert (scores(found, 1) > scores(found, 0)).all()
    assert all(0.00028 < start - end <= 0.0003 for start, end in zip(before, after, strict=True)), (before, after)


def test_entries_that_are_not_searched_keep_their_noise():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    noise_map = fine_map(mask=mask)
    found = run(noise_map).noise
    own = noise_of(noise_map)
    for kept, given in ((found.initial, own.initial), (found.injected, own.injected)):
        assert torch.equal(kept[..., 4:], given[..., 4:]) and not torch.isclose(kept[..., :4], given[..., :4]).all()


def test_an_x_t_of_zeros_stays_and_the_injected_noises_are_searched():
    noise_map = fine_map(start=lambda noise: noise + torch.linspace(-5, 5, 8, dtype=torch.float64))
    noise = replace(noise_of(noise_map), initial=torch.zeros(SHAPE, dtype=torch.float64))
    found = run(noise_map, noise=noise, floor=0.0)
    assert not found.noise.initial.any() and (scores(found, 1) > scores(found, 0)).all()


def test_a_model_that_changes_its_mind_too_much_is_climbed_on_twice_as_many_steps():
    """Of two pictures one strays: the other's noise is what it would be alone, though the finer climb scored higher."""
    restless = torch.tensor([0.0, 40.0]).view(2, 1, 1, 1)

    def denoise(x, sigma):
        wild = restless[:1] if len(x) == 1 else restless
        return steady(x, sigma) + wild * torch.sin(3 * sigma.view(-1, 1, 1, 1))

    settings = {"solver": core.Fast(calls=72, coarse_steps=4), "floor": 0.0}
    noise_map, one = fine_map(denoise=denoise), fine_map(shape=(1, *SHAPE[1:]), denoise=denoise)
    found = run(noise_map, rising(), **settings)
    assert "the noise lifted from 4 steps is not as true noise is: the climb is made on more" in found.history.warnings
    alone = run(one, rising(), noise_of(noise_map).item(0), **settings)
    assert not alone.history.warnings
    torch.testing.assert_close(found.noise.item(0).flat(), alone.noise.flat())


def test_what_p_would_refuse_is_climbed_for_on_twice_as_many_steps(monkeypatch):
    """As of large latents, whose P is stricter than what noises are judged by alone; not where P refuses the start."""

    def denoise(x, sigma):
        return steady(x, sigma) + 0.4 * torch.sin(3 * sigma.view(-1, 1, 1, 1))

    monkeypatch.setattr(fast, "strays", lambda sample_map, noise: torch.zeros(noise.batch, dtype=torch.bool))
    more = "the noise lifted from 4 steps is not as true noise is: the climb is made on more"
    warned = {}
    for floor in (0.0, core.P_SUSPICIOUS, 0.9):
        found = run(fine_map(denoise=denoise), solver=core.Fast(calls=72, coarse_steps=4), floor=floor)
        warned[floor] = more in found.history.warnings
        assert floor != core.P_SUSPICIOUS or (scores(found, 1) > scores(found, 0)).all()
    assert warned == {0.0: False, core.P_SUSPICIOUS: True, 0.9: False}


def test_a_noise_strays_by_its_length_or_for_want_of_randomness_and_only_where_it_is_searched():
    """Of 100 true noises of 9 parts none does."""
    noise_map = fine_map(shape=(100, *SHAPE[1:]))
    assert not strays(noise_map, noise_of(noise_map)).any()
    own, mask = noise_of(fine_map()), torch.ones(1, 1, 8, 8)
    mask[..., 7] = 0
    for change in (lambda w: 1.8 * w, torch.ones_like):
        injected = own.injected.clone()
        injected[4, 1] = change(injected[4, 1])
        assert strays(fine_map(), replace(own, injected=injected)).tolist() == [False, True]
    kept = own.injected.clone()
    kept[4, 1, :, :, 7] = 9.0
    assert not strays(fine_map(mask=mask), replace(own, injected=kept)).any()


def test_a_large_noise_strays_by_as_much_as_a_small_one_and_not_by_what_a_lift_adds():
    """A lift makes the last injected noise 13 % longer squared, by which one of 65,536 numbers is no true noise."""
    large = fine_map(shape=(2, 4, 128, 128))
    own = noise_of(large)
    lengthened = own.injected.clone()
    lengthened[4, 0] *= 1.13**0.5
    lengthened[4, 1] *= 1.5**0.5
    assert strays(large, replace(own, injected=lengthened)).tolist() == [False, True]


def test_the_stages_of_a_run_are_known_beforehand():
    """Where every trial is accepted; what is rejected costs less."""
    stages = []
    for iterations in (0, 1, 3):
        stages.clear()
        noise_map = fine_map(on_step=lambda *stage: stages.append(stage))
        run(noise_map, rising(), iterations=iterations)
        assert len(stages) == core.stages(noise_map, SOLVER, iterations)


def test_the_graphs_of_all_steps_are_kept_only_where_it_climbs_on_all():
    """What a node must find memory for: the graphs that are alive together, of calls that were differentiated."""
    alive, most = set(), [0]

    class Graph(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.token = Token()
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    class Token:
        def __init__(self):
            alive.add(id(self))
            most[0] = max(most[0], len(alive))

        def __del__(self):
            alive.discard(id(self))

    noise_map = fine_map(
        denoise=lambda x, sigma: Graph.apply(steady(x, sigma)) if x.requires_grad else steady(x, sigma)
    )
    for iterations in (1, 2):
        most[0] = 0
        run(replace(noise_map, keep_graphs=True), iterations=iterations)
        assert most[0] <= SOLVER.graphs(STEPS, iterations) and most[0] == (4 if iterations == 1 else STEPS)


def test_the_grid_ends_with_a_step_of_the_fine_map_and_never_stands_still():
    assert grid_of(50, 7) == (0, 12, 22, 32, 40, 46, 49, 50)
    for steps, coarse in itertools.product(range(1, 40), range(2, 40)):
        grid = grid_of(steps, coarse)
        assert grid[0] == 0 and grid[-2:] == (steps - 1, steps)
        assert len(grid) == min(steps, coarse) + 1 and all(a < b for a, b in itertools.pairwise(grid))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"calls": 14}, "calls is 14; expected at least 15: forward and backward through 5 coarse steps"),
        ({"calls": 2.5}, "calls is 2.5"),
        ({"coarse_steps": 1}, "coarse_steps is 1"),
        ({"whitening": 2.0}, "whitening is 2.0"),
        ({"estimator": core.ZerothOrder()}, "no gradient by the pictures"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        core.Fast(**settings)


@pytest.mark.parametrize("settings", [{"eta": 0.0}, {"part": "initial"}, {"part": "first 3"}])
def test_a_lift_needs_the_noise_of_every_step(settings):
    with pytest.raises(ValueError, match="Expected eta > 0, and part 'all' or 'injected'"):
        run(fine_map(**settings))
