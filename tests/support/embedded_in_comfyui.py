"""Print, as JSON, how far the embedded model in ComfyUI is from the embedded model in diffusers.

Run with ComfyUI's folder as the working directory and `--cpu` as the only argument.
"""

import json
import sys

sys.path.insert(0, ".")

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import torch  # noqa: E402
from comfyui_dno.core.models.embedded import configs, networks  # noqa: E402
from comfyui_dno.nodes import embedded_model  # noqa: E402

import nodes as stock  # noqa: E402

CFG = 3.0


def paint_with_diffusers(initial, injected, steps, prompt):
    """Return the text states, and the picture (1, 3, 128, 128) by diffusers' DDIM at eta 1 from given noises."""
    scheduler = networks.scheduler()
    scheduler.set_timesteps(steps)
    unet, vae = networks.build_unet(), networks.build_vae()
    context = networks.encode_prompts(["", prompt])
    x = initial
    with torch.no_grad():
        for t, noise in zip(scheduler.timesteps, injected, strict=True):
            plain, guided = unet(x.repeat(2, 1, 1, 1), t, context).sample.chunk(2)
            x = scheduler.step(plain + CFG * (guided - plain), t, x, eta=1.0, variance_noise=noise).prev_sample
        return context, (vae.decode(x / configs.LATENT_SCALE).sample / 2 + 0.5).clamp(0, 1)


@torch.inference_mode()
def paint_with_comfyui(initial, injected, steps, prompt):
    """Return the same by stock nodes and samplers: CLIP Text Encode, Empty Latent Image, euler_ancestral, simple."""
    model, clip, vae = embedded_model.load_model(), embedded_model.load_clip(), embedded_model.load_vae()
    (positive,), (negative,) = (stock.CLIPTextEncode().encode(clip, text) for text in (prompt, ""))
    latent = stock.EmptyLatentImage().generate(configs.IMAGE_SIZE, configs.IMAGE_SIZE, 1)[0]["samples"]
    noises = iter(injected)
    sampler = comfy.samplers.ksampler("euler_ancestral", {"noise_sampler": lambda sigma, sigma_next: next(noises)})
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    sampled = comfy.sample.sample_custom(
        model, initial, CFG, sampler, sigmas, positive, negative, latent, disable_pbar=True
    )
    return torch.cat([negative[0][0], positive[0][0]]), vae.decode(sampled).permute(0, 3, 1, 2)


def main():
    """Compare the two at 10 steps and print the largest differences."""
    steps, prompt = 10, "black cat"
    generator = torch.Generator().manual_seed(0)
    initial, *injected = torch.randn(steps + 1, 1, 4, 16, 16, generator=generator)
    text, image = paint_with_diffusers(initial, injected, steps, prompt)
    comfy_text, comfy_image = paint_with_comfyui(initial, injected, steps, prompt)
    difference = {"text": (text - comfy_text).abs().max().item(), "pixel": (image - comfy_image).abs().max().item()}
    (weighted,) = stock.CLIPTextEncode().encode(embedded_model.load_clip(), "(black:1.3) cat")
    difference["weighted"] = (weighted[0][0] - text[1:]).abs().max().item()
    sys.stdout.write("\n" + json.dumps(difference))


main()
