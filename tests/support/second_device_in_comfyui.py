"""Search with the DNO Sampler nodes on the pretend device, and print, as JSON, how far that is from the CPU.

Run with ComfyUI's folder as the working directory and `--cpu` as the only argument.
"""

import json
import sys

from comfyui_on_the_device import CPU, PRETEND, inputs, searched, use  # first: it makes the device

import comfy.samplers  # isort: skip
import second_device
import torch
from comfyui_dno import core
from comfyui_dno.nodes import sampler

SOLVERS = {
    "gradient": core.GradientAscent(lr=0.05),
    "zeno": core.ZeNO(candidates=2),
    "search": core.Search(candidates=2),
}
ITERATIONS = {"gradient": 2, "zeno": 1, "search": 1}
PLACES = {"all on the device": (PRETEND, PRETEND), "VAE on the CPU": (PRETEND, CPU)}


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
