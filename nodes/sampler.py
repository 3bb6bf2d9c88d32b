"""The DNO Sampler node: KSampler's inputs, KSampler's picture at iteration 0, and a search from there."""

import comfy.sample
import comfy.samplers
import torch
from comfy_api.latest import io

from . import gradients, sockets
from .comfy_map import Optimization, OptimizedSampler


class DNOSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOSampler",
            display_name="DNO Sampler",
            category=sockets.CATEGORY,
            description=(
                "Samples like KSampler, then searches the sampling noise for a picture that the reward likes more. With"
                " 0 iterations it is KSampler: euler at eta 0; at eta 1 euler_ancestral, its noises drawn on the CPU."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model used for denoising the input latent."),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                    tooltip="The random seed of the noise that the search starts from.",
                ),
                io.Int.Input(
                    "steps", default=20, min=1, max=10000,
                    tooltip="Denoising steps of one sampling run; its time grows with them.",
                ),
                io.Float.Input(
                    "cfg", default=8.0, min=0.0, max=100.0, step=0.1, round=0.01,
                    tooltip="Classifier-free guidance: higher follows the prompt more closely.",
                ),
                io.Combo.Input(
                    "scheduler", options=comfy.samplers.KSampler.SCHEDULERS,
                    tooltip="How noise is gradually removed to form the image.",
                ),
                io.Conditioning.Input("positive", tooltip="What to include in the image."),
                io.Conditioning.Input("negative", tooltip="What to exclude from the image."),
                io.Latent.Input("latent_image", tooltip="The latent image to denoise; masks and batches are honoured."),
                io.Float.Input(
                    "denoise", default=1.0, min=0.0, max=1.0, step=0.01, round=0.001,
                    tooltip="Below 1 the structure of the input image is kept (image to image).",
                ),
                io.Vae.Input("vae", tooltip="Decodes the latent to the picture that the reward judges."),
                sockets.Reward.Input("reward", tooltip="What the pictures shall score high in."),
                io.Float.Input(
                    "eta", default=1.0, min=0.0, max=1.0, step=0.01, round=0.001,
                    tooltip="Noise injected in each step: 1 is the SDE, with more noise to optimise, searched faster;"
                    " 0 the ODE, where only the first noise counts.",
                ),
                io.Int.Input(
                    "iterations", default=20, min=0, max=100000,
                    tooltip="Updates of the noise. Each costs about three sampling runs. 0 only samples.",
                ),
                sockets.Solver.Input(
                    "solver", optional=True,
                    tooltip="How the noise is changed; without it gradient ascent by Adam at learning rate 0.01.",
                ),
                sockets.Regularizer.Input(
                    "regularizer", optional=True,
                    tooltip="Keeps the noise probable, so that the picture stays one the model believes in.",
                ),
                sockets.Reward.Input(
                    "watch", optional=True,
                    tooltip="A second reward that is recorded and never optimised, to see what the search costs.",
                ),
                io.Float.Input(
                    "seconds", default=0.0, min=0.0, max=1000000.0, step=1.0, round=0.1, optional=True,
                    tooltip="Time budget: no iteration begins that would outlast it. 0 sets none.",
                ),
                io.Boolean.Input(
                    "keep_graphs", default=False, optional=True,
                    tooltip="Keep every step's graph for the backward pass instead of running the step again: a third"
                    " faster, and the memory grows with the steps.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent", display_name="latent", tooltip="Each picture's best latent."),
                io.Image.Output("image", display_name="image", tooltip="That latent, decoded by the VAE."),
                sockets.Noise.Output("noise", display_name="noise", tooltip="The noise that samples to it."),
                sockets.History.Output("history", display_name="history", tooltip="The record, for the report nodes."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, seed, steps, cfg, scheduler, positive, negative, latent_image, denoise, vae, reward, eta,
        iterations, solver=None, regularizer=None, watch=None, seconds=0.0, keep_graphs=False,
    ) -> io.NodeOutput:  # fmt: skip
        model = gradients.with_resident_weights(model)
        latent = checked_latent(model, vae, latent_image)
        sigmas = comfy.samplers.KSampler(model, steps, model.load_device, "euler", scheduler, denoise).sigmas
        if len(sigmas) < 2:
            raise ValueError(f"denoise is {denoise}: no step is left to optimise the noise of; expected more than 0")
        watched = () if watch is None else (watch,)
        settings = {"seed": seed, "steps": steps, "cfg": cfg, "scheduler": scheduler, "denoise": denoise, "eta": eta}
        optimization = Optimization(
            reward, eta, iterations, solver, regularizer, seconds or None, keep_graphs, watched, settings
        )
        sampler = OptimizedSampler(vae, optimization)
        noise = comfy.sample.prepare_noise(latent, seed, latent_image.get("batch_index"))
        samples = comfy.sample.sample_custom(
            model, noise, cfg, sampler, sigmas, positive, negative, latent,
            noise_mask=latent_image.get("noise_mask"), disable_pbar=True, seed=seed,
        )  # fmt: skip
        kept = {k: v for k, v in latent_image.items() if not k.startswith("downscale_ratio")}
        result = sampler.result
        return io.NodeOutput({**kept, "samples": samples}, vae.decode(samples), result.noise.to("cpu"), result.history)


def checked_latent(model, vae, latent_image):
    """Return the latent tensor as KSampler prepares it.

    Raises:
        ValueError: the latent, the model and the VAE do not fit together.
    """
    ratios = {name: value for name, value in latent_image.items() if name.startswith("downscale_ratio")}
    latent = comfy.sample.fix_empty_latent_channels(model, latent_image["samples"], **ratios)
    if getattr(latent, "is_nested", False) or latent.ndim != 4:
        raise ValueError(
            "the latent is not a picture's; expected (B, C, H, W). Models for video and audio are not supported"
        )
    channels = model.get_model_object("latent_format").latent_channels
    if latent.shape[1] != channels:
        raise ValueError(
            f"the latent has {latent.shape[1]} channels but the model works on {channels}; encode the image with this"
            " model's VAE, or use an empty latent"
        )
    vae.throw_exception_if_invalid()
    if vae.latent_channels != channels or vae.output_channels != 3:
        raise ValueError(
            f"the VAE decodes latents of {vae.latent_channels} channels to {vae.output_channels} but the model makes"
            f" {channels}; expected a picture VAE of {channels} channels: connect the one that belongs to this model"
        )
    return latent.to(torch.float32)
