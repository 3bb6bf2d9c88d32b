"""A person as the judge, simulated: what answers gain, what they leave true noise, and that asking goes on."""

import math
import re
from dataclasses import replace

import pytest
import torch
from comfyui_dno import core
from linear_rewards import identity_map
from tiny_models import sample_map as map_of


def sample_map():
    return map_of(batch=1)


def start():
    return sample_map().randn(0).to(torch.float64)


SHAPE = (3, 16, 16)
N = math.prod(SHAPE)
ROUNDS, CANDIDATES, STRENGTH = 10, 6, 0.3


def brightness(images):
    """Mean of all pixels in standard deviations of that of true noise: a linear reward of slope 1."""
    return images.flatten(1).sum(dim=1) / N**0.5


def best(images):
    return brightness(images).argmax()


def better_half(images):
    return brightness(images).topk(len(images) // 2).indices


class Unsure:
    """Picks the brightest as it seems to somebody whose eye errs by `error` standard deviations of the candidates."""

    def __init__(self, seed, error):
        self.generator, self.error = torch.Generator().manual_seed(seed), error

    def __call__(self, images):
        seen = brightness(images)
        return (seen + self.error * STRENGTH * torch.randn(len(images), generator=self.generator)).argmax()


def gain(answer, seed, rounds=ROUNDS, **settings):
    noise_map, preference = identity_map(SHAPE), {"candidates": CANDIDATES, "strength": STRENGTH} | settings
    start = noise_map.randn(seed)
    asked = core.ask(noise_map, start, answer, rounds, core.Preference(**preference, seed=seed))
    return (brightness(asked.images) - brightness(noise_map.sample(start))).item()


def mean_gain(answer_of, seeds=4, **settings):
    return sum(gain(answer_of(seed), seed, **settings) for seed in range(seeds)) / seeds


def gain_of_zeno(seed):
    """With as many evaluations and as long steps, by the scores themselves."""
    noise_map = identity_map(SHAPE)
    solver = core.ZeNO(candidates=CANDIDATES - 1, beta=STRENGTH**2, seed=seed)
    scores = core.optimize(
        noise_map, lambda images, prompts: brightness(images), noise_map.randn(seed), solver, iterations=ROUNDS, floor=0
    ).history.column("score")
    return scores[-1] - scores[0]


def test_answers_gain_a_stated_part_of_what_scores_do():
    """Of 5 neighbours the best is 1.16 standard deviations up, where scores gain sqrt(5 - 1) of them: 0.58 a round.

    The better half of 6 gains 0.8 sqrt(6) / sqrt(4) = 0.98 a round. A shrinking z takes from all.
    """
    zeno = sum(map(gain_of_zeno, range(4))) / 4
    assert mean_gain(lambda seed: best) > 0.45 * zeno
    assert mean_gain(lambda seed: better_half) > 0.7 * zeno
    assert mean_gain(lambda seed: better_half) > mean_gain(lambda seed: best)


def test_an_unsure_eye_gains_less_and_a_blind_one_nothing():
    """An error as large as the differences leaves 1 / sqrt(2) of a step, from which a shrinking z takes as before."""
    sure, unsure = (mean_gain(lambda seed, error=error: Unsure(seed, error), seeds=8) for error in (0.0, 1.0))
    assert 0.3 * sure < unsure < 0.9 * sure
    # Blind answers are a random walk: each gain has a standard deviation below sqrt(2).
    assert abs(mean_gain(lambda seed: Unsure(seed, 1e6), seeds=16)) < 4 * math.sqrt(2 / 16)


@pytest.mark.parametrize("answer", [best, better_half, Unsure(0, 1e6)])
def test_the_noise_stays_as_long_as_true_noise(answer):
    """Its length is sqrt(n) with a standard deviation of 0.7; what was gained lengthens it, up to 2 more."""
    noise_map = identity_map(SHAPE)
    noise = core.ask(noise_map, noise_map.randn(0), answer, 100, core.Preference(6, 0.4)).noise
    assert -4 * 0.7 < noise.norm().item() - N**0.5 < 2.001


def test_the_picked_picture_is_the_next_rounds_first():
    noise_map, preference = sample_map(), core.Preference(candidates=4, seed=5)
    noise = start()
    latent, images = preference.shown(noise_map, noise)
    torch.testing.assert_close(images[:1], noise_map.sample(noise))
    for picked in (3, 1):
        noise = preference.after(noise_map, noise, picked)
        torch.testing.assert_close(noise_map.sample(noise), images[picked : picked + 1])
        again, following = preference.shown(noise_map, noise)
        torch.testing.assert_close(following[:1], images[picked : picked + 1])
        assert not torch.allclose(following[1:], images[1:], atol=1e-3)
        images = following


def test_the_neighbours_are_those_of_zeno():
    noise_map, seen = sample_map(), []
    noise = start()

    def reward(images, prompts):
        seen.append(images)
        return images.mean(dim=(1, 2, 3))

    core.optimize(noise_map, reward, noise, core.ZeNO(candidates=3, beta=0.16, seed=2), iterations=1)
    _, images = core.Preference(candidates=4, strength=0.4, seed=2).shown(noise_map, noise)
    torch.testing.assert_close(images, seen[0])


def test_several_answers_move_as_the_slope_of_the_picks_likelihood():
    """Plackett and Luce, differentiated by autograd: the direction of taste under which the answer is likelier."""
    noise_map, preference = identity_map(SHAPE), core.Preference(candidates=5, strength=0.5)
    noise = noise_map.randn(0)
    candidates = preference.shown(noise_map, noise)[1].flatten(1)
    xi = (candidates - math.sqrt(0.75) * noise.flat()) / 0.5
    xi[0] = 0
    theta = torch.zeros(N, requires_grad=True)
    worth = xi @ theta
    pairs = [(liked, other) for liked in (1, 3) for other in (0, 2, 4)]
    sum(torch.nn.functional.logsigmoid(worth[liked] - worth[other]) for liked, other in pairs).backward()
    moved = (preference.after(noise_map, noise, [3, 1]).flat() - math.sqrt(0.75) * noise.flat())[0] / 0.5
    assert torch.nn.functional.cosine_similarity(moved, theta.grad, dim=0) > 0.9999
    assert moved.norm().item() == pytest.approx(N**0.5, rel=0.1)  # 4 standard deviations of true noise's length


def test_stopped_saved_and_resumed_equals_never_stopped(tmp_path):
    noise_map, preference = sample_map(), core.Preference(candidates=3, seed=1)
    answers = [2, 0, [1, 2], 0, 1]
    told = iter([*answers, *answers])
    whole = core.ask(noise_map, start(), lambda images: next(told), 5, preference)
    asked = core.ask(noise_map, start(), lambda images: next(told), 3, preference)
    asked.noise.save(tmp_path / "noise.safetensors")
    rest = core.ask(
        noise_map, core.Noise.load(tmp_path / "noise.safetensors"), lambda images: next(told), 2, preference
    )
    assert torch.equal(rest.noise.flat(), whole.noise.flat()) and torch.equal(rest.images, whole.images)
    assert rest.noise.settings["picks"] == [[2], [0], [1, 2], [0], [1]]
    assert rest.noise.checkpoint.iteration == 5
    assert preference.strength_at(rest.noise) == pytest.approx(0.3 * 0.8**2)


def test_none_ends_the_asking():
    told = iter([1, None])
    asked = core.ask(sample_map(), start(), lambda images: next(told), 9, core.Preference(3))
    assert asked.noise.settings["picks"] == [[1]]
    torch.testing.assert_close(sample_map().sample(asked.noise), asked.images)


def test_a_search_goes_on_from_the_picked_noise_and_asking_after_it_begins_anew():
    asked = core.ask(sample_map(), start(), lambda images: 1, 2, core.Preference(3))
    result = core.optimize(sample_map(), lambda images, prompts: images.mean(dim=(1, 2, 3)), asked.noise, iterations=1)
    assert [row["iteration"] for row in result.history.rows] == [0, 1]
    again = core.ask(sample_map(), result.noise, lambda images: 2, 1, core.Preference(3))
    assert again.noise.settings["picks"] == [[2]]


def test_what_is_masked_stays():
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., :3] = 1
    noise_map = replace(sample_map(), mask=mask)
    noise = start()
    for answer in (1, [1, 2]):
        found = core.ask(noise_map, noise, lambda images, answer=answer: answer, 1, core.Preference(4)).noise
        assert torch.equal(found.initial[..., 3:], noise.initial[..., 3:])
        assert not torch.allclose(found.initial[..., :3], noise.initial[..., :3], atol=0.1)


@pytest.mark.parametrize("answer", [4, -1, [], [0, 1, 2, 3], [1, 1], [1, 4], 1.0, "2", torch.tensor([0.5]), object()])
def test_an_answer_that_names_no_picture_is_one_clear_error(answer):
    expected = f"the answer is {answer!r}; expected the number of the picture that is liked best, from 0 to 3, or the"
    with pytest.raises(ValueError, match=re.escape(expected)):
        core.ask(sample_map(), start(), lambda images: answer, 1, core.Preference(4))


def test_wrong_settings_and_batches_are_refused():
    with pytest.raises(ValueError, match="candidates is 1; expected 2 or more"):
        core.Preference(candidates=1)
    for strength in (0, 1.5):
        with pytest.raises(ValueError, match=f"strength is {strength}; expected a number above 0, and at most 1"):
            core.Preference(strength=strength)
    two = map_of(batch=2)
    with pytest.raises(ValueError, match="noise is of 2 pictures and the sample map of 2; expected one"):
        core.ask(two, two.randn(0), best, 1)


def test_what_is_kept_stays_that_very_noise_also_where_it_is_longer_than_true_noise():
    noise_map = sample_map()
    noise = start().map(lambda z: 1.5 * z)
    asked = core.ask(noise_map, noise, lambda images: 0, 2, core.Preference(candidates=3))
    torch.testing.assert_close(asked.noise.flat(), noise.flat(), rtol=0, atol=1e-12)
