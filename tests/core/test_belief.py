"""The model's belief in a picture, against closed forms of models that know a Gaussian."""

import math
from dataclasses import replace

import pytest
import torch
from comfyui_dno import core, rewards
from comfyui_dno.core.belief import denoising_losses, fixed_noises
from tiny_models import SIGMAS

SPREAD, PROMPT, ELSE = 0.7, 0.3, -0.4
"""Standard deviation of a Gaussian, and its mean with and without the prompt."""


def gaussian(mean, family):
    """The perfect denoiser of x0 ~ N(mean, SPREAD^2): E[x0 | x], in k-diffusion's form or as a rectified flow."""

    def denoise(x, sigma):
        sigma = sigma.view(-1, *[1] * (x.ndim - 1))
        alpha = 1.0 if family == "vp" else 1 - sigma
        return mean + alpha * SPREAD**2 * (x - alpha * mean) / ((alpha * SPREAD) ** 2 + sigma**2)

    return denoise


def gaussian_map(family="vp", shape=(2, 3, 4, 4), without=True, **settings):
    cond, uncond = gaussian(PROMPT, family), gaussian(ELSE, family)

    def unguided(x, sigma):
        return cond(x, sigma), uncond(x, sigma) if without else None

    schedule = core.Schedule(SIGMAS[family], family)
    return core.SampleMap(cond, schedule, shape, unguided=unguided, **settings)


def latents(shape=(2, 3, 4, 4), seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(latent, mean, ratio, e):
    """The loss of k-diffusion's form at sigma = ratio: D - x0 = sigma (s^2 e - sigma (x0 - mean)) / (s^2 + sigma^2)."""
    error = (SPREAD**2 * e - ratio * (latent - mean)) / (SPREAD**2 + ratio**2)
    return error.square().flatten(2).mean(dim=2)


@pytest.mark.parametrize("ratio", [0.5, 3.0])
@pytest.mark.parametrize("family", ["vp", "flow", "flow_rf"])
def test_the_losses_are_those_of_the_closed_form(family, ratio):
    latent, noises = latents(), fixed_noises(latents(), 3)
    with_prompt, without = denoising_losses(gaussian_map(family), latent, ratio, noises)
    # A flow's loss is of the velocity, and the same but for a constant: x / (1 - t) = x0 + ratio e, t = sigma.
    scale = 1.0 if family == "vp" else (1 + ratio) ** 2
    torch.testing.assert_close(with_prompt, scale * loss_of(latent, PROMPT, ratio, noises))
    torch.testing.assert_close(without, scale * loss_of(latent, ELSE, ratio, noises))


def test_over_many_noises_the_loss_is_its_expectation():
    latent, ratio, count = latents(), 1.5, 4000
    loss, _ = denoising_losses(gaussian_map(), latent, ratio, fixed_noises(latent, count))
    error = (latent - PROMPT).square().flatten(1).mean(dim=1)
    expected = (SPREAD**4 + ratio**2 * error) / (SPREAD**2 + ratio**2) ** 2
    assert ((loss.mean(dim=0) - expected).abs() < 4 * loss.std(dim=0) / count**0.5).all()


def test_a_flows_loss_is_the_error_of_its_velocity():
    latent, ratio = latents(), 1.5
    noises, t = fixed_noises(latents(), 2), 1.5 / 2.5
    flow = gaussian_map("flow")
    x = (1 - t) * latent + t * noises
    velocity = (x - flow.denoise(x.flatten(0, 1), torch.full((4,), t)).unflatten(0, (2, 2))) / t
    expected = (velocity - (noises - latent)).square().flatten(2).mean(dim=2)
    torch.testing.assert_close(denoising_losses(flow, latent, ratio, noises)[0], expected)


@pytest.mark.parametrize("family", ["vp", "flow_rf"])
def test_it_is_the_evidence_for_the_prompt_in_units_of_ordinary_samples(family):
    ordinary = []
    whole = gaussian_map(family)
    recorded = replace(whole, finish=lambda x: ordinary.append(x) or x)
    latent, ratios = latents() + 0.2, (0.5, 2.0)
    parts = core.Belief(ratios, noises=3, samples=5).of(recorded).part_scores(latent)
    e, ordinary = fixed_noises(latent, 3), torch.cat(ordinary).unflatten(0, (5, 2)).double()

    def mean_log(x0, mean):
        return sum(loss_of(x0, mean, ratio, e).mean(dim=0).log() for ratio in ratios) / 2

    def evidence(x0):
        return mean_log(x0, ELSE) - mean_log(x0, PROMPT)

    usual = torch.stack([torch.stack([evidence(x0), mean_log(x0, PROMPT)]) for x0 in ordinary]).mean(dim=0)
    torch.testing.assert_close(parts["belief"], evidence(latent) / usual[0])
    torch.testing.assert_close(parts["belief loss"], (usual[1] - mean_log(latent, PROMPT)).exp())


def test_a_flow_and_its_form_in_k_diffusion_believe_the_same():
    x0 = torch.cat([ordinary.latent(ordinary.randn(seed)) for ordinary in [gaussian_map()] for seed in range(2)])
    beliefs = []
    for family in ("vp", "flow"):
        whole = gaussian_map(family, (4, 3, 4, 4))
        # The same ordinary samples: what differs between the two is how they are asked about a latent.
        whole.denoise = lambda x, sigma: PROMPT + 0 * x
        beliefs.append(core.Belief().of(whole).part_scores(x0))
    for name, scores in beliefs[0].items():
        torch.testing.assert_close(beliefs[1][name], scores, rtol=1e-4, atol=1e-4)


def test_ordinary_samples_score_about_one_and_pictures_of_something_else_and_no_pictures_about_zero():
    whole = gaussian_map(shape=(1, 3, 16, 16))
    belief = core.Belief(samples=8).of(whole)
    fresh = torch.stack([belief(whole.latent(whole.randn(seed))) for seed in range(16)])
    assert (fresh.mean() - 1).abs() < 0.1 and fresh.min() > 0.5
    something_else, no_picture = (whole.latent(whole.randn(0)) + shift for shift in (ELSE - PROMPT, 20.0))
    assert belief(something_else) < 0 and belief(no_picture).abs() < 0.1
    assert belief.part_scores(no_picture)["belief loss"] < 0.1


def test_where_no_model_without_the_prompt_is_known_the_loss_decides():
    for whole in (gaussian_map(without=False), replace(gaussian_map(), unguided=None)):
        parts = core.Belief().of(whole).part_scores(latents())
        assert torch.equal(parts["belief"], parts["belief loss"])
    expected = core.Belief().of(gaussian_map()).part_scores(latents())["belief loss"]
    torch.testing.assert_close(parts["belief"], expected)


def test_where_the_prompt_explains_nothing_of_ordinary_samples_the_loss_decides():
    plain = gaussian_map()

    def unguided(x, sigma):  # of the second picture the prompt is empty
        with_prompt, without = plain.unguided(x, sigma)
        second = torch.arange(len(x)).view(-1, 1, 1, 1) % 2 == 1
        return with_prompt, torch.where(second, with_prompt, without)

    found = core.Belief().of(replace(plain, unguided=unguided)).part_scores(latents())
    both = core.Belief().of(plain).part_scores(latents())
    torch.testing.assert_close(found["belief"], torch.stack([both["belief"][0], both["belief loss"][1]]))


@pytest.mark.parametrize("most_rows", [None, 2, 5])
def test_a_picture_is_judged_by_itself_wherever_it_stands(most_rows):
    three = latents((3, 3, 4, 4))
    belief = core.Belief().of(gaussian_map(shape=(3, 3, 4, 4), most_rows=most_rows))
    together = belief.part_scores(three)
    alone = core.Belief().of(gaussian_map(shape=(1, 3, 4, 4)))
    for name, scores in together.items():
        expected = torch.cat([alone.part_scores(three[[item]])[name] for item in range(3)])
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    broken = torch.cat([three[:2], torch.full_like(three[:1], math.nan)])
    assert torch.equal(belief(broken)[:2], belief(three)[:2]) and belief(broken)[2].isnan()


def test_no_call_is_of_more_pictures_than_the_map_allows_and_the_ordinary_samples_are_drawn_once():
    rows, plain = [], gaussian_map(most_rows=4)

    def unguided(x, sigma):
        rows.append(len(x))
        assert sigma.unique().numel() == 1  # parts of conditionings go by one sigma a call
        return plain.unguided(x, sigma)

    belief = core.Belief(noises=4, samples=3).of(replace(plain, unguided=unguided))
    belief(latents())
    assert max(rows) == 4 and sum(rows) == 2 * 2 * 4 * (3 + 1)  # pictures, levels, noises, latents
    rows.clear()
    belief(latents())
    assert sum(rows) == 2 * 2 * 4


def test_it_leaves_the_random_numbers_of_others_as_they_were():
    belief = core.Belief().of(gaussian_map())
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = belief(latents())
    assert torch.equal(torch.rand(1), expected) and torch.equal(belief(latents()), first)


def test_what_a_mask_keeps_does_not_count():
    mask = torch.ones(1, 1, 4, 4)
    mask[..., :2] = 0
    belief, latent = core.Belief().of(gaussian_map(mask=mask)), latents()
    kept, searched = latent.clone(), latent.clone()
    kept[..., :2] += 3
    searched[..., 2:] -= 3
    expected = belief.part_scores(latent)
    for name, scores in belief.part_scores(kept).items():
        torch.testing.assert_close(scores, expected[name])
    assert (belief.part_scores(searched)["belief loss"] < 0.8 * expected["belief loss"]).all()


def test_a_picture_that_is_kept_whole_is_judged_whole():
    mask = torch.ones(2, 1, 4, 4)
    mask[1] = 0
    found = core.Belief().of(gaussian_map(mask=mask))(latents())
    torch.testing.assert_close(found, core.Belief().of(gaussian_map())(latents()))


def test_a_video_is_judged_as_a_whole():
    shape = (1, 3, 5, 4, 4)
    belief, video = core.Belief().of(gaussian_map(shape=shape)), latents(shape)
    parts = belief.part_scores(video)
    assert parts["belief"].shape == (1,)
    sample_map = gaussian_map(shape=shape, decode=lambda latent: latent.movedim(2, 1))
    problem = core.Problem(sample_map, rewards.Brightness(), watch=(belief,))
    assert torch.equal(problem.watched(video, sample_map.images(video))["belief"], parts["belief"])


def test_half_precision_of_the_network_or_the_latent_is_of_no_account():
    whole = gaussian_map()

    def in_half(function):
        return lambda x, sigma: tuple(each.half().float() for each in function(x.half().float(), sigma))

    expected = core.Belief().of(whole)(latents().float())
    half = core.Belief().of(replace(whole, unguided=in_half(whole.unguided)))(latents().half())
    # Rounding to 11 bits moves an error of size 1 by up to 2^-11, its mean square by less; 2e-3 was measured.
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=8e-3, atol=8e-3)


def test_the_noise_of_models_with_another_variance_is_theirs():
    asked = []
    schedule = core.Schedule(SIGMAS["flow"], "flow", s_noise=8.0)
    loud = replace(gaussian_map("flow"), schedule=schedule, unguided=lambda x, sigma: asked.append(x) or (x, None))
    latent, noises = latents(), fixed_noises(latents(), 1)
    denoising_losses(loud, latent, 1.0, noises)
    torch.testing.assert_close(asked[0], 0.5 * latent + 0.5 * 8 * noises[0])


def test_ordinary_samples_begin_where_there_is_no_noise_as_the_search_does():
    seen = []

    def start(initial):
        seen.append(initial)
        return initial

    initial = torch.zeros(2, 3, 4, 4)
    whole = gaussian_map(start=start)
    core.Belief().of(whole, replace(whole.randn(0), initial=initial))(latents())
    assert not torch.cat(seen).any()
    core.Belief().of(whole, whole.randn(0))(latents())
    assert seen[-1].any()


WANDERING = [core.GradientAscent(0.3), core.TrustAscent(), core.ZeNO(4), core.Search.zero_order(4), core.Tilt()]


def searched(solver=WANDERING[0], iterations=8, watch=None, **settings):
    sample_map = gaussian_map()
    watch = [core.Belief()] if watch is None else watch
    darkness, noise = rewards.Brightness(negative=True), sample_map.randn(1)
    return core.optimize(sample_map, darkness, noise, solver, None, iterations, watch=watch, **settings)


@pytest.mark.parametrize("solver", WANDERING, ids=lambda solver: solver.name)
def test_a_search_records_it_and_takes_it_for_a_floor(solver):
    free = searched(solver, floor=0.0)
    belief = core.Belief().of(gaussian_map())
    first = belief.part_scores(belief.sample_map.latent(belief.sample_map.randn(1)))
    for name, scores in first.items():
        torch.testing.assert_close(torch.tensor(free.history.rows[0][f"watch/{name}"]), scores)
    torch.testing.assert_close(belief(free.latent), torch.tensor(free.history.best_row["watch/belief"]))
    floor = first["belief"].min().item() - 0.3
    held = searched(solver, floor=0.0, floors={"belief": floor})
    assert (belief(held.latent) >= floor).all()
    if (belief(free.latent) < floor).any():
        assert ["belief"] in held.history.held


def test_a_search_ends_when_no_picture_is_believed_in():
    history = searched(iterations=20, stop_below={"belief": 0.0}).history
    column = torch.tensor([row["watch/belief"] for row in history.rows])
    assert history.stopped == "belief fell below 0.0" and len(history.rows) < 21
    assert (column[-1] < 0).all() and (column[:-1] >= 0).any(dim=1).all()


def test_a_limit_on_what_is_not_watched_is_refused():
    with pytest.raises(ValueError, match="there is a limit on 'belief', but watched is 'contrast'; expected the name"):
        searched(watch=[rewards.Contrast()], stop_below={"belief": 0.5})
    with pytest.raises(ValueError, match="the limit on belief is nan; expected a finite number"):
        searched(stop_below={"belief": math.nan})


def test_a_belief_of_nobody_says_where_it_belongs():
    with pytest.raises(ValueError, match="expected it to be watched"):
        core.Belief()(latents())


def test_what_judges_latents_is_no_reward():
    sample_map = gaussian_map()
    with pytest.raises(ValueError, match="belief judges latents and not their pictures, so it cannot be what is opt"):
        core.optimize(sample_map, core.Belief(), sample_map.randn(0))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"ratios": ()}, "there are no noise levels to ask the model at; expected one or more ratios > 0"),
        ({"ratios": (1.0, 0.0)}, "ratio is 0.0; expected a"),
        ({"noises": 0}, "noises is 0; expected"),
        ({"samples": 0}, "samples is 0; expected"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        core.Belief(**settings)


def test_the_embedded_model_believes_in_its_own_pictures_and_not_in_noise_or_in_those_of_other_prompts():
    cat = core.load_embedded("black cat", steps=4, eta=0.5)
    duck = core.load_embedded("yellow duck", steps=4, eta=0.5)
    belief = core.Belief().of(cat)
    own, others, noise = cat.latent(cat.randn(3)), duck.latent(duck.randn(3)), cat.randn(4).initial
    parts = [belief.part_scores(latent) for latent in (own, others, noise)]
    assert parts[0]["belief"] > 0.6
    assert parts[1]["belief"] < 0 and parts[2]["belief"].abs() < 0.5 and parts[2]["belief loss"] < 0.2
