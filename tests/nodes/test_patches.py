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
    ours = graph.dno(iterations=1, solver=search, latent=latent)
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


@pytest.mark.parametrize("patch, settings, batch, dtype", [
    ("VideoLinearCFGGuidance", {"min_cfg": 1.0}, 2, "float32"),
    ("Mahiro", {}, 1, "float32"), ("Mahiro", {}, 1, "bfloat16"),
    ("RenormCFG", {"cfg_trunc": 100.0, "renorm_cfg": 1.0}, 1, "float32"),
    ("TemporalScoreRescaling", {"tsr_k": 0.95, "tsr_sigma": 1.0}, 1, "float32"),
])  # fmt: skip
def test_candidates_are_sampled_one_at_a_time_where_a_patch_mixes_a_calls_pictures(
    comfy, patch, settings, batch, dtype
):
    """Or where it takes no more than one: RenormCFG and TemporalScoreRescaling compare tensors as if of one picture."""
    graph = NoiseWorkflow(dtype=dtype)
    graph.model = graph.node(patch, model=graph.model, **settings)[0]
    latent = graph.latent(batch=batch)
    search = graph.node("DNOSolverSearch", **{**SEARCH, "candidates": 4})[0]
    ours = graph.dno(iterations=2, solver=search, latent=latent)
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
    ours = graph.dno(iterations=2, solver=graph.gradient(), latent=latent)
    graph.keep("ours", ours[0])
    graph.keep("replayed", graph.replay(ours[2], latent)[0])
    graph.node("DNOTestHistory", history=ours[3])
    run = comfy.run(graph)
    history = history_of(run)
    assert history["best"][0] > history["rows"][0]["score"][0] and warnings_of(run, ours) == []
    assert error(run.kept["replayed"]["samples"], run.kept["ours"]["samples"]) < 1e-5


def calls(comfy):
    """How often the network of models with the obstacle "loud" has been called on this server."""
    return comfy.log().count("the network is called")


WINDOWS = {
    "context_length": 2, "context_overlap": 1, "context_schedule": "standard_static", "context_stride": 1,
    "closed_loop": False, "fuse_method": "pyramid", "freenoise": False, "cond_retain_index_list": "",
    "split_conds_to_windows": False, "latent_retain_index_list": "", "causal_window_fix": False,
}  # fmt: skip


@pytest.mark.parametrize("solver", ["gradient", "search"])
@pytest.mark.parametrize("kind", ["Stable Video Diffusion", "windows over the batch"])
def test_frames_that_are_a_batch_are_refused_before_anything_is_sampled(comfy, kind, solver):
    graph = NoiseWorkflow()
    if kind == "Stable Video Diffusion":
        graph.model = graph.node("DNOTestClipModel", seed=0)[0]
    else:
        graph.model = graph.node("ContextWindowsManual", model=graph.model, **WINDOWS, dim=0)[0]
    graph.model = graph.node("DNOTestObstacle", model=graph.model, kind="loud")[0]
    search = graph.node("DNOSolverSearch", **SEARCH)[0] if solver == "search" else graph.gradient()
    graph.keep("searched", graph.dno(iterations=1, solver=search, latent=graph.latent(batch=4))[0])
    before, found = calls(comfy), comfy.fail(graph)
    assert "frames of one clip" in found and "iterations to 0" in found, found
    assert calls(comfy) == before, "something was sampled"


def test_frames_that_are_a_batch_are_sampled_where_nothing_is_searched(comfy):
    graph = Workflow()
    graph.model = graph.node("DNOTestObstacle", model=graph.node("DNOTestClipModel", seed=0)[0], kind="loud")[0]
    latent, before = graph.latent(batch=4), calls(comfy)
    graph.keep("ours", graph.dno(eta=0.0, latent=latent)[0])
    graph.keep("stock", graph.node("KSampler", **graph.sampling(latent=latent), sampler_name="euler")[0])
    kept = comfy.run(graph).kept
    assert error(kept["ours"]["samples"], kept["stock"]["samples"]) < 1e-5
    assert calls(comfy) > before, "the calls are not counted"


class WindowedWorkflow(NoiseWorkflow):
    """A tiny Wan 2.1 whose clips of 5 frames go through windows of 3, others in each step."""

    def __init__(self, freenoise=False):
        super().__init__("video")
        windows = {**WINDOWS, "context_length": 3, "context_schedule": "standard_uniform", "context_stride": 2}
        windows |= {"freenoise": freenoise, "dim": 2}
        self.model = self.node("ContextWindowsManual", model=self.model, **windows)[0]
        self.clip = self.latent(channels=16, dims=5, size=4, frames=5, batch=1, scale=0.0)


def test_windows_over_a_clips_frames_are_sampled_as_stock_and_searched(comfy, record_property):
    graph = WindowedWorkflow()
    ours = graph.dno(iterations=1, solver=graph.gradient(), latent=graph.clip)
    graph.keep("ours", ours[0])
    graph.keep("replayed", graph.replay(ours[2], graph.clip)[0])
    graph.keep("start", graph.dno(eta=0.0, latent=graph.clip)[0])
    graph.keep("stock", graph.node("KSampler", **graph.sampling(latent=graph.clip), sampler_name="euler")[0])
    kept = {key: value["samples"] for key, value in comfy.run(graph).kept.items()}
    assert error(kept["start"], kept["stock"]) < 1e-5
    assert error(kept["replayed"], kept["ours"]) < 1e-5
    graph.witnessed("gradient", cfg=3.0, latent=graph.clip)
    errors = notes_of(comfy.run(graph))["gradient_error"]
    record_property("gradient", errors)
    assert max(errors) < 1e-2, errors


def test_noise_that_windows_copy_from_frame_to_frame_is_refused(comfy):
    if comfy.version <= (0, 3, 75):
        pytest.skip("this ComfyUI's windows copy no noise")
    graph = WindowedWorkflow(freenoise=True)
    graph.model = graph.node("DNOTestObstacle", model=graph.model, kind="loud")[0]
    graph.keep("latent", graph.dno(iterations=1, solver=graph.gradient(), latent=graph.clip)[0])
    before, found = calls(comfy), comfy.fail(graph)
    assert "Switch freenoise off" in found and calls(comfy) == before, found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("patch", ["PerpNeg", "Mahiro"])
def test_pictures_that_a_patch_lets_depend_on_each_other_are_refused(comfy, patch, dtype):
    graph = NoiseWorkflow(dtype=dtype)
    other = graph.node("DNOTestModel", family="eps", seed=9, dtype="float32", vae_channels=4)[1]
    settings = {"PerpNeg": {"empty_conditioning": other, "neg_scale": 1.0}, "Mahiro": {}}
    graph.model = graph.node(patch, model=graph.model, **settings[patch])[0]
    graph.keep("latent", graph.dno(iterations=1, solver=graph.gradient(), latent=graph.latent(batch=2))[0])
    run = comfy.run(graph, may_fail=True)
    assert "depend on each other" in run.error["exception_message"], run.error
    assert not run.of_type("progress"), "something was sampled"


def test_pictures_that_a_guider_lets_depend_on_each_other_are_refused(comfy):
    graph = NoiseWorkflow()
    other = graph.node("DNOTestModel", family="eps", seed=9, dtype="float32", vae_channels=4)[1]
    prompts = {"positive": graph.positive, "negative": graph.negative, "empty_conditioning": other}
    guider = graph.node("PerpNegGuider", model=graph.model, **prompts, cfg=8.0, neg_scale=1.0)
    ours = graph.node(
        "DNOSamplerAdvanced", noise=graph.node("RandomNoise", noise_seed=3)[0], guider=guider[0],
        sigmas=graph.sigmas(), latent_image=graph.latent(batch=2), vae=graph.vae, reward=graph.reward, eta=1.0,
        iterations=1, solver=graph.gradient(),
    )  # fmt: skip
    graph.keep("latent", ours[0])
    assert "depend on each other" in comfy.fail(graph)


def test_a_batch_is_searched_where_a_patch_goes_by_a_pictures_place_alone(comfy):
    graph = NoiseWorkflow()
    graph.model = graph.node("VideoLinearCFGGuidance", model=graph.model, min_cfg=1.0)[0]
    latent = graph.latent(batch=2)
    ours = graph.dno(iterations=2, solver=graph.gradient(), latent=latent)
    graph.keep("ours", ours[0])
    graph.keep("start", graph.dno(latent=latent)[0])
    graph.keep("replayed", graph.replay(ours[2], latent)[0])
    kept = comfy.run(graph).kept
    assert error(kept["start"]["samples"], kept["ours"]["samples"]) > 1e-3
    assert error(kept["replayed"]["samples"], kept["ours"]["samples"]) < 1e-5


@pytest.mark.parametrize("momentum", [0.0, -0.1])
def test_guidance_with_a_momentum_is_refused_where_a_gradient_is_needed_and_searched_where_none_is(comfy, momentum):
    graph = NoiseWorkflow()
    graph.model = graph.node("DNOTestObstacle", model=graph.model, kind="loud")[0]
    graph.model = graph.node("APG", model=graph.model, eta=1.0, norm_threshold=0.0, momentum=momentum)[0]
    latent = graph.latent(batch=2)
    search = graph.node("DNOSolverSearch", **SEARCH)[0]
    ours = graph.dno(iterations=2, solver=search, latent=latent)
    graph.keep("ours", ours[0])
    graph.keep("start", graph.dno(latent=latent)[0])
    graph.keep("replayed", graph.replay(ours[2], latent)[0])
    run = comfy.run(graph)
    assert warnings_of(run, ours) == []
    assert error(run.kept["start"]["samples"], run.kept["ours"]["samples"]) > 1e-3
    assert error(run.kept["replayed"]["samples"], run.kept["ours"]["samples"]) < 1e-5
    graph.keep("climbed", graph.dno(iterations=2, solver=graph.gradient(), latent=latent)[0])
    before, climbed = calls(comfy), comfy.run(graph, may_fail=True)
    if momentum:
        assert "APG with a momentum" in climbed.error["exception_message"] and calls(comfy) == before
    else:
        assert climbed.error is None


def test_a_patch_of_the_guidance_may_hold_a_variable_that_was_never_assigned(comfy):
    graph = NoiseWorkflow(obstacle="unassigned")
    graph.keep("latent", graph.dno(iterations=1, solver=graph.gradient())[0])
    comfy.run(graph)


@pytest.mark.parametrize("patch", ["EasyCache", "LazyCache"])
def test_a_step_cache_is_named_where_a_gradient_is_needed(comfy, patch):
    graph = NoiseWorkflow()
    graph.model = graph.node(patch, model=graph.model, **CACHE)[0]
    graph.keep("latent", graph.dno(iterations=1, solver=graph.gradient())[0])
    found = comfy.fail(graph)
    assert f"{patch} is in the model" in found and "Search" in found, found
