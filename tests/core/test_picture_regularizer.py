"""The terms on the picture against closed forms of linear denoisers, and their gradients against differences."""

import weakref
from dataclasses import replace

import pytest
import torch
from comfyui_dno import core, rewards
from comfyui_dno.core.belief import fixed_noises
from tiny_models import SIGMAS, TinyDenoiser, sample_map

WITH, WITHOUT = 0.3, 0.9
"""What a linear denoiser multiplies x by, with the prompt and without it."""
RATIOS, NOISES, KINDS = (2.0, 4.0), 2, ("belief", "loss", "start")
ODD = (6, 6)
"""Height and width of the latents."""


def linear_map(family="vp", batch=2, without=True, **settings):
    def unguided(x, sigma):
        return WITH * x, WITHOUT * x if without else None

    schedule = core.Schedule(SIGMAS[family], family)
    return core.SampleMap(lambda x, sigma: WITH * x, schedule, (batch, 3, *ODD), unguided=unguided, **settings)


def tiny_map(family="vp", **settings):
    """A random network's map, float64, which knows another network as the one without the prompt."""
    with_prompt, without = TinyDenoiser(seed=0), TinyDenoiser(seed=1)
    settings = {"unguided": lambda x, sigma: (with_prompt(x, sigma), without(x, sigma)), **settings}
    return sample_map(family, finish=lambda x: 1.5 * x, **settings)


def regularizer(kind, gamma=0.7, **settings):
    return core.PictureRegularizer(kind, gamma, ratios=RATIOS, noises=NOISES, samples=3, **settings)


def latents(batch=2, seed=0):
    return torch.randn((batch, 3, *ODD), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def start(noise_map):
    return noise_map.randn(0).to(torch.float64)


def asked(family):
    """alpha, sigma and e of every call of the network."""
    for ratio in RATIOS:
        alpha, sigma = (1.0, ratio) if family == "vp" else (1 / (1 + ratio), ratio / (1 + ratio))
        yield from ((alpha, sigma, e) for e in fixed_noises(latents(), NOISES, seed=1))


def error_of(x0, factor, alpha, sigma, e):
    """D - x0 of the linear denoiser."""
    return (factor * alpha - 1) * x0 + factor * sigma * e


def log_loss(x0, factor, family):
    """The mean of ln loss over the calls, and its gradient by x0, written plainly."""
    values, gradients = [], []
    for alpha, sigma, e in asked(family):
        error = error_of(x0, factor, alpha, sigma, e)
        square = error.square().sum(dim=(1, 2, 3))
        values.append((square / x0[0].numel() / sigma**2).log())
        gradients.append(2 * (factor * alpha - 1) * error / square.view(-1, 1, 1, 1))
    return torch.stack(values).mean(dim=0), torch.stack(gradients).mean(dim=0)


def ordinary_of(whole):
    """The ordinary samples that a map's next belief draws: they are kept here while it draws them."""
    kept = []
    return replace(whole, finish=lambda x: kept.append(x.double()) or x), kept


@pytest.mark.parametrize("family", ["vp", "flow", "flow_rf"])
def test_the_loss_is_that_of_the_closed_form_beside_ordinary_samples(family):
    whole, kept = ordinary_of(linear_map(family))
    value, gradient = regularizer("loss").of(whole, start(whole)).gradient(latents())
    usual = torch.stack([log_loss(x0, WITH, family)[0] for x0 in torch.cat(kept).unflatten(0, (3, 2))]).mean(dim=0)
    ours, slope = log_loss(latents(), WITH, family)
    torch.testing.assert_close(value, 0.7 * (usual - ours))
    torch.testing.assert_close(gradient, -0.7 * slope)


@pytest.mark.parametrize("family", ["vp", "flow", "flow_rf"])
def test_the_belief_is_the_evidence_of_the_closed_form_in_units_of_ordinary_samples(family):
    whole, kept = ordinary_of(linear_map(family))
    value, gradient = regularizer("belief").of(whole, start(whole)).gradient(latents())

    def evidence(x0):
        return [b - a for a, b in zip(log_loss(x0, WITH, family), log_loss(x0, WITHOUT, family), strict=True)]

    usual = torch.stack([evidence(x0)[0] for x0 in torch.cat(kept).unflatten(0, (3, 2))]).mean(dim=0)
    ours, slope = evidence(latents())
    assert (usual > 0.1).all()
    torch.testing.assert_close(value, 0.7 * ours / usual)
    torch.testing.assert_close(gradient, 0.7 * slope / usual.view(-1, 1, 1, 1))


@pytest.mark.parametrize("family", ["vp", "flow", "flow_rf"])
def test_the_start_keeps_what_the_model_makes_of_the_picture_as_it_was(family):
    whole = linear_map(family)
    noise, x0 = start(whole), latents()
    before = whole.latent(noise)
    value, gradient = regularizer("start").of(whole, noise).gradient(x0)
    losses = [error_of(before, WITH, *ask).square().sum(dim=(1, 2, 3)) for ask in asked(family)]
    factor = sum((WITH * alpha) ** 2 / loss for (alpha, *_), loss in zip(asked(family), losses, strict=True)) / 4
    torch.testing.assert_close(value, -0.7 * factor * (x0 - before).square().sum(dim=(1, 2, 3)))
    torch.testing.assert_close(gradient, -1.4 * factor.view(-1, 1, 1, 1) * (x0 - before))


def test_the_belief_regularised_is_the_belief_watched_but_for_where_the_logarithm_is_taken():
    whole = linear_map()
    # Of one noise the mean over noises is it. Both are asked with the noises of the regulariser.
    ours = replace(regularizer("belief", gamma=1.0), noises=1, samples=2)
    term, belief = ours.of(whole, start(whole)), core.Belief(RATIOS, noises=400, samples=2).of(whole)
    many = replace(ours, noises=400).of(whole, start(whole))
    # The logarithm of 108 numbers' mean square and of 400 times as many: half the variance, 1 / 108 at most.
    torch.testing.assert_close(many.value(latents()), belief(latents()), atol=0.02, rtol=0)
    torch.testing.assert_close(term.value(latents()), belief(latents()), atol=0.2, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("family", ["vp", "flow"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_differences(kind, family, masked):
    mask = torch.ones(1, 1, *ODD)
    mask[..., :2] = 0
    whole = tiny_map(family, mask=mask if masked else None)
    term, x0 = regularizer(kind).of(whole, start(whole)), latents()
    value, gradient = term.gradient(x0)
    torch.testing.assert_close(value, term.value(x0))
    direction, step = latents(seed=1), 1e-5
    expected = (term.value(x0 + step * direction) - term.value(x0 - step * direction)) / (2 * step)
    # Central differences in float64: about step^2, and 1e-16 / step of rounding.
    torch.testing.assert_close((gradient * direction).sum(dim=(1, 2, 3)), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_mask_keeps_does_not_count(kind):
    mask = torch.ones(1, 1, *ODD)
    mask[..., :2] = 0
    whole = linear_map(mask=mask)  # each entry of the denoised is of that entry alone
    term = regularizer(kind).of(whole, start(whole))
    value, gradient = term.gradient(latents())
    changed = latents()
    changed[..., :2] += 3
    torch.testing.assert_close(term.value(changed), value)
    assert not gradient[..., :2].any() and gradient[..., 2:].all()


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_a_batch_are_independent(kind):
    three = latents(batch=3)
    together = tiny_map(batch=3)
    noise = start(together)
    found = regularizer(kind).of(together, noise).gradient(three)
    alone = tiny_map(batch=1)
    for item in range(3):
        one = core.Noise(noise.initial[item : item + 1], noise.injected[:, item : item + 1])
        for ours, expected in zip(
            found, regularizer(kind).of(alone, one).gradient(three[item : item + 1]), strict=True
        ):
            torch.testing.assert_close(ours[item], expected[0])


def test_without_a_model_without_the_prompt_the_belief_is_the_loss():
    found = []
    for kind, without in (("belief", False), ("loss", True)):
        whole = linear_map(without=without)
        found.append(regularizer(kind).of(whole, start(whole)).gradient(latents()))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


class Marked(torch.autograd.Function):
    """The identity; its node of the graph holds a mark, which is gone when the graph is."""

    @staticmethod
    def forward(ctx, x, marks):
        ctx.mark = torch.nn.Identity()
        marks.append(weakref.ref(ctx.mark))
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


@pytest.mark.parametrize("kind", KINDS)
def test_one_calls_graph_is_in_memory_at_a_time_and_a_call_is_of_the_batch_alone(kind):
    whole, marks, rows = tiny_map(), [], []

    def unguided(x, sigma):
        if not x.requires_grad:
            return whole.unguided(x, sigma)
        assert not any(mark() is not None for mark in marks)
        rows.append(len(x))
        return whole.unguided(Marked.apply(x, marks), sigma)

    regularizer(kind).of(replace(whole, unguided=unguided), start(whole)).gradient(latents())
    assert rows == [2] * len(RATIOS) * NOISES == [2] * len(marks)


class Asked:
    """`unguided` of the tiny map, which counts its calls for gradients and all of them."""

    def __init__(self):
        self.unguided, self.calls, self.with_graph = tiny_map().unguided, 0, 0

    def __call__(self, x, sigma):
        self.calls += 1
        self.with_graph += x.requires_grad
        return self.unguided(x, sigma)


def climbed(kind, reward=None, **settings):
    """Return the scores of a search by TrustAscent, what it asked about pictures, and the map."""
    unguided = Asked()
    noise_map = replace(tiny_map(), unguided=unguided, **settings)
    reward, solver = reward or rewards.Contrast(), core.TrustAscent()
    result = core.optimize(noise_map, reward, start(noise_map), solver, regularizer(kind), iterations=16)
    return [row["score"] for row in result.history.rows], unguided, noise_map


@pytest.mark.parametrize("kind", KINDS)
def test_where_graphs_are_kept_the_model_is_asked_once_about_the_picture_of_a_trial_and_the_run_is_the_same(kind):
    (expected, again, _), (found, once, _) = (climbed(kind, memory=memory) for memory in ("step", "fast"))
    assert found == expected
    each, trials = len(RATIOS) * NOISES, 16
    accepted = again.with_graph / each  # of which each was asked a second time
    assert 1 < accepted < trials and once.with_graph == trials * each
    assert once.calls == again.calls - again.with_graph


def test_as_many_graphs_are_kept_as_there_is_room_for_beside_those_of_the_steps():
    noise_map, graphs = tiny_map(), {}
    term = regularizer("loss").of(noise_map, start(noise_map))
    expected = term.gradient(latents())
    for spare in (-1, 0, 3, 9):
        noise_map.plan.kept = noise_map.network_calls + spare
        value = term.value(latents(), graphs)
        assert len(graphs) == min(max(spare, 0), len(RATIOS) * NOISES)
        found = term.gradient(latents(), graphs)
        assert not graphs and torch.equal(value, found[0])
        assert all(map(torch.equal, found, expected))


def test_graphs_that_were_kept_of_a_picture_make_room_for_the_reward():
    judged = []

    class Short(rewards.Contrast):
        def __call__(self, images, prompts=None):
            judged.append(images.requires_grad)
            if judged == [False, True]:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return super().__call__(images, prompts)

    expected, again, _ = climbed("loss", memory="step")
    found, asked_again, noise_map = climbed("loss", Short(), memory="fast")
    assert found == expected and noise_map.plan.kept == 0
    # Kept of the first trial alone, and in vain.
    assert asked_again.with_graph == again.with_graph + len(RATIOS) * NOISES


@pytest.mark.parametrize("kind", ["belief", "loss"])
def test_small_gradients_survive_half_precision(kind):
    def in_half(x, sigma):
        halved = x.half()
        return (WITH * halved).float(), (WITHOUT * halved).float()

    whole = linear_map()
    loud = core.PictureRegularizer(kind, ratios=(1e4,), noises=1, samples=1)
    x0 = latents().float()
    value, expected = loud.of(whole, start(whole)).gradient(x0)
    found = loud.of(replace(whole, unguided=in_half), start(whole)).gradient(x0)[1]
    assert expected.abs().amax() > 0
    # x of size 1e4 is rounded to 11 bits, and so is the gradient; at this level x0 itself drowns in it.
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3 * expected.abs().amax().item())


def test_a_network_that_changes_in_place_what_its_gradient_needs_is_differentiated_all_the_same():
    def changing(x, sigma):
        y = x * 0.1
        denoised = y * y
        y.add_(1)
        return denoised, None

    found = []
    for unguided in (changing, lambda x, sigma: (0.01 * x * x, None)):
        whole = linear_map(without=False)
        found.append(regularizer("loss").of(replace(whole, unguided=unguided), start(whole)).gradient(latents())[1])
    torch.testing.assert_close(*found)


def test_a_model_that_loses_the_gradient_is_named():
    @torch.no_grad()
    def lost(x, sigma):
        return WITH * x, WITHOUT * x

    whole = replace(linear_map(), unguided=lost)
    with pytest.raises(RuntimeError, match="model, asked about the picture, gave a result without gradient"):
        regularizer("loss").of(whole, start(whole)).gradient(latents())


@pytest.mark.parametrize("beside", [None, core.ProbabilityRegularizer(gamma=2.0, permutations=4)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_by_the_noise_is_that_of_the_sum_of_reward_and_both_terms(kind, beside):
    whole = tiny_map()
    noise = start(whole)
    problem = core.Problem(
        whole, rewards.Contrast(), beside, picture=regularizer(kind, gamma=3.0).of(whole, start(whole))
    )
    noise = noise.map(lambda z: 1.3 * z)  # at the start the term of that name has no gradient
    assert (problem.check_gradient(noise, step=1e-5) < 1e-4).all()


def test_the_gradient_goes_back_through_another_sampler_as_well():
    def euler(model, x, sigmas, noise_sampler, callback):
        for sigma, sigma_next in zip(sigmas, sigmas[1:], strict=False):
            denoised = model(x, sigma.expand(len(x)))
            callback({"denoised": denoised})
            x = denoised + sigma_next / sigma * (x - denoised)
        return x

    plain = tiny_map()
    traits = core.try_sampler(euler, plain.schedule.sigmas)
    stock = core.SamplerMap(
        plain.denoise, plain.schedule, plain.shape, decode=plain.decode, unguided=plain.unguided, sampler=euler,
        traits=traits,
    )  # fmt: skip
    noise = start(stock)
    picture = regularizer("start", gamma=3.0).of(stock, noise)
    problem = core.Problem(stock, rewards.Contrast(), picture=picture)
    assert (problem.check_gradient(noise.map(lambda z: 1.3 * z), step=1e-5) < 1e-4).all()


def searched(solver, gamma, iterations=8, batch=2):
    whole = tiny_map(batch=batch)
    term = regularizer("start", gamma)
    return core.optimize(whole, rewards.Contrast(), start(whole), solver, term, iterations, floor=0.0).history


def columns(history):
    """Scores and terms, (rows, B) each."""
    return (torch.tensor([row[key] for row in history.rows]) for key in ("score", "picture_term"))


@pytest.mark.parametrize("solver", [core.GradientAscent(0.1), core.TrustAscent(), core.TrustAscent(tilt=0.3)])
def test_the_more_it_weighs_the_less_is_moved_and_the_best_is_the_highest_sum(solver):
    moved, reached = [], []
    for gamma in (0.01, 200.0):
        history = searched(solver, gamma)
        scores, terms = columns(history)
        assert terms[0].tolist() == [0, 0]
        assert history.best == (scores + terms).argmax(dim=0).tolist()
        moved.append(-terms[history.best, range(2)] / gamma)
        reached.append(scores[history.best, range(2)])
    assert (moved[1] < moved[0] / 2).all() and (reached[1] < reached[0]).all()


def test_trust_accepts_what_raises_the_sum_and_not_what_raises_the_reward_alone():
    history = searched(core.TrustAscent(), 60.0, iterations=15, batch=1)
    scores, terms = (column.flatten() for column in columns(history))
    accepted = [index for index, row in enumerate(history.rows[:-1]) if row["gradient_norm"]]
    sums = (scores + terms)[accepted]
    assert len(accepted) > 2 and (sums.diff() > 0).all()
    rejected = [index for index in range(len(scores) - 1) if index not in accepted]
    assert any(scores[index] > scores[max(each for each in accepted if each < index)] for index in rejected)


@pytest.mark.parametrize(
    "solver",
    [
        core.ZeNO(),
        core.Search(),
        core.TRS(),
        core.Tilt(),
        core.LGD(),
        core.Fast(calls=30),
        core.GradientAscent(estimator=core.ZerothOrder()),
    ],
)
def test_solvers_without_a_gradient_through_the_model_refuse_it_before_anything_is_sampled(solver):
    def never(x, sigma):
        raise AssertionError("sampled")

    whole = tiny_map(unguided=never)
    whole.denoise = never
    with pytest.raises(ValueError, match="takes no gradient of the reward back through the whole model"):
        core.optimize(whole, rewards.Contrast(), start(whole), solver, regularizer("loss"), 1)


def test_without_iterations_any_solver_shows_the_starts_own_term():
    whole = tiny_map()
    result = core.optimize(whole, rewards.Contrast(), start(whole), core.ZeNO(), regularizer("start"), 0)
    assert result.history.rows[0]["picture_term"] == [0.0, 0.0]


@pytest.mark.parametrize("estimator", [core.Hybrid1(), core.Hybrid2()])
def test_estimates_of_a_rewards_gradient_have_the_terms_own_added(estimator):
    def nothing(images, prompts):
        return 0 * images.mean(dim=(1, 2, 3))

    whole = tiny_map()
    noise = start(whole).map(lambda z: 1.3 * z)
    problem = core.Problem(whole, nothing, picture=regularizer("start").of(whole, start(whole)))
    expected = problem.gradient(noise)[1].flat()
    assert expected.any()
    torch.testing.assert_close(problem.gradient(noise, estimator)[1].flat(), expected)


def test_a_picture_whose_term_is_not_finite_ends_alone():
    whole = tiny_map()

    def broken(x, sigma):
        with_prompt, without = whole.unguided(x, sigma)
        return with_prompt * torch.tensor([1.0, torch.nan]).view(-1, 1, 1, 1), without

    asking = replace(whole, unguided=broken)
    result = core.optimize(
        asking, rewards.Contrast(), start(whole), core.GradientAscent(0.1), regularizer("loss"), 3, floor=0.0
    )
    assert any("picture's regulariser is nan" in text for text in result.history.warnings)
    first, second = torch.tensor([row["score"] for row in result.history.rows]).T
    assert first[-1] != first[0] and second[-1] == second[0]


def test_progress_bars_know_how_often_what_it_compares_with_takes_a_step():
    for kind in KINDS:
        told = []
        whole = linear_map(on_step=lambda phase, index, total, told=told: told.append(phase))
        ours = regularizer(kind)
        ours.of(whole, start(whole)).value(latents())
        assert len(told) == ours.stages(whole)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"kind": "beauty"}, "unknown kind 'beauty'; expected 'belief', 'loss' or 'start'"),
        ({"gamma": -1.0}, "gamma is -1.0; expected a number >= 0"),
        ({"gamma": float("nan")}, "gamma is nan; expected a finite number"),
        ({"ratios": ()}, "no noise levels"),
        ({"ratios": (0.0,)}, "ratio is 0.0; expected a number > 0"),
        ({"noises": 0}, "noises is 0; expected 1 or more"),
        ({"beside": core.PictureRegularizer("loss")}, "beside is a regularizer of the picture too"),
    ],
)
def test_settings_are_checked(settings, words):
    with pytest.raises(ValueError, match=words):
        core.PictureRegularizer(**settings)
