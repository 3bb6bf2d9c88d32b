"""Search with the DNO Sampler nodes on the pretend device, and print, as JSON, how far that is from the CPU.

Run with ComfyUI's folder as the working directory and `--cpu` as the only argument.
"""

import json
import sys

sys.path.insert(0, ".")

import second_device  # noqa: E402, before autograd's first backward pass

PRETEND = second_device.PRETEND

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management as mm  # noqa: E402
import comfy.samplers  # noqa: E402
import torch  # noqa: E402
from comfyui_dno import core, rewards  # noqa: E402
from comfyui_dno.nodes import embedded_model, sampler  # noqa: E402

import nodes as stock  # noqa: E402

CPU = torch.device("cpu")
SOLVERS = {
    "gradient": core.GradientAscent(lr=0.05),
    "zeno": core.ZeNO(candidates=2),
    "search": core.Search(candidates=2),
}
ITERATIONS = {"gradient": 2, "zeno": 1, "search": 1}
PLACES = {"all on the device": (PRETEND, PRETEND), "VAE on the CPU": (PRETEND, CPU)}
SAMPLING = {"seed": 3, "steps": 2, "cfg": 3.0, "scheduler": "normal", "denoise": 1.0}


def use(model_device, vae_device):
    """Let ComfyUI believe that these are its devices, each with 8 GB free; the CPU is where it offloads to."""
    mm.get_torch_device, mm.vae_device = lambda: model_device, lambda: vae_device
    for name in ("unet_offload_device", "vae_offload_device", "intermediate_device", "text_encoder_device"):
        setattr(mm, name, lambda *args: CPU)
    mm.get_free_memory = lambda device=None, torch_free_too=False: (8e9, 8e9) if torch_free_too else 8e9
    mm.get_total_memory = lambda device=None, torch_total_too=False: (8e9, 8e9) if torch_total_too else 8e9
    mm.soft_empty_cache = lambda force=False: None
    mm.unload_all_models()


def inputs():
    """Return the model, its prompts, an empty latent and what every DNO Sampler has after those."""
    model, clip, vae = embedded_model.load_model(), embedded_model.load_clip(), embedded_model.load_vae()
    positive, negative = (stock.CLIPTextEncode().encode(clip, text)[0] for text in ("black cat", ""))
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    search = {"vae": vae, "reward": rewards.Brightness(), "eta": 1.0}
    return model, positive, negative, latent, search


@torch.inference_mode()
def searched(iterations=0, **settings):
    """Return the latent and the history of a DNO Sampler."""
    model, positive, negative, latent, search = inputs()
    found = sampler.DNOSampler.execute(
        model, positive=positive, negative=negative, latent_image=latent, iterations=iterations, **SAMPLING, **search,
        **settings,
    )  # fmt: skip
    return found.args[0]["samples"], found.args[3]


@torch.inference_mode()
def searched_by_the_advanced_node():
    """Return the latent of a DNO Sampler (Advanced) with a stock guider."""
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    model, positive, negative, latent, search = inputs()
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(3.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 2)
    found = sampler.DNOSamplerAdvanced.execute(Noise_RandomNoise(3), guider, sigmas, latent, iterations=1, **search)
    return found.args[0]["samples"]


def main():
    """Search with each solver on the CPU and in each place; print differences, devices and operations."""
    use(CPU, CPU)
    expected, report = {name: searched(ITERATIONS[name], solver=solver)[0] for name, solver in SOLVERS.items()}, {}
    for place, devices in PLACES.items():
        use(*devices)
        for name, solver in SOLVERS.items():
            with second_device.counting() as counts:
                latent, history = searched(ITERATIONS[name], solver=solver)
            report[f"{name}, {place}"] = {
                "device": latent.device.type, "operations": counts.operations,
                "error": (latent.cpu() - expected[name]).abs().max().item(), "warnings": history.warnings,
            }  # fmt: skip
        report[f"advanced, {place}"] = {"device": searched_by_the_advanced_node().device.type}
        report[f"diagnosis, {place}"] = {"warnings": searched(diagnose=True)[1].warnings}
    sys.stdout.write("\n" + json.dumps(report))


main()
