"""Models that detach a part of what they compute are refused before a search climbs by their gradient."""

import pytest
from workflows import Workflow

DETACHING = ["result half detached", "input half detached"]


@pytest.mark.parametrize("family", DETACHING)
def test_a_model_that_detaches_a_half_is_refused_by_solvers_that_need_its_gradient(comfy, family):
    graph = Workflow(family=family)
    graph.keep("latent", graph.dno(iterations=2)[0])
    found = comfy.fail(graph)
    assert "the gradient through this model is wrong" in found and "ZeNO" in found, found


def test_a_model_that_detaches_a_half_is_searched_without_gradients(comfy):
    graph = Workflow(family=DETACHING[0])
    solver = graph.node("DNOSolverSearch", method="zero-order", candidates=2, beta=0.1, seed=0)[0]
    graph.keep("latent", graph.dno(iterations=1, solver=solver)[0])
    assert comfy.run(graph).kept["latent"]["samples"].isfinite().all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_model_whose_gradient_is_right_is_searched_in_every_precision(comfy, dtype):
    graph = Workflow(dtype=dtype)
    graph.keep("latent", graph.dno(iterations=1)[0])
    assert comfy.run(graph).kept["latent"]["samples"].isfinite().all()
