"""DNO Belief inside a real ComfyUI: by the guider's own conditionings, without a second model."""

import math
from dataclasses import replace

import pytest
import torch
from comfyui_dno import core
from comfyui_dno.core.models.embedded import configs
from scoring import Scoring
from workflows import NoiseWorkflow, Workflow, history_of, notes_of, warnings_of

PROMPT = "black cat"


class Embedded(Workflow):
    """A search with the embedded model in place of the tiny one."""

    def __init__(self):
        super().__init__()
        self.model, clip, self.vae = (self.node("DNOLoadEmbeddedModel")[index] for index in range(3))
        self.positive, self.negative = (self.node("CLIPTextEncode", clip=clip, text=text)[0] for text in (PROMPT, ""))

    def latent(self):
        return self.node("EmptyLatentImage", width=128, height=128, batch_size=2)[0]


def believed(graph, noises=4, samples=2):
    return graph.node("DNOBelief", noises=noises, samples=samples)[0]


def told(graph, ours, comfy):
    graph.node("DNOTestHistory", history=ours[3])
    return history_of(comfy.run(graph))


def test_it_equals_cores_own_on_the_embedded_model(comfy, record_property):
    graph = Embedded()
    ours = graph.dno(seed=5, steps=6, cfg=3.0, watch=believed(graph))
    graph.node("DNOTestHistory", history=ours[3])
    graph.keep("latent", ours[0])
    run = comfy.run(graph)
    history = history_of(run)
    whole = core.load_embedded([PROMPT] * 2, steps=6)
    sample_map = replace(whole, schedule=core.Schedule(history["settings"]["sigmas"]))
    latent = run.kept["latent"]["samples"] * configs.LATENT_SCALE
    expected = core.Belief(noises=4, samples=2).of(sample_map).part_scores(latent)
    for name, scores in expected.items():
        found = torch.tensor(history["rows"][0][f"watch/{name}"])
        record_property(name, (found - scores).abs().max().item())
        # Rounding, of other kernels elsewhere: 6e-7 was measured.
        torch.testing.assert_close(found, scores, rtol=0, atol=1e-4)
    assert (expected["belief"] > 0.6).all()


@pytest.mark.parametrize("conditioned", ["plainly", "by area", "with a hook", "by a batch"])
@pytest.mark.parametrize("family", ["eps", "v", "flow"])
def test_the_guiders_estimate_is_made_of_the_two_that_are_asked(comfy, family, conditioned):
    graph = Workflow(family)
    if conditioned == "by area":
        area = {"width": 0.5, "height": 1.0, "x": 0.0, "y": 0.0, "strength": 1.0}
        part = graph.node("ConditioningSetAreaPercentage", conditioning=graph.positive, **area)[0]
        graph.positive = graph.node("ConditioningCombine", conditioning_1=part, conditioning_2=graph.positive)[0]
    if conditioned == "with a hook":
        hooks = graph.node("DNOTestHook", model=graph.model, kind="lora", seed=0, strength=3.0)[0]
        settings = {"cond_NEW": graph.positive, "strength": 1.0, "set_cond_area": "default"}
        graph.positive = graph.node("ConditioningSetProperties", **settings, hooks=hooks)[0]
    batch = 3 if conditioned == "by a batch" else 1
    graph.witnessed("unguided", cfg=3.0, latent=graph.latent(batch=batch), differentiates=False)
    notes = notes_of(comfy.run(graph))["unguided"]
    # Rounding of float32, which guidance makes up to five times as large.
    assert notes["differ"] > 1e-3 and notes["error"] < 1e-5


@pytest.mark.parametrize("solver", ["gradient", "search"])
def test_a_search_by_gradients_or_without_asks_it_for_a_floor(comfy, solver):
    graph = NoiseWorkflow()
    search = graph.node("DNOSolverSearch", method="zero-order", candidates=3, beta=0.5, seed=0)[0]
    climb = graph.node("DNOSolverGradient", lr=0.3, optimizer="adam", momentum=0.9, clip=0.0)[0]
    solver = climb if solver == "gradient" else search
    ours = graph.dno(iterations=2, solver=solver, watch=believed(graph), floors="belief: 100")
    graph.keep("latent", ours[0])
    held, *unsaid = warnings_of(comfy.run(graph), ours)
    assert held == "Higher rewards did not pass the floor on belief."
    for picture in range(2):
        assert unsaid[picture].startswith(f"picture {picture}: no noise passed the floor on belief (at least 100)")


def test_it_changes_neither_the_search_nor_the_random_numbers_after_it(comfy):
    kept = []
    for watched in (False, True):
        graph = Workflow(model_seed=3)
        ours = graph.dno(iterations=2, watch=believed(graph) if watched else None, latent=graph.latent(mask="soft"))
        graph.keep("noise", ours[2])
        kept.append(comfy.run(graph).kept["noise"]["initial"])
    assert torch.equal(*kept)


def test_a_video_is_believed_in_as_a_whole(comfy):
    graph = Workflow("video")
    latent = graph.latent(batch=1, channels=16, dims=5, size=4, frames=5)
    rows = told(graph, graph.dno(iterations=1, steps=3, watch=believed(graph), latent=latent), comfy)["rows"]
    assert [len(row["watch/belief"]) for row in rows] == [1, 1]
    assert all(math.isfinite(row["watch/belief"][0]) for row in rows)


def test_a_guider_without_a_negative_has_the_loss_alone(comfy):
    graph = NoiseWorkflow()
    guider = graph.node("BasicGuider", model=graph.model, conditioning=graph.positive)[0]
    ours = graph.advanced({**graph.around(), "guider": guider}, iterations=1, watch=believed(graph))
    for row in told(graph, ours, comfy)["rows"]:
        assert row["watch/belief"] == row["watch/belief loss"]


def test_a_stock_sampler_is_believed_in_the_same_pictures(comfy):
    """euler at eta 0, once by the map's own steps and once by the SAMPLER: the same pictures and ordinary samples."""
    found = []
    for stock in (False, True):
        graph = NoiseWorkflow()
        sampler = graph.node("KSamplerSelect", sampler_name="euler")[0]
        ours = graph.advanced(
            graph.around(cfg=3.0), eta=0.0, watch=believed(graph), **({"sampler": sampler} if stock else {})
        )
        found.append(told(graph, ours, comfy)["rows"][0]["watch/belief"])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_beside_another_reward_it_is_watched_by_way_of_a_combine(comfy):
    graph = Scoring(comfy)
    both = graph.combine(graph.contrast(), believed(graph))
    row = told(graph, graph.dno(watch=both, floors="belief: 0.1, contrast: 0"), comfy)["rows"][0]
    assert {"watch/belief", "watch/belief loss", "watch/contrast"} <= set(row)


@pytest.mark.parametrize("where", ["reward", "combined", "score"])
def test_elsewhere_it_says_where_it_belongs(comfy, where):
    graph = Scoring(comfy)
    belief = believed(graph)
    if where == "score":
        graph.node("DNOScoreImages", images=graph.dno()[1], reward=belief)
    else:
        graph.reward = belief if where == "reward" else graph.combine(graph.reward, belief)
        graph.keep("latent", graph.dno(iterations=1)[0])
    assert "expected it to be watched" in comfy.fail(graph)
