"""Every solver node inside a real ComfyUI, with rewards that have a gradient and rewards that have none."""

import itertools
import math

import pytest
import torch
from workflows import Workflow, flags, history_of, stock_picture

UPDATE = {"optimizer": "adam", "momentum": 0.9, "clip": 0.0}
ZEROTH_ORDER = {"lr": 0.05, "q": 8, "mu": 0.0, "seed": 0, **UPDATE}
ZENO = {"candidates": 8, "beta": 0.0, "weights": "linear", "tau": 0.1, "seed": 0, "schedule": "constant"}
SEARCH = {"candidates": 8, "beta": 0.1, "seed": 0}
TILT = {"strength": 0.4, "start": 0.0, "stop": 1.0, "every": 1, "strengths": "", "q": 0, "seed": 0}
TRUST = {"whitening": 0.5, "gradient": "exact", "q": 0, "seed": 0, "tilt": 0.0}
FAST = {"calls": 30, "coarse_steps": 6, "whitening": 0.5}
SOLVERS = {
    "gradient": ("DNOSolverGradient", {"lr": 0.05, **UPDATE}),
    "lgd": ("DNOSolverLGD", {"samples": 2, "scale": 100.0, "seed": 0}),
    "tilt": ("DNOSolverTilt", {**TILT, "through": "model"}),
    "tilt decoder": ("DNOSolverTilt", {**TILT, "through": "decoder"}),
    "trust": ("DNOSolverTrust", TRUST),
    "fast": ("DNOSolverFast", FAST),
    "trust hybrid-2": ("DNOSolverTrust", {**TRUST, "gradient": "hybrid-2"}),
    # In 12,288 directions of pixel space an estimate is poor; this seed's are good enough in three iterations.
    "hybrid-1": ("DNOSolverZerothOrder", {"method": "hybrid-1", **ZEROTH_ORDER, "q": 4096, "seed": 3}),
    "hybrid-2": ("DNOSolverZerothOrder", {"method": "hybrid-2", **ZEROTH_ORDER}),
    "hybrid-2 ou": ("DNOSolverZerothOrder", {"method": "hybrid-2", **ZEROTH_ORDER, "lr": 0.3, "optimizer": "ou"}),
    "zo-sgd": ("DNOSolverZerothOrder", {"method": "zo-sgd", **ZEROTH_ORDER}),
    "zeno": ("DNOSolverZeNO", {"mode": "optimise", **ZENO}),
    "zeno softmax": ("DNOSolverZeNO", {"mode": "optimise", **ZENO, "weights": "softmax"}),
    "zeno geometric": ("DNOSolverZeNO", {"mode": "optimise", **ZENO, "schedule": "geometric"}),
    "zeno sample": ("DNOSolverZeNO", {"mode": "sample", **ZENO}),
    "zeno resample": ("DNOSolverZeNO", {"mode": "resample", **ZENO, "seed": 1}),
    "best-of-n": ("DNOSolverSearch", {"method": "best-of-n", **SEARCH}),
    "zero-order": ("DNOSolverSearch", {"method": "zero-order", **SEARCH}),
    "pcn": ("DNOSolverSearch", {"method": "pcn", **SEARCH}),
    "trs": ("DNOSolverSearch", {"method": "trs", **SEARCH}),
}
DIFFERENTIATE_THE_REWARD = ("gradient", "lgd", "tilt", "tilt decoder", "trust", "fast")
DIFFERENTIATE_THE_MODEL = (
    "gradient", "lgd", "tilt", "trust", "fast", "hybrid-1", "hybrid-2", "hybrid-2 ou", "trust hybrid-2"
)  # fmt: skip
LOOK_AT_THE_SCHEDULE = ("lgd", "tilt", "tilt decoder")
"""These go by the coefficients of single steps, which differ from family to family; others see the whole map alone."""


def solver(graph, kind, **changes):
    node, settings = SOLVERS[kind]
    return graph.node(node, **{**settings, **changes})[0]


def workflow(kind, *args, **kwargs):
    """A workflow whose reward, brightness, says that it has no gradient, unless the solver needs one."""
    graph = Workflow(*args, **kwargs)
    if kind not in DIFFERENTIATE_THE_REWARD:
        graph.reward = graph.node("DNOTestReward", kind="not differentiable")[0]
    return graph


def scores_of(history):
    """The scores of all iterations (N + 1, B), and of each picture's best (B,)."""
    return torch.tensor([row["score"] for row in history["rows"]]), torch.tensor(history["best_row"]["score"])


@pytest.mark.parametrize("kind, family", [
    *((kind, "eps") for kind in SOLVERS), *((kind, "flow") for kind in LOOK_AT_THE_SCHEDULE),
    *(pytest.param(kind, "flow", marks=pytest.mark.slow) for kind in SOLVERS if kind not in LOOK_AT_THE_SCHEDULE),
])  # fmt: skip
def test_every_solver_finds_better_noise_for_each_picture_of_the_batch(comfy, kind, family):
    graph = workflow(kind, family)
    iterations = 6 if kind == "pcn" else 3
    # LGD guides none of the last steps.
    sampling = {"steps": 6 if kind == "lgd" else 3, "cfg": 3.0, "seed": 1}
    ours = graph.dno(iterations=iterations, solver=solver(graph, kind), **sampling)
    # Another solver, which makes no step, starts at the best and scores it.
    another = solver(graph, "zeno" if kind == "pcn" else "pcn")
    again = graph.dno(iterations=0, solver=another, start_noise=ours[2], **sampling)
    nodes = [graph.node("DNOTestHistory", history=sampler[3]) for sampler in (ours, again)]
    run = comfy.run(graph)
    history, scored = (run.outputs[node.id]["history"][0] for node in nodes)
    scores, best = scores_of(history)
    assert scores.shape == (iterations + 1, 2)
    assert (best > scores[0]).all() and (best >= scores.amax(dim=0)).all()
    torch.testing.assert_close(scores_of(scored)[0][0], best, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", SOLVERS)
def test_gradient_free_solvers_never_call_the_model_with_grad(comfy, kind):
    """The network runs under no_grad, which is noticed as soon as a call wants a gradient."""
    graph = workflow(kind, obstacle="network under no_grad")
    graph.keep("latent", graph.dno(iterations=1, steps=3, solver=solver(graph, kind))[0])
    if kind in DIFFERENTIATE_THE_MODEL:
        assert "gradient is lost inside the model" in comfy.fail(graph)
    else:
        assert comfy.run(graph).kept["latent"]["samples"].isfinite().all()


@pytest.mark.parametrize("obstacle", ["fused kernel", "fast fp8", "multigpu", "lowvram", "detaching attention"])
def test_gradient_free_solvers_take_models_that_cannot_be_differentiated(comfy, obstacle):
    graph = workflow("zeno", obstacle=obstacle, model_seed=len(obstacle))  # some obstacles stay in the model
    searches, latent = {"zeno": 1, "zo-sgd": 1, "zero-order": 1, "gradient": 0}, graph.latent(batch=1, scale=0.0)
    for kind, iterations in searches.items():
        ours = graph.dno(iterations=iterations, steps=3, seed=1, latent=latent, solver=solver(graph, kind))
        graph.keep(kind, ours[0])
    found = {kind: kept["samples"] for kind, kept in comfy.run(graph).kept.items()}
    assert len(found) == 4 and all(samples.isfinite().all() for samples in found.values())


@pytest.mark.parametrize("obstacle", ["fused kernel", "fast fp8", "multigpu", "lowvram", "detaching attention"])
def test_tilt_through_the_decoder_takes_models_that_cannot_be_differentiated(comfy, obstacle):
    graph = workflow("tilt decoder", obstacle=obstacle, model_seed=len(obstacle))
    ours = graph.dno(iterations=1, steps=3, seed=1, solver=solver(graph, "tilt decoder"))
    graph.node("DNOTestHistory", history=ours[3])
    (start, end) = (row["score"] for row in history_of(comfy.run(graph))["rows"])
    assert all(math.isfinite(score) for score in start + end) and start != end


@pytest.mark.parametrize("kind", ["tilt", "tilt decoder", "trust", "fast"])
def test_the_kept_part_of_an_inpainting_is_not_tilted(comfy, kind):
    graph = workflow(kind)
    latent = graph.latent(batch=2, mask="half")
    for iterations in (0, 1):
        graph.keep(f"noise{iterations}", graph.dno(iterations=iterations, latent=latent, solver=solver(graph, kind))[2])
    kept = comfy.run(graph).kept
    before, after = kept["noise0"]["injected"], kept["noise1"]["injected"]
    assert torch.equal(before[..., :4], after[..., :4]) and not torch.equal(before[..., 4:], after[..., 4:])


@pytest.mark.parametrize(
    "kind, fewer", [("hybrid-2", {"q": 2}), ("zo-sgd", {"q": 2}), ("zeno", {"candidates": 2}), ("pcn", {})]
)
def test_a_time_budget_ends_the_search_early_and_keeps_the_best(comfy, kind, fewer):
    graph = workflow(kind, obstacle="slow")
    ours = graph.dno(iterations=1000, steps=3, seconds=3.0, solver=solver(graph, kind, **fewer))
    graph.node("DNOTestHistory", history=ours[3])
    history = history_of(comfy.run(graph))
    ends = [0.0, *(row["seconds"] for row in history["rows"])]
    longest = max(end - start for start, end in itertools.pairwise(ends))
    assert "time budget" in history["stopped"] and ends[-1] < 3 + longest
    scores, best = scores_of(history)
    assert (best >= scores.amax(dim=0)).all()


@pytest.mark.parametrize("kind", ["lgd", "hybrid-2", "zo-sgd", "zeno", "zero-order"])
def test_an_interruption_takes_effect_within_one_network_call_and_leaves_no_trace(comfy, kind):
    picture, before = stock_picture(comfy, len(kind)), flags(comfy)
    graph = workflow(kind, obstacle="slow")
    graph.keep("latent", graph.dno(iterations=3, steps=6, solver=solver(graph, kind))[0])
    interrupted = []

    def interrupt(run, message, data):
        # Beyond the first pass: among the candidates or, of LGD, in the guided run.
        if message == "progress" and data["value"] >= 7 + 3 and not interrupted:
            interrupted.append(data["value"])
            comfy.interrupt()

    run = comfy.run(graph, on_message=interrupt)
    assert run.ended == "execution_interrupted"
    assert run.of_type("progress")[-1]["value"] <= interrupted[0] + 2
    assert torch.equal(stock_picture(comfy, -len(kind)), picture)
    assert flags(comfy) == before


@pytest.mark.parametrize("kind", ["zeno", "zero-order", "zo-sgd"])
def test_inpainting_leaves_the_kept_part_of_noise_and_picture_alone(comfy, kind):
    graph = workflow(kind)
    latent = graph.latent(batch=2, mask="half")
    for iterations in (0, 3):
        ours = graph.dno(iterations=iterations, steps=3, latent=latent, solver=solver(graph, kind))
        graph.keep(f"latent{iterations}", ours[0])
        graph.keep(f"noise{iterations}", ours[2])
    kept = comfy.run(graph).kept
    for name, key in (("latent", "samples"), ("noise", "initial"), ("noise", "injected")):
        before, after = kept[f"{name}0"][key], kept[f"{name}3"][key]
        assert torch.equal(before[..., :4], after[..., :4]), (name, key)
        assert not torch.equal(before[..., 4:], after[..., 4:]), (name, key)


def way(comfy, kind, settings, iterations=2):
    """The scores of a search's iterations, of one picture: they tell two searches apart."""
    graph = workflow(kind)
    several = "tilt" in kind or kind == "fast"
    sampling = {"latent": graph.latent(batch=1, scale=0.0), "steps": 4 if several else 2}
    ours = graph.dno(iterations=iterations, solver=solver(graph, kind, **settings), **sampling)
    graph.node("DNOTestHistory", history=ours[3])
    return tuple(tuple(row["score"]) for row in history_of(comfy.run(graph))["rows"])


@pytest.mark.parametrize(
    "kind, zero, same, other",
    [
        ("hybrid-2", {"q": 0, "mu": 0.0}, {"q": 4, "mu": 0.02}, {"q": 5, "mu": 0.02}),
        ("hybrid-1", {"q": 0, "mu": 0.0}, {"q": 8, "mu": 0.01}, {"q": 9, "mu": 0.01}),
        ("zo-sgd", {"q": 0, "mu": 0.0}, {"q": 16, "mu": 0.01}, {"q": 16, "mu": 0.5}),
        ("zeno", {"beta": 0.0, "candidates": 2}, {"beta": 0.25, "candidates": 2}, {"beta": 0.2, "candidates": 2}),
    ],
)
def test_zero_means_what_the_tooltip_says(comfy, kind, zero, same, other):
    iterations = 10 if kind == "zeno" else 1  # 2.5 / 10 iterations is ZeNO's 0.25
    ways = [way(comfy, kind, settings, iterations) for settings in (zero, same, other)]
    assert ways[0] == ways[1] != ways[2]


@pytest.mark.parametrize(
    "kind, ignored, used",
    [
        ("best-of-n", {"beta": 0.9}, {"candidates": 3}),
        ("zero-order", {}, {"beta": 0.9}),
        ("zero-order", {}, {"candidates": 3}),
        ("pcn", {"candidates": 3}, {"beta": 0.9}),
        ("trs", {}, {"beta": 0.9}),
        ("trs", {}, {"candidates": 3}),
        ("zeno", {"tau": 9.0}, {"candidates": 3}),
        ("zeno", {}, {"schedule": "geometric"}),
        ("zeno sample", {"schedule": "geometric"}, {"beta": 0.9}),
        ("hybrid-2 ou", {"momentum": 0.5}, {"lr": 0.2}),
        ("zeno softmax", {}, {"tau": 0.0001}),
        ("zeno sample", {"weights": "softmax"}, {"tau": 0.0001}),
        ("zeno resample", {"weights": "softmax"}, {"tau": 0.0001}),
        ("gradient", {"momentum": 0.5}, {"optimizer": "sgd"}),
        ("zo-sgd", {"momentum": 0.5}, {"optimizer": "sgd"}),
        ("lgd", {}, {"samples": 1, "scale": 1.0}),
        ("tilt", {}, {"strength": 0.2}),
        ("tilt", {}, {"start": 0.5}),
        ("tilt", {}, {"every": 2, "stop": 0.5}),
        ("tilt", {}, {"strengths": "0.1, 0.2"}),
        ("tilt", {}, {"q": 4}),
        ("trust", {"q": 5, "seed": 5}, {"whitening": 1.0}),
        ("trust", {}, {"tilt": 0.3}),
        ("fast", {}, {"calls": 60}),
        ("fast", {}, {"whitening": 1.0}),
        ("trust hybrid-2", {}, {"q": 5}),
    ],
)
def test_a_setting_counts_where_the_tooltip_says_so_and_only_there(comfy, kind, ignored, used):
    assert way(comfy, kind, {}) == way(comfy, kind, ignored) != way(comfy, kind, used)


@pytest.mark.parametrize("kind", ["hybrid-2", "zeno", "zeno sample", "best-of-n", "lgd", "tilt"])
def test_the_seed_sets_what_is_tried(comfy, kind):
    assert len({way(comfy, kind, {"seed": seed}) for seed in (0, 1, 2**64 - 1)}) == 3


@pytest.mark.parametrize("kind", [None, *DIFFERENTIATE_THE_REWARD])
def test_a_reward_without_gradient_is_refused_and_the_nodes_that_need_none_are_named(comfy, kind):
    graph = Workflow()
    graph.reward = graph.node("DNOJPEGReward", incompressible=False, proxy=False)[0]
    graph.keep("latent", graph.dno(iterations=1, solver=kind and solver(graph, kind))[0])
    run = comfy.run(graph, may_fail=True)
    assert run.of_type("progress") == [], "refused before anything is sampled"
    message = run.error["exception_message"]
    assert "jpeg compressibility is not differentiable" in message and "`proxy` of the JPEG Reward node" in message
    names = [node["display_name"] for name, node in comfy.get("/object_info").items() if name.startswith("DNOSolver")]
    with_gradient = ("Gradient", "LGD", "Tilt", "Trust", "Fast")
    others = [name.removeprefix("DNO Solver (")[:-1] for name in names if not any(w in name for w in with_gradient)]
    assert len(others) == 3 and all(other in message for other in others), message


@pytest.mark.parametrize(
    "kind, changes, sampling, words",
    [
        ("lgd", {}, {"eta": 0.0}, "expected eta > 0"),
        ("tilt", {}, {"eta": 0.0}, "expected eta > 0"),
        ("tilt", {"strength": 1.0}, {}, "bigger than max of 0.99"),
        ("tilt", {"strengths": "0.2; 0.3"}, {}, "expected numbers such as 0.2, 0.3"),
        ("tilt", {"strengths": "0.2, 1.5"}, {}, "the strength is 1.5"),
        ("fast", {"coarse_steps": 2}, {"eta": 0.0}, "Expected eta > 0"),
        ("fast", {"coarse_steps": 2}, {"part": "initial"}, "part 'all' or 'injected'"),
        ("fast", {"calls": 10, "coarse_steps": 4}, {}, "expected at least 12"),
        ("trust", {"gradient": "hybrid-3"}, {}, "hybrid-3.*hybrid-2"),
        ("zeno", {"candidates": 1}, {}, "smaller than min of 2"),
        ("zeno", {"beta": 1.5}, {}, "bigger than max of 1"),
        ("zeno", {"schedule": "linear"}, {}, "linear.*geometric"),
        ("hybrid-2 ou", {"lr": 2.0}, {}, "expected at most 1"),
        ("zo-sgd", {"q": -1}, {}, "smaller than min of 0"),
        ("pcn", {"beta": 0.0}, {}, "smaller than min of 0.0001"),
        ("best-of-n", {"method": "best-of-all"}, {}, "best-of-all.*best-of-n"),
        ("hybrid-2", {"method": "hybrid-3"}, {}, "hybrid-3.*hybrid-2"),
        ("zeno", {"mode": "climb"}, {}, "climb.*optimise"),
    ],
)
def test_bad_settings_are_refused(comfy, kind, changes, sampling, words):
    graph = workflow(kind)
    graph.keep("latent", graph.dno(iterations=1, solver=solver(graph, kind, **changes), **sampling)[0])
    with pytest.raises((ValueError, RuntimeError), match=words):
        comfy.run(graph)


@pytest.mark.parametrize("kind", ["hybrid-2", "zo-sgd", "zeno", "best-of-n", "lgd"])
def test_a_reward_that_is_not_finite_is_named(comfy, kind):
    graph = Workflow()
    graph.reward = graph.node("DNOTestReward", kind="nan")[0]
    graph.keep("latent", graph.dno(iterations=1, solver=solver(graph, kind))[0])
    message = comfy.fail(graph)
    assert "broken is" in message and "expected finite numbers" in message


@pytest.mark.parametrize("kind", ["tilt", "tilt decoder"])
def test_a_vae_that_guides_the_tilt_decodes_for_its_gradients_alone(comfy, kind):
    graph = Workflow()
    another = graph.node("DNOTestModel", family="eps", seed=50, dtype="float32", vae_channels=4)[3]
    for key, guide in (("none", {}), ("itself", {"guide_vae": graph.vae}), ("another", {"guide_vae": another})):
        ours = graph.dno(iterations=1, solver=solver(graph, kind, **guide))
        graph.keep(key, ours[0])
        graph.keep(f"{key} image", ours[1])
        graph.keep(f"{key} decoded", graph.node("VAEDecode", samples=ours[0], vae=graph.vae)[0])
    kept = comfy.run(graph).kept
    latents = {key: kept[key]["samples"] for key in ("none", "itself", "another")}
    assert torch.equal(latents["none"], latents["itself"])
    assert not torch.equal(latents["none"], latents["another"])
    torch.testing.assert_close(kept["another image"], kept["another decoded"], rtol=0, atol=1e-6)


def test_a_guiding_vae_of_other_latents_is_refused_before_anything_is_sampled(comfy):
    graph = Workflow()
    another = graph.node("DNOTestModel", family="eps", seed=50, dtype="float32", vae_channels=16)[3]
    graph.keep("latent", graph.dno(iterations=1, solver=solver(graph, "tilt", guide_vae=another))[0])
    assert "guide_vae decodes latents of 16 channels but the sampler's VAE 4" in comfy.fail(graph)
