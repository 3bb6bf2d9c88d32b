"""Networks that change in place what their gradient needs, against the same networks written without."""

from dataclasses import replace

import pytest
import torch
from comfyui_dno import core, rewards
from tiny_models import SIGMAS
from torch.autograd import graph

WATCHES = graph.allow_mutation_on_saved_tensors


def network(x, in_place):
    """A residual x + tanh(x)^2, whose gradient needs tanh(x): in place as Flux adds its residuals, or not."""
    h = torch.tanh(x)
    squared = h * h
    return h.add_(squared) if in_place else h + squared


def both(keep_graphs=False, decoder=False, steps=()):
    """The same map twice: its model (at the `steps` given, or at all) or its decoder in place, and not."""

    def build(in_place):
        def denoise(x, sigma):
            return network(x, in_place and not decoder and (not steps or float(sigma[0]) in steps))

        return core.SampleMap(
            denoise, core.Schedule(SIGMAS["vp"]), (2, 3, 4, 4), keep_graphs=keep_graphs,
            decode=lambda latent: network(latent, in_place and decoder),
        )  # fmt: skip

    return build(True), build(False)


def gradient(noise_map):
    noise = noise_map.randn(0)
    images, vjp = noise_map.pullback(noise)
    return vjp(torch.linspace(-1, 1, images.numel()).view_as(images)).flat()


@pytest.mark.parametrize("keep_graphs", [False, True])
@pytest.mark.parametrize("place", [{}, {"decoder": True}, {"steps": SIGMAS["vp"][1:2]}])
def test_the_gradient_is_that_of_the_network_without_changes_in_place(keep_graphs, place):
    noise_map, expected = both(keep_graphs, **place)
    for _ in range(2):  # found out in the first, known in the second
        torch.testing.assert_close(gradient(noise_map), gradient(expected), rtol=1e-6, atol=1e-7)
    assert noise_map.in_place.found == {"decoder" if place.get("decoder") else "model"}
    assert not expected.in_place.found


@pytest.mark.parametrize("combined", [False, True])
def test_a_reward_may_change_in_place_what_its_gradient_needs(combined):
    def reward(in_place):
        alone = lambda images, prompts: network(images, in_place).flatten(1).mean(dim=1)  # noqa: E731
        return rewards.Combine([alone, rewards.Brightness()]) if combined else alone

    _, noise_map = both()
    problems = [core.Problem(replace(noise_map), reward(in_place)) for in_place in (True, False)]
    (evaluation, found), (_, expected) = (problem.gradient(noise_map.randn(0)) for problem in problems)
    torch.testing.assert_close(found.flat(), expected.flat(), rtol=1e-6, atol=1e-7)
    assert problems[0].sample_map.in_place.found == {"reward"} and evaluation.scores.isfinite().all()


def euler(model, x, sigmas, noise_sampler, callback):
    for sigma, sigma_next in zip(sigmas, sigmas[1:], strict=False):
        denoised = model(x, sigma.expand(len(x)))
        x = denoised + sigma_next / sigma * (x - denoised)
    return x


@pytest.mark.parametrize("keep_graphs", [False, True])
def test_a_samplers_own_arithmetic_goes_through_networks_that_change_in_place(keep_graphs):
    found, expected = (
        core.SamplerMap(
            each.denoise, each.schedule, each.shape, decode=each.decode, keep_graphs=keep_graphs, sampler=euler,
            traits=core.try_sampler(euler, each.schedule.sigmas),
        )
        for each in both()
    )  # fmt: skip
    for _ in range(2):
        torch.testing.assert_close(gradient(found), gradient(expected), rtol=1e-6, atol=1e-7)
    assert found.in_place.found == {"model"}


def test_a_guided_run_is_that_of_the_network_without_changes_in_place():
    noises = []
    for noise_map in both():
        problem = core.Problem(noise_map, rewards.Brightness())
        noises.append(core.LGD(scale=5.0, samples=2).fresh().step(problem, noise_map.randn(0))[0].injected)
    torch.testing.assert_close(*noises, rtol=1e-6, atol=1e-7)
    assert not torch.equal(noises[0], noise_map.randn(0).injected)


def test_only_the_network_that_needs_it_is_watched_and_only_on_its_way_back(monkeypatch):
    """The first run's steps go without; a search does not begin anew; the decoder and a plain network cost nothing."""
    entered = []
    monkeypatch.setattr(graph, "allow_mutation_on_saved_tensors", lambda: entered.append(1) or WATCHES())
    noise_map, plain = both()
    calls = []
    noise_map.denoise = lambda x, sigma, denoise=noise_map.denoise: calls.append(1) or denoise(x, sigma)
    steps = noise_map.schedule.steps
    gradient(plain)
    assert not entered
    gradient(noise_map)
    assert len(entered) == steps and len(calls) == 2 * steps + 1
    gradient(noise_map)
    assert len(entered) == 2 * steps and len(calls) == 4 * steps + 1


def test_other_errors_of_a_backward_pass_are_raised_at_once():
    calls = []

    def fail():
        calls.append(1)
        raise RuntimeError("another error")

    with pytest.raises(RuntimeError, match="another error"):
        core.in_place.InPlace().differentiate("model", fail)
    assert calls == [1]


def test_what_a_map_found_out_is_not_another_maps():
    noise_map = both()[0]
    gradient(noise_map)
    assert noise_map.in_place.found and not replace(noise_map, part="initial").in_place.found


@pytest.mark.parametrize("entries", [64, 1000, 4096, 100_000])
def test_a_copy_is_never_taken_for_that_of_a_tensor_that_has_a_freed_ones_place(entries):
    """Each block's tensor is saved, changed and freed; the next may get its id and its address."""
    x, blocks = torch.ones(entries, requires_grad=True), range(2, 32)

    def gradient():
        total = 0
        for factor in blocks:
            y = x * factor
            total = total + (y * y).sum()
            y.add_(1.0)
            del y
        return torch.autograd.grad(total, x)[0]

    stages = core.in_place.InPlace()
    for _ in range(4):
        found = stages.differentiate("model", gradient)
        assert torch.equal(found, torch.full_like(x, 2.0 * sum(factor**2 for factor in blocks)))
    assert stages.found == {"model"}
