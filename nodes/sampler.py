"""The DNO Sampler nodes: the stock samplers' inputs, their picture at iteration 0, and a search from there."""

import copy

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from comfy_api.latest import io

from .. import core
from ..core.words import counted, listed, probability
from . import gradients, page, sockets
from .comfy_map import seen_by
from .rewards.belief import watched_apart
from .search import Optimization, OptimizedSampler
from .solvers import known

MEMORY = {name: name for name in ("auto", "fast", "step", "low")}
MEMORY |= {f"{size} GiB": float(size) for size in (2, 4, 8, 16, 32)}
"""What the memory input offers -> `core.SampleMap.memory`."""


class DNOSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOSampler",
            display_name="DNO Sampler",
            category=sockets.CATEGORY,
            **sockets.aliases(
                "ksampler", "optimise noise", "optimize noise", "reward", "aesthetic", "best of n",
            ),
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
                *inputs_of_ksampler(
                    steps="Denoising steps of one sampling run; its time grows with them.",
                    latent_image="The latent image to denoise; masks and batches are honoured.",
                ),
                *required_of_a_search(),
                *optional_of_a_search(),
                *steps_of_ksampler_advanced(),
                *limits_of_a_search(),
            ],
            outputs=outputs_of_a_search(),
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, seed, steps, cfg, scheduler, positive, negative, latent_image, denoise, vae, reward, eta,
        iterations, start_noise=None, add_noise="enable", start_at_step=0, end_at_step=10000,
        return_with_leftover_noise="disable", **search,
    ) -> io.NodeOutput:  # fmt: skip
        model = gradients.without_dynamic_memory(model)
        latent = checked_latent(model, vae, latent_image)
        sigmas = comfy.samplers.KSampler(model, steps, model.load_device, "euler", scheduler, denoise).sigmas
        if len(sigmas) < 2:
            raise ValueError(f"denoise is {denoise}: no step is left to optimise the noise of; expected more than 0")
        sigmas = part_of(sigmas, start_at_step, end_at_step, return_with_leftover_noise == "enable")
        settings = {"steps": steps, "cfg": cfg, "scheduler": scheduler, "denoise": denoise}
        options = optimization(reward, eta, iterations, start_noise, seed, settings, **search)
        sampler = OptimizedSampler(vae, options)
        noise = comfy.sample.prepare_noise(latent, seed, latent_image.get("batch_index"))
        if add_noise == "disable":
            noise = torch.zeros_like(noise)
        samples = comfy.sample.sample_custom(
            model, noise, cfg, sampler, sigmas, positive, negative, latent,
            noise_mask=latent_image.get("noise_mask"), disable_pbar=True, seed=seed,
        )  # fmt: skip
        denoised = denoised_of(model, sampler, samples, sigmas)
        return found(sampler.result, samples, denoised, latent_image, vae, cls.hidden)


class DNOSamplerAdvanced(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOSamplerAdvanced",
            display_name="DNO Sampler (Advanced)",
            category=sockets.CATEGORY,
            **sockets.aliases(
                "samplercustomadvanced", "optimise noise", "optimize noise", "reward", "direct noise optimization",
            ),
            description=(
                "The DNO Sampler for the nodes around SamplerCustomAdvanced: any guider, any sigmas. Searches the"
                " sampling noise for a picture that the reward likes more."
            ),
            inputs=[
                io.Noise.Input("noise", tooltip="Its first noise is where the search starts: RandomNoise."),
                io.Guider.Input("guider", tooltip="The model and its conditionings: CFGGuider, BasicGuider, .."),
                io.Sigmas.Input("sigmas", tooltip="The noise levels of the steps: BasicScheduler and others."),
                io.Latent.Input("latent_image", tooltip="The latent image to denoise; masks and batches are honoured."),
                *required_of_a_search(),
                *optional_of_a_search(),
                sampler_of_a_search(),
                *limits_of_a_search(),
            ],
            outputs=outputs_of_a_search(),
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, noise, guider, sigmas, latent_image, vae, reward, eta, iterations, start_noise=None, **search
    ) -> io.NodeOutput:
        guider = copy.copy(guider)
        guider.model_patcher = gradients.without_dynamic_memory(guider.model_patcher)
        latent = checked_latent(guider.model_patcher, vae, latent_image)
        if len(sigmas) < 2:
            raise ValueError(f"there are {len(sigmas)} sigmas, so no step; expected two or more")
        settings = {} if getattr(guider, "cfg", None) is None else {"cfg": guider.cfg}
        first = noise.generate_noise({**latent_image, "samples": latent})
        options = optimization(reward, eta, iterations, start_noise, noise.seed, settings, **search)
        sampler = OptimizedSampler(vae, options)
        samples = guider.sample(
            first, latent, sampler, sigmas, denoise_mask=latent_image.get("noise_mask"), disable_pbar=True,
            seed=noise.seed,
        )  # fmt: skip
        # Where stock nodes leave a latent, and where those after them expect it.
        samples = samples.to(comfy.model_management.intermediate_device())
        denoised = denoised_of(guider.model_patcher, sampler, samples, sigmas)
        return found(sampler.result, samples, denoised, latent_image, vae, cls.hidden)


def inputs_of_ksampler(steps, latent_image):
    """Return KSampler's inputs from the steps on, but for `sampler_name`; given are the tooltips of two of them."""
    return [
        io.Int.Input("steps", default=20, min=1, max=10000, tooltip=steps),
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
        io.Latent.Input("latent_image", tooltip=latent_image),
        io.Float.Input(
            "denoise", default=1.0, min=0.0, max=1.0, step=0.01, round=0.001,
            tooltip="Below 1 the structure of the input image is kept (image to image).",
        ),
    ]  # fmt: skip


def required_of_a_search():
    """Return the inputs that every DNO Sampler has after those of its stock counterpart."""
    return [
        io.Vae.Input("vae", tooltip="Decodes the latent to the picture that the reward judges."),
        sockets.Reward.Input("reward", tooltip="What the pictures shall score high in."),
        io.Float.Input(
            "eta", default=1.0, min=0.0, max=1.0, step=0.01, round=0.001,
            tooltip="Noise injected in each step: 1 is the SDE, with more noise to optimise, searched faster;"
            " 0 the ODE, where only the first noise counts.",
        ),
        io.Int.Input(
            "iterations", default=20, min=0, max=100000,
            tooltip="Updates of the noise. Each costs one to four sampling runs, or as many as the solver tries"
            " candidates. 10 show much, 50 are thorough, 0 only samples; Tilt, Fast and LGD take 1.",
        ),
    ]  # fmt: skip


def optional_of_a_search():
    """Return the optional inputs of every DNO Sampler.

    Saved workflows know inputs by position: new ones go to the end of each node's schema, behind its own inputs.
    """
    return [
        sockets.Solver.Input(
            "solver", optional=True,
            tooltip="How the noise is changed; without it as DNO Solver (Trust) does, begun by a tilted run where there"
            " are 16 steps or more: nothing to tune.",
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
        sockets.out_of_sight(io.Boolean.Input(
            "keep_graphs", default=False, optional=True,
            tooltip="Of workflows older than memory: on is its 'fast', where that is left at auto.",
        )),
        sockets.Noise.Input(
            "start_noise", optional=True,
            tooltip="Start from this noise of an earlier search instead of the seed's. The same kind of solver goes on"
            " where it ended; another starts at its best.",
        ),
        io.Combo.Input(
            "part", options=["all", "initial", "first", "last"], default="all", optional=True,
            tooltip="Which noises are searched: all of them, the initial one alone (as ReNO does), or the first or the"
            " last few that are injected: early ones decide the layout, late ones the texture.",
        ),
        io.Int.Input(
            "part_count", default=1, min=1, max=10000, optional=True,
            tooltip="How many injected noises 'first' and 'last' mean.",
        ),
        io.Boolean.Input(
            "diagnose", default=False, optional=True,
            tooltip="Find out at the end why the search stopped improving, for DNO Diagnostics: costs about ten more"
            " iterations, and needs the model's gradient.",
        ),
        io.Int.Input(
            "judge_every", default=1, min=1, max=10000, optional=True,
            tooltip="Of a video: 1 judges every frame, 4 every fourth; the mean counts. Pictures do not use it.",
        ),
    ]  # fmt: skip


def limits_of_a_search():
    """Return the inputs, behind a node's own, that say what may become the best and when to stop."""
    return [
        io.String.Input(
            "floors", default="", optional=True,
            tooltip="The least that the watched reward must be in a picture that may become the best: 0.8, or"
            " start - 0.05 for no more than 0.05 below where each picture begins. Where several scores are recorded"
            " each is named: consistency: 0.8, belief: 0.5. Empty sets none.",
        ),
        io.String.Input(
            "target", default="", optional=True,
            tooltip="Stop once every picture's best reward has reached this number. Empty goes on.",
        ),
        io.Combo.Input(
            "memory", options=list(MEMORY), default="auto", optional=True,
            tooltip="What the way back keeps: auto, as much as fits into the free memory; fast, every step's graph,"
            " which is tens of GiB; step, one at a time, each step run again; low, block by block, which takes least"
            " and a third longer; or so many GiB for graphs, beside the weights: not the size of your card.",
        ),
    ]  # fmt: skip


def steps_of_ksampler_advanced():
    """Return the inputs by which KSampler (Advanced) takes a part of the steps, with defaults that change nothing."""
    return [
        io.Combo.Input(
            "add_noise", options=["enable", "disable"], default="enable", optional=True,
            tooltip="As in KSampler (Advanced). 'disable' for a latent that an earlier sampler has left noise in: then"
            " the injected noises alone are searched, which needs an eta above 0.",
        ),
        io.Int.Input(
            "start_at_step", default=0, min=0, max=10000, optional=True,
            tooltip="As in KSampler (Advanced): the first of the steps that are taken here.",
        ),
        io.Int.Input(
            "end_at_step", default=10000, min=0, max=10000, optional=True,
            tooltip="As in KSampler (Advanced): the step before which this ends.",
        ),
        io.Combo.Input(
            "return_with_leftover_noise", options=["disable", "enable"], default="disable", optional=True,
            tooltip="As in KSampler (Advanced). 'enable' leaves the latent as noisy as it is at end_at_step, for a"
            " sampler that goes on from there; the reward judges what the model sees in it by then.",
        ),
    ]  # fmt: skip


def part_of(sigmas, start_at_step, end_at_step, leaves_noise):
    """Return the sigmas of the steps from `start_at_step` to before `end_at_step`, as `KSampler.sample` takes them.

    Raises:
        ValueError: there is none.
    """
    part = sigmas[start_at_step : end_at_step + 1].clone()
    if len(part) < 2:
        raise ValueError(
            f"start_at_step is {start_at_step} and end_at_step {end_at_step} of {len(sigmas) - 1} steps: no step is"
            " left to optimise the noise of; expected a start before the end and below the number of steps"
        )
    if end_at_step < len(sigmas) - 1 and not leaves_noise:
        part[-1] = 0
    return part


def sampler_of_a_search():
    """Return the input for a SAMPLER to search with."""
    return io.Sampler.Input(
        "sampler", optional=True,
        tooltip="Sample with this sampler instead of DDIM(eta): euler_ancestral, dpmpp_2m_sde, dpmpp_2m .. The eta is"
        " then its own.",
    )  # fmt: skip


def outputs_of_a_search():
    """Return what every DNO Sampler gives."""
    return [
        io.Latent.Output("latent", display_name="latent", tooltip="Each picture's best latent."),
        io.Image.Output("image", display_name="image", tooltip="Its clean latent, decoded by the VAE."),
        sockets.Noise.Output("best_noise", display_name="noise", tooltip="The noise that samples to it."),
        sockets.History.Output("history", display_name="history", tooltip="The record, for the report nodes."),
        io.Latent.Output(
            "denoised_output", display_name="denoised_output",
            tooltip="The latent; where the steps leave noise in that, what the model sees in it, which is judged.",
        ),
    ]


def optimization(
    reward, eta, iterations, start_noise, seed, settings, solver=None, regularizer=None, watch=None, seconds=0.0,
    keep_graphs=False, part="all", part_count=1, diagnose=False, judge_every=1, sampler=None, floors="", target="",
    memory="auto",
):  # fmt: skip
    """Return the `Optimization` that a DNO Sampler's inputs describe; `settings` are recorded with the noise."""
    watched = () if watch is None else watched_apart(watch)
    return Optimization(
        reward, eta, iterations, solver, regularizer, seconds or None,
        watch=watched,
        settings=settings if start_noise is not None else {"seed": seed, **settings},
        start=start_noise,
        part=f"{part} {part_count}" if part in ("first", "last") else part,
        diagnose=diagnose,
        every=judge_every,
        sampler=sampler,
        floors=core.floors_of(floors, core.watched_names(reward, watched)),
        target=target_of(target),
        memory="fast" if keep_graphs and memory == "auto" else known(memory, MEMORY, "memory"),
    )  # fmt: skip


def target_of(text):
    """Return the number that a text names, or None for an empty one."""
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"the target is {text!r}; expected a number such as 0.8, or nothing") from error


def denoised_of(model, sampler, samples, sigmas):
    """Return the samples; where the sigmas leave noise in them, the last step's denoised that the reward has judged.

    Args:
        model: the patcher.
        sampler: the OptimizedSampler that has run.
        samples: (B, C, H, W), what it sampled.
        sigmas: what it sampled at.
    """
    if sigmas[-1] == 0:
        return samples
    return model.model.process_latent_out(sampler.result.latent.float()).to(samples)


def found(result, samples, denoised, latent_image, vae, hidden):
    """Return the outputs: the best latents in place of the given ones, their pictures, noise and history.

    What the user should know of the search is shown as text on the node and in the log.
    """
    kept = {k: v for k, v in latent_image.items() if not k.startswith("downscale_ratio")}
    note(result.history, hidden)
    return io.NodeOutput(
        {**kept, "samples": samples}, decoded(vae, denoised), result.noise.to("cpu"), result.history,
        {**kept, "samples": denoised},
        ui=page.shown("\n".join([gain(result.history), remarks(result.history)])),
    )  # fmt: skip


def decoded(vae, samples):
    """Return the IMAGE (N, H, W, C) of a latent, as the stock node VAE Decode does: frames of videos in one row."""
    images = vae.decode(seen_by(vae, samples))
    return images.flatten(0, 1) if images.ndim == 5 else images


def note(history, hidden):
    """Write what a search found into what Save Image keeps in its pictures beside the workflow, by node.

    Args:
        history: of the search.
        hidden: the node's hidden inputs; None where it runs without a server.
    """
    if hidden is not None and hidden.extra_pnginfo is not None:
        best = history.best_row
        log_p = zip(best["log_p"], best["log_p_initial"], strict=True)
        found = {
            "reward": history.reward,
            "start": history.rows[0]["score"],
            "best": best["score"],
            "P": [probability(min(pair)) for pair in log_p],
        }
        hidden.extra_pnginfo.setdefault("dno", {})[hidden.unique_id] = found


def gain(history):
    """Return what the reward was at first and what it is at best, a line."""
    start, best = history.rows[0]["score"], history.best_row["score"]
    return f"{history.reward} {listed(start)}" + (f" -> {listed(best)}" if history.iterations else ", not searched")


def remarks(history):
    """Return why a search ended, which floors held it back, and what it warns of, a line each."""
    floors = dict.fromkeys(name for names in history.held for name in names)
    held = [f"Higher rewards did not pass the floor on {', '.join(floors)}."] if floors else []
    return "\n".join([ending(history), *held, *history.warnings])


def ending(history):
    """Return why a search ended, and where that was early, how far it came."""
    if not history.ended_early:
        return history.stopped
    asked = counted(history.iterations, "iteration")
    nothing = history.made == 0 and history.best_row["score"] == history.rows[0]["score"]
    kept = "; nothing was searched, the picture is the start" if nothing else ""
    return f"The search ended early, after {history.made} of {asked}: {history.stopped}{kept}"


def checked_latent(model, vae, latent_image):
    """Return the latent tensor as KSampler prepares it.

    Raises:
        ValueError: the latent, the model and the VAE do not fit together.
    """
    ratios = {name: value for name, value in latent_image.items() if name.startswith("downscale_ratio")}
    latent = comfy.sample.fix_empty_latent_channels(model, latent_image["samples"], **ratios)
    if getattr(latent, "is_nested", False):
        raise ValueError("the latent is of a video with its sound; expected one of a picture or of a video alone")
    check_fit(model, vae, latent)
    return latent.to(torch.float32)


def check_fit(model, vae, latent):
    """Raise ValueError unless the latent, the model and the VAE fit together."""
    latent_format = model.get_model_object("latent_format")
    channels, form = latent_format.latent_channels, {2: "(B, C, H, W)", 3: "(B, C, F, H, W)"}
    if latent_format.latent_dimensions not in form:
        raise ValueError("the model is for sound or shapes; expected one for pictures or videos")
    if latent.ndim - 2 != latent_format.latent_dimensions:
        raise ValueError(
            f"the latent is {tuple(latent.shape)}; expected {form[latent_format.latent_dimensions]}, from this model's"
            " VAE or an empty latent of its kind"
        )
    if latent.shape[1] != channels:
        raise ValueError(
            f"the latent has {latent.shape[1]} channels but the model works on {channels}; encode the image with this"
            " model's VAE, or use an empty latent"
        )
    if len(latent) == 0 or not latent.isfinite().all():
        found = "holds NaN or infinity" if len(latent) else "is of no picture at all"
        raise ValueError(f"the latent {found}; expected finite numbers of one picture or more")
    vae.throw_exception_if_invalid()
    if vae.latent_channels != channels or vae.output_channels != 3:
        raise ValueError(
            f"the VAE decodes latents of {vae.latent_channels} channels to {vae.output_channels} but the model makes"
            f" {channels}; expected a picture VAE of {channels} channels: connect the one that belongs to this model"
        )
    if latent.ndim == 5 and latent.shape[2] > 1 and seen_by(vae, latent).ndim == 4:
        raise ValueError(
            f"the latent is of {latent.shape[2]} frames but the VAE decodes pictures; connect this model's video VAE"
        )
