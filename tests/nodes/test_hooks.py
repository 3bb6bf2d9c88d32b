"""Hooks: LoRAs and models that one prompt brings along, with keyframes of their strength."""

import pytest
import torch
from workflows import NoiseWorkflow, Workflow, error, notes_of, warnings_of


class HookedWorkflow(NoiseWorkflow):
    """A graph whose prompts get hooks."""

    def hook(self, kind, keyframes=(), strength=1.0, prompt="positive"):
        """Give a prompt a hook; `keyframes` are pairs of a share of the schedule and a strength, or "interpolated"."""
        hooks, track = self.node("DNOTestHook", model=self.model, kind=kind, seed=0, strength=strength)[0], None
        if keyframes == "interpolated":
            track = self.node(
                "CreateHookKeyframesInterpolated", strength_start=2.0, strength_end=0.0, interpolation="linear",
                start_percent=0.1, end_percent=0.9, keyframes_count=8, print_keyframes=False,
            )[0]  # fmt: skip
            keyframes = ()
        for start, factor in keyframes:
            track = self.node("CreateHookKeyframe", strength_mult=factor, start_percent=start, prev_hook_kf=track)[0]
        if track is not None:
            hooks = self.node("SetHookKeyframes", hooks=hooks, hook_kf=track)[0]
        conditioning = {"cond_NEW": getattr(self, prompt), "strength": 1.0, "set_cond_area": "default"}
        setattr(self, prompt, self.node("ConditioningSetProperties", **conditioning, hooks=hooks)[0])
        return self


KEYFRAMES = [(0.0, 1.0), (0.3, 0.2), (0.6, -1.0)]


@pytest.mark.parametrize("kind, keyframes, keep_graphs", [
    ("lora", (), False), ("model", (), False), ("lora", KEYFRAMES, False), ("model", KEYFRAMES, True),
])  # fmt: skip
def test_the_gradient_is_that_of_the_weights_which_each_prompt_ran_with(
    comfy, record_property, kind, keyframes, keep_graphs
):
    graph = HookedWorkflow(model_seed=21).hook(kind, keyframes, strength=3.0)
    graph.witnessed("cosine", cfg=3.0, steps=4, keep_graphs=keep_graphs, latent=graph.latent(batch=1))
    cosine = notes_of(comfy.run(graph))["cosine"]
    record_property("cosine", cosine)
    assert cosine > 0.9999


@pytest.mark.parametrize("solver", ["gradient", "search"])
def test_a_noise_replays_to_what_a_search_found_with_keyframes(comfy, record_property, solver):
    graph = HookedWorkflow(model_seed=22).hook("lora", KEYFRAMES)
    search = graph.node("DNOSolverSearch", method="zero-order", candidates=3, beta=0.1, seed=0)[0]
    ours = graph.dno(iterations=2, solver=search if solver == "search" else graph.gradient())
    graph.keep("ours", ours[0])
    graph.keep("start", graph.dno()[0])
    graph.keep("replayed", graph.replay(ours[2], graph.latent())[0])
    run = comfy.run(graph)
    found = {key: value["samples"] for key, value in run.kept.items()}
    record_property("replay", error(found["replayed"], found["ours"]))
    assert error(found["start"], found["ours"]) > 1e-3, "nothing was found"
    assert error(found["replayed"], found["ours"]) < 1e-5
    assert warnings_of(run, ours) == []


@pytest.mark.parametrize("keyframes", [KEYFRAMES, [(0.2, 3.0), (0.4, 0.5)], "interpolated"])
def test_hooks_give_the_stock_samplers_latent_at_0_iterations(comfy, keyframes):
    """The interpolated ones stay at their first keyframe for a step, counted from where the prompt's range begins."""
    graph = HookedWorkflow(model_seed=23).hook("lora", keyframes)
    if keyframes == "interpolated":
        ranged = graph.node("ConditioningSetTimestepRange", conditioning=graph.positive, start=0.4, end=1.0)
        graph.positive = graph.node("ConditioningCombine", conditioning_1=ranged[0], conditioning_2=graph.negative)[0]
    graph.keep("ours", graph.dno(eta=0.0)[0])
    graph.keep("stock", graph.node("KSampler", **graph.sampling(), sampler_name="euler")[0])
    kept = comfy.run(graph).kept
    assert error(kept["ours"]["samples"], kept["stock"]["samples"]) < 1e-5


def test_a_search_leaves_a_prompts_hooks_with_the_keyframes_that_they_had(comfy):
    """ComfyUI keeps conditionings for the next run, and other prompts may share their keyframes."""
    graph = HookedWorkflow(model_seed=25).hook("lora", KEYFRAMES)
    noted = graph.node("DNOTestKeyframes", conditioning=graph.positive)
    graph.positive, before = noted[0], noted[1]
    after = graph.dno(iterations=1)[0]
    told = graph.node("DNOTestKeyframes", conditioning=graph.positive, before=before, after=after)
    assert comfy.run(graph).outputs[told.id]["same"] == [True]


def test_a_search_leaves_the_weights_as_they_were(comfy):
    def stock(nonce):  # for ComfyUI's cache alone: float32 rounds it away
        graph = Workflow(model_seed=24)
        sampled = graph.node("KSampler", **graph.sampling(cfg=8.0 + nonce * 1e-12), sampler_name="euler")
        graph.keep("latent", sampled[0])
        return comfy.run(graph).kept["latent"]["samples"]

    before, graph = stock(1), HookedWorkflow(model_seed=24).hook("model", KEYFRAMES).hook("lora", prompt="negative")
    graph.keep("latent", graph.dno(iterations=1, solver=graph.gradient())[0])
    comfy.run(graph)
    assert torch.equal(stock(2), before)
