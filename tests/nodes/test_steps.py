"""A part of the steps, as KSampler (Advanced) takes it: noise left in or not added, and two samplers in turn."""

import pytest
from comfyui_dno import rewards
from workflows import NoiseWorkflow, Workflow, error, history_of, notes_of, rose

SAMPLING = ("model", "steps", "cfg", "scheduler", "positive", "negative", "latent_image")
PARTS = [
    (0, 4, "enable"), (0, 4, "disable"), (2, 10000, "disable"), (2, 4, "enable"), (0, 6, "disable"), (5, 6, "disable"),
]  # fmt: skip


def stock(graph, add_noise, start, end, leftover, sampler_name="euler", **sampling):
    """KSampler (Advanced), 6 steps."""
    inputs = graph.sampling(**sampling)
    kept = {name: inputs[name] for name in SAMPLING}
    part = {"start_at_step": start, "end_at_step": end, "return_with_leftover_noise": leftover}
    return graph.node(
        "KSamplerAdvanced", **kept, noise_seed=inputs["seed"], sampler_name=sampler_name, add_noise=add_noise, **part
    )


def ours(graph, add_noise, start, end, leftover, eta=0.0, iterations=0, sampling=None, **search):
    """DNO Sampler with the same part of the steps."""
    part = {"start_at_step": start, "end_at_step": end, "return_with_leftover_noise": leftover}
    return graph.node(
        "DNOSampler", **graph.sampling(**sampling or {}), vae=graph.vae, reward=graph.reward, eta=eta,
        iterations=iterations, add_noise=add_noise, **part, **search,
    )  # fmt: skip


@pytest.mark.parametrize("family", ["eps", "flow"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_without_iterations_every_part_is_that_of_ksampler_advanced(comfy, family, eta):
    if eta and comfy.version <= (0, 3, 75):
        pytest.skip("this ComfyUI begins its injected noises with x_T")
    graph = Workflow(family)
    latent = graph.latent(batch=2)
    for add_noise in ("enable", "disable"):
        for part in PARTS:
            name = "euler_ancestral" if eta else "euler"
            graph.keep(f"{add_noise} {part} stock", stock(graph, add_noise, *part, name, latent=latent)[0])
            found = ours(graph, add_noise, *part, eta=eta, sampling={"latent": latent})
            graph.keep(f"{add_noise} {part} ours", found[0])
    kept = comfy.run(graph).kept
    for key in kept:
        if key.endswith("stock"):
            expected, found = kept[key]["samples"], kept[key.replace("stock", "ours")]["samples"]
            assert error(found, expected) < 1e-5, key


def test_two_samplers_in_turn_give_what_two_stock_ones_give(comfy):
    graph = Workflow()
    latent = graph.latent(batch=2)
    high, low = (0, 3, "enable"), (3, 10000, "disable")
    stages = {"stock": stock, "ours": ours}
    for first, begin in stages.items():
        for second, go_on in stages.items():
            noisy = begin(graph, "enable", *high, **latent_of(begin, latent))[0]
            graph.keep(f"{first}, {second}", go_on(graph, "disable", *low, **latent_of(go_on, noisy))[0])
    kept = comfy.run(graph).kept
    expected = kept.pop("stock, stock")["samples"]
    assert len(kept) == 3
    assert all(error(found["samples"], expected) < 1e-5 for found in kept.values())


def latent_of(sampler, latent):
    return {"latent": latent} if sampler is stock else {"sampling": {"latent": latent}}


@pytest.mark.parametrize("family", ["eps", "flow"])
def test_where_noise_is_left_in_the_reward_judges_what_the_model_sees(comfy, family):
    graph = NoiseWorkflow(family)
    found = ours(graph, "enable", 0, 4, "enable", eta=1.0, iterations=3, solver=graph.gradient(0.05))
    graph.node("DNOTestHistory", history=found[3])
    graph.keep("latent", found[0])
    graph.keep("image", found[1])
    graph.keep("denoised", found[4])
    graph.keep("decoded", graph.node("VAEDecode", samples=found[4], vae=graph.vae)[0])
    graph.keep("noisy image", graph.node("VAEDecode", samples=found[0], vae=graph.vae)[0])
    replayed = graph.replay(found[2], graph.latent())
    graph.keep("replayed", replayed[0])
    graph.keep("replayed denoised", replayed[1])
    run = comfy.run(graph)
    kept, history = run.kept, history_of(run)
    assert rose(history)
    assert error(kept["image"]["tensor"], kept["decoded"]["tensor"]) < 1e-6
    assert error(kept["replayed"]["samples"], kept["latent"]["samples"]) < 1e-5
    assert error(kept["replayed denoised"]["samples"], kept["denoised"]["samples"]) < 1e-5
    judged = rewards.Brightness()(kept["image"]["tensor"].movedim(-1, 1)).tolist()
    noisy = rewards.Brightness()(kept["noisy image"]["tensor"].movedim(-1, 1)).tolist()
    # The reward sees the picture before it is clamped, which is nearer than the picture of the noisy latent.
    for found, expected, other in zip(history["best_row"]["score"], judged, noisy, strict=True):
        assert abs(found - expected) < abs(found - other) / 2


@pytest.mark.parametrize("sampler", [None, "dpmpp_sde", "heun"])
def test_the_gradient_by_a_denoised_is_the_directional_difference(comfy, sampler):
    graph = NoiseWorkflow()
    witness = graph.node("DNOTestWitness", model=graph.model, checks="gradient candidates", differentiates=True)[0]
    sigmas = graph.node("SplitSigmas", sigmas=graph.sigmas(), step=4)[0]
    chosen = sampler and graph.node("KSamplerSelect", sampler_name=sampler)[0]
    around = graph.around(sigmas=sigmas, cfg=3.0)
    found = graph.advanced(around, iterations=1, solver=witness, sampler=chosen)
    graph.node("DNOTestNotes", witness=witness, after=found[0])
    notes = notes_of(comfy.run(graph))
    assert max(notes["gradient_error"]) < 0.02 and notes["candidates_error"] < 1e-5, notes


@pytest.mark.parametrize("name", ["euler", "dpmpp_sde", "heun", "uni_pc"])
def test_the_advanced_samplers_denoised_output_is_stocks(comfy, name):
    graph = NoiseWorkflow()
    around = graph.around(sigmas=graph.node("SplitSigmas", sigmas=graph.sigmas(), step=4)[0])
    sampler = graph.node("KSamplerSelect", sampler_name=name)[0]
    expected = graph.node("SamplerCustomAdvanced", **around, sampler=sampler)
    found = graph.advanced(around, sampler=sampler)
    for key, pair in {"noisy": (found[0], expected[0]), "denoised": (found[4], expected[1])}.items():
        graph.keep(f"{key} ours", pair[0])
        graph.keep(f"{key} stock", pair[1])
    kept = comfy.run(graph).kept
    for key in ("noisy", "denoised"):
        assert error(kept[f"{key} ours"]["samples"], kept[f"{key} stock"]["samples"]) < 1e-5, key


def test_the_later_steps_are_searched_through_the_injected_noises_alone(comfy):
    graph = NoiseWorkflow()
    noisy = stock(graph, "enable", 0, 3, "enable")[0]
    found = ours(
        graph, "disable", 3, 10000, "disable", eta=1.0, iterations=3, solver=graph.gradient(0.05),
        sampling={"latent": noisy},
    )  # fmt: skip
    graph.keep("noise", found[2])
    graph.node("DNOTestHistory", history=found[3])
    run = comfy.run(graph)
    history, noise = history_of(run), run.kept["noise"]
    assert rose(history)
    assert not noise["initial"].any() and len(noise["injected"]) == 2


@pytest.mark.parametrize("part, words", [
    ({"add_noise": "disable", "start": 3, "end": 10000, "eta": 0.0}, "x_T is all zeros and no step injects noise"),
    ({"add_noise": "disable", "start": 3, "end": 10000, "eta": 1.0, "part": "initial"}, "x_T is all zeros and part is"),
    ({"add_noise": "enable", "start": 6, "end": 10000, "eta": 0.0}, "no step is left to optimise the noise of"),
    ({"add_noise": "enable", "start": 4, "end": 4, "eta": 0.0}, "start_at_step is 4 and end_at_step 4 of 6 steps"),
])
def test_a_part_without_anything_to_search_is_refused(comfy, part, words):
    graph = NoiseWorkflow()
    graph.keep("latent", ours(graph, **part, leftover="disable", iterations=1)[0])
    assert words in comfy.fail(graph)
