"""PyTorch's default floating type is the user's business: whatever it is, a seed is the same picture."""

import functools

import pytest
import torch
from comfyui_dno import core, rewards
from comfyui_dno.experiments import ring, ring_models

SOLVERS = {
    "gradient ascent": core.GradientAscent(lr=0.05),
    "Hybrid-1": core.GradientAscent(lr=0.05, estimator=core.Hybrid1(2)),
    "Hybrid-2": core.GradientAscent(lr=0.05, estimator=core.Hybrid2(2)),
    "ZO-SGD": core.GradientAscent(lr=0.05, estimator=core.ZerothOrder(2)),
    "ZeNO": core.ZeNO(2),
    "best of N": core.Search.best_of_n(2),
    "zero order": core.Search.zero_order(2),
    "pCN": core.Search.pcn(),
    "LGD": core.LGD(2),
}


def under(kind, function):
    """Return what `function` returns where PyTorch's default floating type is `kind`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        return function()
    finally:
        torch.set_default_dtype(before)


@functools.cache
def embedded(kind):
    """The embedded model, loaded where PyTorch's default floating type is `kind`."""
    return core.load_embedded("black cat", steps=2, keep_graphs=True)


def search(solver):
    """A whole search on the embedded model; all that it returns."""
    noise_map = embedded(torch.get_default_dtype())
    regularizer = core.ProbabilityRegularizer() if isinstance(solver, core.GradientAscent) else None
    watch = (rewards.Consistency(), rewards.JPEGProxy())
    return core.optimize(
        noise_map, rewards.Brightness(), noise_map.randn(3), solver, regularizer, iterations=1, watch=watch
    )


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_a_search_is_the_same_to_the_last_bit(solver):
    usual, other = under(torch.float32, lambda: search(solver)), under(torch.float64, lambda: search(solver))
    assert torch.equal(usual.noise.flat(), other.noise.flat()) and other.noise.flat().dtype == torch.float32
    assert torch.equal(usual.images, other.images) and torch.equal(usual.latent, other.latent)
    for ours, theirs in zip(usual.history.rows, other.history.rows, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_the_ring_is_the_same_to_the_last_bit():
    def run():
        denoise = ring_models.train(ring_models.ring, iterations=3, batch=8)
        line = ring_models.line(4, torch.Generator().manual_seed(0))
        run = ring.climb(ring.point_map(denoise, 4), ring.waves, 2, (2,), regularizer=core.ProbabilityRegularizer())
        exact = ring_models.exact_ring(line, torch.ones(4, dtype=torch.float32))
        return run.snapshots[2].images, run.snapshots[2].noise.flat(), line, exact

    for usual, other in zip(under(torch.float32, run), under(torch.float64, run), strict=True):
        assert usual.dtype == other.dtype == torch.float32 and torch.equal(usual, other)
