"""What users read when something does not fit: what was expected, what was found, what to do."""

import pytest
from workflows import Workflow, history_of

SOLVERS = {
    "DNOSolverGradient": {"lr": 0.03, "optimizer": "adam", "momentum": 0.9, "clip": 0.0},
    "DNOSolverSearch": {"method": "zero-order", "candidates": 2, "beta": 0.1, "seed": 0},
}


def message(comfy, graph, sampler):
    graph.keep("latent", sampler[0])
    return comfy.fail(graph)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"channels": 16}, ["16 channels", "works on 4", "empty latent"]),
        ({"dims": 5}, ["the latent is (2, 4, 2, 8, 8)", "expected (B, C, H, W)"]),
        ({"batch": 0}, ["of no picture at all", "one picture or more"]),
        ({"scale": float("inf")}, ["holds NaN or infinity", "finite numbers"]),
    ],
)
def test_a_latent_that_does_not_fit_is_refused(comfy, settings, words):
    graph = Workflow()
    found = message(comfy, graph, graph.dno(latent=graph.latent(**settings)))
    assert all(word in found for word in words), found


def test_an_empty_latent_of_other_channels_is_repeated_as_in_ksampler(comfy):
    graph = Workflow()
    ours = graph.dno(latent=graph.latent(channels=16, scale=0.0))
    graph.keep("latent", ours[0])
    assert comfy.run(graph).kept["latent"]["samples"].shape == (2, 4, 8, 8)


def test_a_vae_of_another_model_is_refused(comfy):
    graph = Workflow(vae_channels=16)
    found = message(comfy, graph, graph.dno())
    assert "16 channels" in found and "4" in found and "connect the one that belongs to this model" in found, found


@pytest.mark.parametrize("setting, words", [({"steps": 0}, "smaller than min"), ({"eta": 1.5}, "bigger than max")])
def test_numbers_outside_their_range_are_refused_by_the_server(comfy, setting, words):
    graph = Workflow()
    graph.keep("latent", graph.dno(**setting)[0])
    with pytest.raises(ValueError, match=words):
        comfy.run(graph)


def test_without_a_step_there_is_nothing_to_optimise(comfy):
    graph = Workflow()
    assert "no step is left" in message(comfy, graph, graph.dno(denoise=0.0))


@pytest.mark.parametrize(
    "obstacle, words",
    [
        ("no_grad", ["gradient is lost inside the model", "Remove nodes"]),
        ("network under no_grad", ["gradient is lost inside the model", "Remove nodes"]),
        ("fused kernel", ["cannot be differentiated in this ComfyUI version", "no_formula", "another model"]),
        ("stateful", ["another result the second time", "TeaCache"]),
        ("weakly stateful", ["another result the second time", "TeaCache"]),
        ("fast fp8", ["fast float8", "fp8_e4m3fn instead of", "DNO Solver (ZeNO) or (Search)"]),
        ("multigpu", ["several GPUs", "Remove the multi-GPU node", "DNO Solver (ZeNO) or (Search)"]),
    ],
)
def test_a_model_without_gradients_is_refused_with_what_to_do(comfy, obstacle, words):
    graph = Workflow(obstacle=obstacle, model_seed=len(obstacle))  # some obstacles stay in the model
    graph.keep("latent", graph.dno(iterations=1)[0])
    error = comfy.run(graph, may_fail=True).error
    assert all(word in error["exception_message"] for word in words), "".join(error["traceback"])


@pytest.mark.parametrize(
    "kind, words",
    [
        ("nan", ["broken", "nan", "iteration 0", "expected finite"]),
        ("detached", ["broken", "lost the gradient"]),
        ("scalar", ["broken", "one score per picture"]),
        ("not differentiable", ["broken", "not differentiable"]),
        ("raises", ["the reward broken failed", "KeyError", "a bug in a reward"]),
    ],
)
def test_a_reward_that_breaks_its_contract_is_named(comfy, kind, words):
    graph = Workflow()
    graph.reward = graph.node("DNOTestReward", kind=kind)[0]
    found = message(comfy, graph, graph.dno(iterations=1))
    assert all(word in found for word in words), found


def test_a_reward_that_turns_non_finite_ends_the_search_and_the_best_so_far_is_kept(comfy):
    graph = Workflow()
    graph.reward = graph.node("DNOTestReward", kind="nan later")[0]
    ours = graph.dno(iterations=10, solver=graph.node("DNOSolverGradient", **SOLVERS["DNOSolverGradient"])[0])
    graph.keep("image", ours[1])
    history = graph.node("DNOTestHistory", history=ours[3])
    run = comfy.run(graph)
    found = run.outputs[history.id]["history"][0]
    assert len(found["rows"]) == 2 and "nan" in found["stopped"]
    assert run.kept["image"]["tensor"].isfinite().all()


@pytest.mark.parametrize("solver", ["DNOSolverGradient", "DNOSolverSearch"])
def test_memory_that_runs_out_before_anything_is_found_is_comfyuis_to_handle(comfy, solver):
    graph = Workflow()
    graph.reward = graph.node("DNOTestReward", kind="out of memory 1")[0]
    graph.keep("latent", graph.dno(iterations=2, solver=graph.node(solver, **SOLVERS[solver])[0])[0])
    run = comfy.run(graph, may_fail=True)
    assert run.error["exception_type"].endswith("OutOfMemoryError"), run.error


@pytest.mark.parametrize("solver, call", [
    ("DNOSolverGradient", 4), ("DNOSolverSearch", 4), ("DNOSolverSearch", 2),  # the first candidate's is the second
])
def test_memory_that_runs_out_later_ends_the_search_and_the_best_so_far_is_kept(comfy, solver, call):
    graph = Workflow()
    graph.reward = graph.node("DNOTestReward", kind=f"out of memory {call}")[0]
    ours = graph.dno(iterations=10, solver=graph.node(solver, **SOLVERS[solver])[0])
    graph.keep("image", ours[1])
    graph.node("DNOTestHistory", history=ours[3])
    run = comfy.run(graph)
    assert "out of memory" in history_of(run)["stopped"]
    assert run.kept["image"]["tensor"].isfinite().all()
    (told,) = run.outputs[ours.id]["text"]
    assert "out of memory" in told, told
