"""ComfyUI's own samplers as the map: KSampler's picture without a search, true gradients, replayed noises."""

import pytest
from workflows import NoiseWorkflow, error, file_of, history_of, notes_of, rose

STEPS_BY_THE_PICTURE = {"dpm_adaptive"}
"""Samplers that no solver can search."""
WITHOUT_A_PART_OF_THEIR_GRADIENT = {"deis", "ipndm_v"}
SOME = ("dpmpp_2m_sde", "dpmpp_sde", "er_sde", "seeds_2", "sa_solver", "uni_pc", "heun", "dpmpp_2m", "lms",
        "euler_ancestral_cfg_pp", "res_multistep", "lcm")  # fmt: skip


def sampler_names(comfy):
    kind, *rest = comfy.get("/object_info/KSampler")["KSampler"]["input"]["required"]["sampler_name"]
    return kind if isinstance(kind, list) else rest[0]["options"]


def selected(graph, name):
    return graph.node("KSamplerSelect", sampler_name=name)[0]


def against_stock(comfy, family, names, latent=None, denoise=1.0, **settings):
    """Sample with each sampler, by the stock node and by ours without a search; return the errors by name."""
    graph = NoiseWorkflow(family)
    # Four steps are enough for a sampler that remembers three.
    around = graph.around(graph.latent(**latent or {}), graph.sigmas(denoise=denoise, steps=4), **settings)
    for name in names:
        sampler = selected(graph, name)
        newer = graph.node("DNOTestNewerNoise", sampler=sampler)[0]
        graph.keep(f"{name} stock", graph.node("SamplerCustomAdvanced", **around, sampler=newer)[0])
        graph.keep(f"{name} ours", graph.advanced(around, sampler=sampler)[0])
    kept = comfy.run(graph, timeout=600).kept
    return {name: error(*(kept[f"{name} {who}"]["samples"] for who in ("ours", "stock"))) for name in names}


@pytest.mark.parametrize("family", ["eps", pytest.param("flow", marks=pytest.mark.slow)])
def test_without_a_search_every_sampler_gives_the_stock_picture(comfy, record_property, family):
    names = [name for name in sampler_names(comfy) if name not in STEPS_BY_THE_PICTURE]
    errors = against_stock(comfy, family, names, latent={"batch": 1, "scale": 0.0})
    record_property("errors", errors)
    # The noises of a Brownian tree are put together of its cells, which rounds.
    assert {name: found for name, found in errors.items() if not found < 1e-5} == {}
    assert len(errors) >= 40


@pytest.mark.parametrize("latent", [{"mask": "half"}, {"mask": "soft"}, {}])
def test_image_to_image_and_masks_are_sampled_as_by_stock(comfy, latent):
    names = ["dpmpp_2m_sde", "er_sde", "euler_cfg_pp", "ddim", "dpmpp_sde", "uni_pc"]
    errors = against_stock(comfy, "eps", names, latent={"batch": 2, **latent}, denoise=0.6, cfg=3.0)
    assert max(errors.values()) < 1e-5, errors


def test_at_guidance_1_too_the_unconditional_result_is_asked_for(comfy):
    errors = against_stock(comfy, "eps", ["euler_cfg_pp", "dpmpp_2m_cfg_pp", "euler_ancestral"], cfg=1.0)
    assert max(errors.values()) < 1e-5, errors


def odd(graph, kind):
    return graph.node("DNOTestOddSampler", kind=kind)[0]


@pytest.mark.parametrize("kind", ["module", "object", "partial", "euler", "like euler", "unfinished"])
def test_another_packs_sampler_gives_its_own_picture_and_is_no_other_by_its_name(comfy, kind):
    graph = NoiseWorkflow()
    latent, sampler = graph.latent(), odd(graph, kind)
    around = graph.around(latent, graph.sigmas(steps=4))
    ours = graph.advanced(around, sampler=sampler)
    graph.keep("stock", graph.node("SamplerCustomAdvanced", **around, sampler=sampler)[0])
    graph.keep("ours", ours[0])
    graph.node("DNOTestHistory", history=ours[3])
    run = comfy.run(graph)
    # Brownian noises are put together of their cells, which rounds.
    assert error(run.kept["ours"]["samples"], run.kept["stock"]["samples"]) < 1e-5
    name = history_of(run)["settings"]["sampler"]
    assert name not in sampler_names(comfy) and "/" not in name and "\\" not in name and name.count(".") >= 2


def test_a_noise_of_another_packs_euler_is_not_replayed_by_comfyuis(comfy):
    graph = NoiseWorkflow()
    latent = graph.latent()
    ours = graph.advanced(graph.around(latent, graph.sigmas(steps=4)), sampler=odd(graph, "euler"))
    graph.keep("replayed", graph.replay(ours[2], latent)[0])
    assert "connect the same one to DNO Replay Noise's sampler" in comfy.fail(graph)


@pytest.mark.parametrize("kind, words", [
    ("cfg function", "other options than it was given (sampler_cfg_function)"),
    ("in place", "other options than it was given (transformer_options)"),
    ("hooks", "other options than it was given (sampler_post_cfg_function)"),
    ("hides", "it draws from a Brownian tree of its own"), ("no callback", "the sampler never calls its callback"),
])  # fmt: skip
def test_what_a_sampler_must_not_do_is_said_before_anything_is_sampled(comfy, kind, words):
    graph = NoiseWorkflow()
    # A function after CFG is there already; the steps are the first ones, after which noise is left.
    graph.model = graph.node("RescaleCFG", model=graph.model, multiplier=0.7)[0]
    graph.model = graph.node("Mahiro", model=graph.model)[0]
    sigmas = graph.node("SplitSigmas", sigmas=graph.sigmas(steps=4), step=2)[0]
    graph.keep("latent", graph.advanced(graph.around(sigmas=sigmas), sampler=odd(graph, kind))[0])
    run = comfy.run(graph, may_fail=True)
    assert words in run.error["exception_message"] and not run.of_type("progress")


@pytest.mark.parametrize("some", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_searched_noise_replays_by_the_sampler_that_its_settings_name(comfy, record_property, some):
    graph = NoiseWorkflow()
    latent = graph.latent(batch=1, scale=0.0)
    search = {"iterations": 1, "solver": graph.gradient(0.1)}
    refused = STEPS_BY_THE_PICTURE | WITHOUT_A_PART_OF_THEIR_GRADIENT
    names = SOME if some else [name for name in sampler_names(comfy) if name not in refused]
    for name in names:
        around = graph.around(latent, graph.sigmas(steps=4))
        ours = graph.advanced(around, sampler=selected(graph, name), **search)
        graph.keep(f"{name} ours", ours[0])
        graph.keep(f"{name} replayed", graph.replay(ours[2], latent)[0])
    kept = comfy.run(graph, timeout=600).kept
    errors = {name: error(*(kept[f"{name} {who}"]["samples"] for who in ("replayed", "ours"))) for name in names}
    record_property("errors", errors)
    # Five times what was measured with AVX2 alone, where sums round in another order: 1.2e-5; else it is below 3e-6.
    assert max(errors.values()) < 6e-5, errors


@pytest.mark.parametrize("family, name", [
    *(("eps", name) for name in SOME), *(("flow", name) for name in ("dpmpp_2m_sde", "dpmpp_sde", "er_sde", "lcm")),
])  # fmt: skip
def test_the_gradient_is_the_directional_difference(comfy, family, name):
    graph = NoiseWorkflow(family)
    witness = graph.node("DNOTestWitness", model=graph.model, checks="gradient candidates", differentiates=True)[0]
    around = graph.around(sigmas=graph.sigmas(steps=4), cfg=3.0)
    ours = graph.advanced(around, sampler=selected(graph, name), iterations=1, solver=witness)
    graph.node("DNOTestNotes", witness=witness, after=ours[0])
    notes = notes_of(comfy.run(graph))
    assert max(notes["gradient_error"]) < 0.02 and notes["candidates_error"] < 1e-5, notes


def sde(graph, eta=0.7):
    return graph.node("SamplerDPMPP_2M_SDE", solver_type="heun", eta=eta, s_noise=1.0, noise_device="cpu")[0]


def test_a_search_raises_the_reward_and_its_noise_is_taken_up_by_the_same_sampler_alone(comfy):
    graph = NoiseWorkflow()
    ours = graph.advanced(graph.around(), sampler=sde(graph), iterations=3, solver=graph.gradient(0.05))
    graph.node("DNOTestHistory", history=ours[3])
    save = graph.save(ours[2], "sde")
    run = comfy.run(graph)
    history = history_of(run)
    assert rose(history)
    options = {"eta": 0.7, "s_noise": 1.0, "solver_type": "heun"}
    assert history["settings"]["sampler"] == "dpmpp_2m_sde" and history["settings"]["sampler_options"] == options
    for sampler, words in (
        (sde, None), (lambda graph: sde(graph, eta=0.6), "made with sampler_options"),
        (lambda graph: selected(graph, "lcm"), "made with sampler 'dpmpp_2m_sde', but here it is 'lcm'"),
        (lambda graph: None, "made with sampler 'dpmpp_2m_sde', but here it is None"),
    ):  # fmt: skip
        graph = NoiseWorkflow()
        noise = graph.load(file_of(run, save))
        graph.keep("latent", graph.advanced(graph.around(), start_noise=noise, sampler=sampler(graph))[0])
        if words is None:
            comfy.run(graph)
        else:
            assert words in comfy.fail(graph)


@pytest.mark.parametrize("name, words", [
    ("dpm_adaptive", "the sampler dpm_adaptive cannot be searched: the sampler chooses its steps by the picture"),
    ("deis", "the sampler deis cannot be searched by its gradient: a part of its gradient is missing"),
    ("ipndm_v", "the sampler ipndm_v cannot be searched by its gradient"),
])
def test_a_sampler_that_cannot_be_searched_is_refused_before_anything_is_sampled(comfy, name, words):
    graph = NoiseWorkflow()
    graph.keep("latent", graph.advanced(graph.around(), sampler=selected(graph, name), iterations=2)[0])
    run = comfy.run(graph, may_fail=True)
    assert words in run.error["exception_message"] and not run.of_type("progress")


def test_without_gradients_those_with_a_wrong_one_are_searched_too(comfy):
    graph = NoiseWorkflow()
    solver = graph.node("DNOSolverSearch", method="best-of-n", candidates=4, beta=0.1, seed=0)
    ours = graph.advanced(graph.around(), sampler=selected(graph, "deis"), iterations=2, solver=solver[0])
    graph.node("DNOTestHistory", history=ours[3])
    assert history_of(comfy.run(graph))["stopped"] == "2 iterations done"
