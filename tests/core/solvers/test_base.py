"""What holds of every solver: nothing is lost, what is not searched stays, stages are known, settings are checked."""

import pytest
import torch
from comfyui_dno import core
from tiny_models import sample_map


@pytest.mark.parametrize("solver", [
    core.ZeNO(), core.ZeNO(weights="softmax"), core.ZeNO(mode="sample"), core.ZeNO(mode="resample"),
    core.Search.best_of_n(), core.Search.zero_order(), core.Search.pcn(), core.TRS(), core.ZeNO(schedule="geometric"),
])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_best_candidate_is_never_lost_and_nothing_is_differentiated(solver, eta):
    noise_map = sample_map(eta=eta)
    seen = []

    def reward(images, prompts):
        assert not torch.is_grad_enabled() and not images.requires_grad
        scores = images.mean(dim=(1, 2, 3))
        seen.append(scores.view(-1, 2))
        return scores

    reward.differentiable = False
    noise = noise_map.randn(0).to(torch.float64)
    result = core.optimize(noise_map, reward, noise, solver, iterations=6, floor=0.0)
    expected = torch.cat(seen).amax(dim=0)
    torch.testing.assert_close(result.images.mean(dim=(1, 2, 3)), expected)
    torch.testing.assert_close(noise_map.sample(result.noise), result.images)
    assert (expected > torch.tensor(result.history.rows[0]["score"])).all()


def test_a_probable_candidate_is_kept_where_a_better_one_is_improbable():
    noise_map = sample_map(batch=1)
    noise = noise_map.randn(0).to(torch.float64)
    best = core.problem.Best(floor=-4.6)
    problem = core.Problem(noise_map, lambda i, p: i.mean(dim=(1, 2, 3)), best=best)
    problem.evaluate(noise)
    flat = torch.stack([noise.flat() * 3, noise_map.randn(1).to(torch.float64).flat()])
    (candidates,) = problem.candidates(noise, 2, flat.__getitem__)
    problem.judge(noise, candidates, best.scores + torch.tensor([[2.0], [1.0]]))
    torch.testing.assert_close(best.noise.flat(), flat[1])


def test_a_regularizer_that_a_solver_does_not_use_is_said_and_left_out(caplog):
    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64)
    reward, regularizer = (lambda i, p: i.mean(dim=(1, 2, 3))), core.ProbabilityRegularizer()
    history = core.optimize(noise_map, reward, noise, core.Search(2), regularizer, iterations=1).history
    assert "does not use the regularizer" in caplog.text
    assert all(row["penalty"] is None for row in history.rows)


@pytest.mark.parametrize("solver", [core.ZeNO(), core.Search(), core.TRS()])
def test_masked_entries_stay_where_they_are(solver):
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., :3] = 1
    noise_map = sample_map(mask=mask)
    noise = noise_map.randn(0).to(torch.float64)
    moved = core.optimize(noise_map, lambda i, p: i.mean(dim=(1, 2, 3)), noise, solver, iterations=3, floor=0.0).noise
    assert torch.equal(moved.initial[..., 3:], noise.initial[..., 3:])
    assert not torch.equal(moved.initial[..., :3], noise.initial[..., :3])


@pytest.mark.parametrize("most_rows", [None, 3, 5])
@pytest.mark.parametrize("solver", [
    core.GradientAscent(),
    core.GradientAscent(estimator=core.Hybrid1(q=5)),
    core.GradientAscent(estimator=core.Hybrid2(q=5)),
    core.GradientAscent(estimator=core.ZerothOrder(q=5)),
    core.ZeNO(candidates=6),
    core.ZeNO(candidates=6, schedule="geometric"),
    core.TRS(candidates=6),
    core.GradientAscent.ou(core.Hybrid2(q=5)),
    core.Search.pcn(),
    core.Search(candidates=7),
    core.LGD(samples=2),
    core.Tilt(),
    core.Tilt(through="decoder", strengths=(0.2, 0.3), every=2),
])
def test_the_stages_of_a_run_are_known_beforehand(solver, most_rows):
    calls = []
    noise_map = sample_map(most_rows=most_rows, on_step=lambda *stage: calls.append(stage))
    noise = noise_map.randn(0).to(torch.float64)
    core.optimize(noise_map, lambda i, p: i.mean(dim=(1, 2, 3)), noise, solver, iterations=2)
    assert len(calls) == core.stages(noise_map, solver, 2)


def test_the_norm_regulariser_has_its_closed_forms_gradient():
    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64).map(lambda tensor: tensor * 1.4)
    z = noise.flat().clone().requires_grad_()
    norm = z.norm(dim=1)
    value = -0.01 * (norm**2 / 2 - (z.shape[1] - 1) * norm.log())
    found, gradient = core.NormRegularizer().gradient(noise_map, noise)
    torch.testing.assert_close(found, value.detach())
    torch.testing.assert_close(gradient.flat(), torch.autograd.grad(value.sum(), z)[0])


@pytest.mark.parametrize("make, message", [
    (lambda: core.ZeNO(mode="climb"), "expected 'optimise', 'sample' or 'resample'"),
    (lambda: core.ZeNO(weights="ranks"), "expected 'linear' or 'softmax'"),
    (lambda: core.ZeNO(schedule="linear"), "expected 'constant' or 'geometric'"),
    (lambda: core.TRS(regions=0), "expected 1 or more"),
    (lambda: core.TRS(beta=0), r"expected a number in \(0, 1\]"),
    (lambda: core.GradientAscent(optimizer="rmsprop"), "expected 'adam', 'sgd' or 'ou'"),
    (lambda: core.GradientAscent(lr=2.0, optimizer="ou"), "expected at most 1"),
    (lambda: core.ZeNO(candidates=1), "expected 2 or more"),
    (lambda: core.ZeNO(beta=0), r"expected a number in \(0, 1\]"),
    (lambda: core.ZeNO(tau=0), "expected a number > 0"),
    (lambda: core.Search(candidates=0), "expected 1 or more"),
    (lambda: core.Search(beta=1.5), r"expected a number in \(0, 1\]"),
])
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
