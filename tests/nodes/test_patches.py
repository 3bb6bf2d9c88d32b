"""Patches of the model by other nodes that keep a state, draw random numbers or work in place."""

import pytest
from workflows import NoiseWorkflow, Workflow, error, history_of, notes_of, warnings_of

CACHE = {"reuse_threshold": 1.0, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
PATCHES = {
    "EasyCache": CACHE, "LazyCache": CACHE, "TomePatchModel": {"ratio": 0.5},
    "HyperTile": {"tile_size": 32, "swap_size": 4, "max_depth": 0, "scale_depth": False},
}  # fmt: skip
SEARCH = {"method": "zero-order", "candidates": 3, "beta": 0.1, "seed": 0}


@pytest.mark.parametrize("patch", PATCHES)
def test_a_search_finds_a_noise_that_replays_though_the_patch_has_a_state_or_is_random(comfy, record_property, patch):
    graph = NoiseWorkflow()
    latent = graph.latent(batch=2, size=16)
    graph.keep("without", graph.dno(latent=latent)[0])
    graph.model = graph.node(patch, model=graph.model, **PATCHES[patch])[0]
    search = graph.node("DNOSolverSearch", **SEARCH)[0]
    ours = graph.dno(iterations=2, solver=search, latent=latent)
    graph.keep("ours", ours[0])
    graph.keep("start", graph.dno(latent=latent)[0])
    graph.keep("replayed", graph.replay(ours[2], latent)[0])
    run = comfy.run(graph)
    assert warnings_of(run, ours) == []
    found = {key: value["samples"] for key, value in run.kept.items()}
    record_property("replay", error(found["replayed"], found["ours"]))
    assert error(found["replayed"], found["ours"]) < 1e-5
    assert error(found["start"], found["without"]) > 1e-3, "the patch does nothing here"
    assert error(found["start"], found["ours"]) > 1e-3


@pytest.mark.parametrize("patch, settings, batch", [
    ("VideoLinearCFGGuidance", {"min_cfg": 1.0}, 2), ("Mahiro", {}, 1),
    ("RenormCFG", {"cfg_trunc": 100.0, "renorm_cfg": 1.0}, 1),
    ("TemporalScoreRescaling", {"tsr_k": 0.95, "tsr_sigma": 1.0}, 1),
])
def test_candidates_are_sampled_one_at_a_time_where_a_patch_mixes_a_calls_pictures(comfy, patch, settings, batch):
    """Or where it takes no more than one: RenormCFG and TemporalScoreRescaling compare tensors as if of one picture."""
    graph = NoiseWorkflow()
    graph.model = graph.node(patch, model=graph.model, **settings)[0]
    latent = graph.latent(batch=batch)
    search = graph.node("DNOSolverSearch", **{**SEARCH, "candidates": 8})[0]
    ours = graph.dno(iterations=3, solver=search, latent=latent)
    graph.keep("ours", ours[0])
    graph.keep("start", graph.dno(latent=latent)[0])
    graph.keep("replayed", graph.replay(ours[2], latent)[0])
    run = comfy.run(graph)
    assert error(run.kept["start"]["samples"], run.kept["ours"]["samples"]) > 1e-2, "nothing was found"
    assert warnings_of(run, ours) == []
    assert error(run.kept["replayed"]["samples"], run.kept["ours"]["samples"]) < 1e-5


@pytest.mark.parametrize("patch", PATCHES)
def test_a_patch_gives_the_stock_samplers_latent_at_0_iterations(comfy, patch):
    graph = Workflow()
    graph.model = graph.node(patch, model=graph.model, **PATCHES[patch])[0]
    latent = graph.latent(size=16)
    graph.keep("ours", graph.dno(eta=0.0, latent=latent)[0])
    graph.keep("stock", graph.node("KSampler", **graph.sampling(latent=latent), sampler_name="euler")[0])
    kept = comfy.run(graph).kept
    assert error(kept["ours"]["samples"], kept["stock"]["samples"]) < 1e-5


def test_one_call_takes_the_candidates_of_an_iteration_and_one_where_a_step_cache_couples_them(comfy):
    found = []
    for patch in (None, "EasyCache"):
        graph = Workflow()
        if patch:
            graph.model = graph.node(patch, model=graph.model, **CACHE)[0]
        graph.witnessed("rows", differentiates=False)
        found.append(notes_of(comfy.run(graph))["rows"])
    # Five candidates and the noise itself, of two pictures each.
    assert found == [12, 2]


def test_a_random_patch_leaves_the_global_random_numbers_as_they_were(comfy):
    graph = Workflow()
    graph.model = graph.node("TomePatchModel", model=graph.model, ratio=0.5)[0]
    graph.witnessed("random")
    before, after = notes_of(comfy.run(graph))["random"]
    assert before == after


def test_the_gradient_is_right_with_a_patch_that_works_in_place(comfy, record_property):
    graph = Workflow(model_seed=8)
    # The tiny network has no wide block: told that its channels are twice as many as its base's, one is.
    model = graph.node("DNOTestObstacle", model=graph.model, kind="wide block")[0]
    graph.model = graph.node("FreeU_V2", model=model, b1=1.3, b2=1.4, s1=0.9, s2=0.2)[0]
    graph.witnessed("gradient", cfg=3.0)
    errors = notes_of(comfy.run(graph))["gradient_error"]
    record_property("gradient_error", errors)
    assert max(errors) < 0.02, errors
    assert "changes tensors in place" in comfy.log()


@pytest.mark.parametrize("patch", ["TomePatchModel", "HyperTile"])
def test_a_search_by_gradient_takes_random_patches_too(comfy, patch):
    graph = NoiseWorkflow()
    latent = graph.latent(batch=1, size=16)
    graph.model = graph.node(patch, model=graph.model, **PATCHES[patch])[0]
    ours = graph.dno(iterations=3, solver=graph.gradient(), latent=latent)
    graph.keep("ours", ours[0])
    graph.keep("replayed", graph.replay(ours[2], latent)[0])
    graph.node("DNOTestHistory", history=ours[3])
    run = comfy.run(graph)
    history = history_of(run)
    assert history["best"][0] > history["rows"][0]["score"][0] and warnings_of(run, ours) == []
    assert error(run.kept["replayed"]["samples"], run.kept["ours"]["samples"]) < 1e-5


@pytest.mark.parametrize("patch", ["EasyCache", "LazyCache"])
def test_a_step_cache_is_named_where_a_gradient_is_needed(comfy, patch):
    graph = NoiseWorkflow()
    graph.model = graph.node(patch, model=graph.model, **CACHE)[0]
    graph.keep("latent", graph.dno(iterations=1, solver=graph.gradient())[0])
    found = comfy.fail(graph)
    assert f"{patch} is in the model" in found and "Search" in found, found
