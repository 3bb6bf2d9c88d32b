"""With 0 iterations the DNO Sampler is KSampler, on a real server."""

import pytest
import torch
from workflows import Workflow, error


def errors_against_stock(comfy, family, eta, samplers, latent=None, **settings):
    """Run ours with 0 iterations and the stock samplers in one workflow; return the errors by sampler name.

    At eta > 0 the stock sampler gets our injected noises: ComfyUI 0.3.75 on the CPU would use x_T again as the first.
    """
    graph = Workflow(family)
    inputs = graph.sampling(latent=graph.latent(**latent or {}), **settings)
    ours = graph.dno(eta=eta, latent=inputs["latent_image"], **settings)
    graph.keep("ours", ours[0])
    for name in samplers:
        if eta > 0:
            graph.keep(name, graph.node("DNOTestStockSampler", **inputs, sampler_name=name, eta=eta, noise=ours[2])[0])
        else:
            graph.keep(name, graph.node("KSampler", **inputs, sampler_name=name)[0])
    run = comfy.run(graph)
    assert run.kept["ours"]["samples"].std() > 0.1
    return {name: error(run.kept["ours"]["samples"], run.kept[name]["samples"]) for name in samplers}


@pytest.mark.parametrize("family", ["eps", "v", "flow"])
@pytest.mark.parametrize("steps, tolerance", [(6, 1e-5), (20, 1e-4)])
@pytest.mark.parametrize("eta, samplers", [(0.0, ["euler", "ddim"]), (1.0, ["euler_ancestral"])])
def test_zero_iterations_equal_ksampler(comfy, record_property, family, steps, tolerance, eta, samplers):
    errors = errors_against_stock(comfy, family, eta, samplers, steps=steps)
    record_property("parity", errors)
    assert max(errors.values()) < tolerance, errors


@pytest.mark.parametrize("family", ["eps", "v", "flow"])
@pytest.mark.parametrize("eta, samplers", [(0.0, ["euler"]), (0.5, ["euler_ancestral"]), (1.0, ["euler_ancestral"])])
@pytest.mark.parametrize("mask", ["none", "half", "soft"])
def test_img2img_and_inpainting_equal_ksampler(comfy, record_property, family, eta, samplers, mask):
    latent = {"batch": 2, "mask": mask}
    errors = errors_against_stock(comfy, family, eta, samplers, latent, denoise=0.6)
    record_property("parity", errors)
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("scheduler", ["simple", "karras", "ddim_uniform", "beta"])
def test_every_kind_of_schedule_equals_ksampler(comfy, scheduler):
    errors = errors_against_stock(comfy, "eps", 1.0, ["euler_ancestral"], scheduler=scheduler)
    assert max(errors.values()) < 1e-5, errors


def test_batch_indices_choose_the_same_noise_as_in_ksampler(comfy):
    errors = errors_against_stock(comfy, "eps", 0.0, ["euler"], {"batch": 2, "scale": 0.0, "batch_index": "3,1"})
    assert max(errors.values()) < 1e-5, errors


def test_on_a_newer_comfyui_eta_one_equals_euler_ancestral_at_the_same_seed(comfy):
    graph = Workflow()
    graph.keep("ours", graph.dno(eta=1.0)[0])
    graph.keep("stock", graph.node("KSampler", **graph.sampling(), sampler_name="euler_ancestral")[0])
    run = comfy.run(graph)
    equal = error(run.kept["ours"]["samples"], run.kept["stock"]["samples"]) < 1e-5
    # 0.3.75 on the CPU takes x_T itself for the first injected noise; newer ones draw with seed + 1, as we always do.
    assert equal == (comfy.version > (0, 3, 75))


def test_the_image_is_the_stock_decode_of_the_latent_bit_for_bit(comfy):
    graph = Workflow()
    ours = graph.dno(iterations=1)
    graph.keep("image", ours[1])
    graph.keep("decoded", graph.node("VAEDecode", samples=ours[0], vae=graph.vae)[0])
    run = comfy.run(graph)
    assert run.kept["image"]["tensor"].shape == (2, 64, 64, 3)
    assert torch.equal(run.kept["image"]["tensor"], run.kept["decoded"]["tensor"])


@pytest.mark.parametrize("family", ["eps", "flow"])
def test_the_optimised_noise_replays_the_latent_in_the_stock_sampler(comfy, family):
    graph = Workflow(family)
    ours = graph.dno(iterations=3)
    graph.keep("ours", ours[0])
    graph.keep("first", graph.dno(iterations=0)[0])
    stock = {"sampler_name": "euler_ancestral", "eta": 1.0, "noise": ours[2]}
    graph.keep("stock", graph.node("DNOTestStockSampler", **graph.sampling(), **stock)[0])
    run = comfy.run(graph)
    ours, first, stock = (run.kept[key]["samples"] for key in ("ours", "first", "stock"))
    assert error(ours, first) > 1e-3
    assert error(ours, stock) < 1e-5


def test_the_largest_seed_works(comfy):
    graph = Workflow()
    graph.keep("ours", graph.dno(seed=2**64 - 1)[0])
    assert torch.isfinite(comfy.run(graph).kept["ours"]["samples"]).all()
