"""ComfyUI in this process, with the pretend device for its GPU: what the programs have in common that search there.

Imported by programs that run with ComfyUI's folder as the working directory and `--cpu` as the only argument.
"""

import math
import sys

sys.path.insert(0, ".")

import second_device  # noqa: E402, before autograd's first backward pass

PRETEND = second_device.PRETEND

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management as mm  # noqa: E402
import comfy.ops  # noqa: E402
import torch  # noqa: E402
from comfyui_dno import rewards  # noqa: E402
from comfyui_dno.nodes import embedded_model, sampler  # noqa: E402

import nodes as stock  # noqa: E402

CPU = torch.device("cpu")
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
def searched(iterations=0, given=None, **settings):
    """Return the latent and the history of a DNO Sampler, of what `inputs` gives or of `given`, which it gave."""
    model, positive, negative, latent, search = given or inputs()
    found = sampler.DNOSampler.execute(
        model, positive=positive, negative=negative, latent_image=latent, iterations=iterations, **SAMPLING,
        **search | settings,
    )  # fmt: skip
    return found.args[0]["samples"], found.args[3]


def overwrite_what_was_cast():
    """Let weights that come from outside be overwritten once their layer has run, as ComfyUI's streams may do."""
    cast, uncast, made = comfy.ops.cast_bias_weight, comfy.ops.uncast_bias_weight, {}

    def cast_into_a_buffer(layer, *args, **kwargs):
        found = cast(layer, *args, **kwargs)
        pairs = ((found[0], layer.weight), (found[1], layer.bias))
        made[id(layer)] = [ours for ours, its in pairs if its is not None and ours.device != its.device]
        return found

    def overwrite(layer, *args):
        uncast(layer, *args)
        for buffer in made.pop(id(layer)):
            buffer.data.fill_(math.nan)  # .data: nor does autograd notice what streams do

    comfy.ops.cast_bias_weight, comfy.ops.uncast_bias_weight = cast_into_a_buffer, overwrite
