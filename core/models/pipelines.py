"""A diffusers pipeline as a `SampleMap`: at 0 iterations the pipeline's own picture.

    import torch
    from comfyui_dno import core, rewards

    pipeline = core.load_pipeline("models/stable-diffusion-v1-5", dtype=torch.float16, device="cuda")
    sample_map = core.from_pipeline(pipeline, "white duck", steps=50, cfg=7.5, eta=1.0)
    noise = sample_map.randn(seed=0)
    result = core.optimize(sample_map, rewards.Brightness(), noise, iterations=20)

`noise.initial` is what the pipeline takes as `latents=` (Flux packs those into patches; here they stay a picture). The
noise levels come from the pipeline's scheduler, the step is always the map's DDIM(eta):

    scheduler                                          noise levels                       the pipeline's own picture
    DDIM                                               its own                            at every eta
    PNDM, DDPM, DPMSolverMultistep, UniPCMultistep     a DDIMScheduler's of its config    with that DDIMScheduler
    EulerDiscrete                                      its own, Karras and others too     at eta 0
    EulerAncestralDiscrete                             its own                            at eta 1
    LCM                                                its own, then 0                    with one step
    FlowMatchEulerDiscrete (SD3, Flux)                 its own, shifted                   at eta 0

The pictures differ in two cases. LCM draws all of the noise anew between its steps, the map only DDIM(eta)'s part of
it, which shows from two steps on. And diffusers' DDIM always goes down by N // steps timesteps (N is 1000), the map
from each timestep to the next; the two agree for "leading" timesteps, and for "trailing" ones if the steps divide N.
"""

import copy
import inspect
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from ..blocks import Blocks
from ..sample_map import SampleMap
from ..schedule import Schedule
from .denoiser import DiscreteDenoiser, Guided
from .fingerprint import fingerprint
from .pipeline_families import Embeddings, family_of

DDIM_LIKE = (
    "DDIMScheduler", "PNDMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
EULER = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
LCM = "LCMScheduler"
FLOW = "FlowMatchEulerDiscreteScheduler"
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}

# Zero terminal SNR makes the first sigma infinite; at this one x_T is noise to float32's last digit.
LEAST_ALPHA = 1e-12


def load_pipeline(folder_or_id, dtype=torch.float32, device="cpu", download=False):
    """Load a text-to-image pipeline of diffusers.

    Example:
        >>> load_pipeline("models/no-such-model")
        Traceback (most recent call last):
        FileNotFoundError: there is no folder models/no-such-model; pass the folder of a diffusers pipeline, ...

    Args:
        folder_or_id: a folder as `save_pretrained` writes it, weights as safetensors; with `download` also a model id
            of the Hugging Face hub.
        dtype, device: of the networks.
        download: whether the network may be used.

    Raises:
        FileNotFoundError: no such folder, or not one of a pipeline.
        ValueError: a pipeline of another class, as `from_pipeline` says.
    """
    from diffusers import DiffusionPipeline

    index, absent = Path(folder_or_id) / "model_index.json", {}
    if index.is_file():
        parts = json.loads(index.read_text())
        family_of(str(parts["_class_name"]))
        # A pipeline may be saved without, say, its third text encoder; diffusers loads it when told what is absent.
        absent = {name: None for name, library_and_class in parts.items() if library_and_class == [None, None]}
    elif index.parent.exists():
        raise FileNotFoundError(
            f"{folder_or_id} has no model_index.json; expected the folder of a diffusers pipeline. A checkpoint in one"
            " file becomes one by StableDiffusionPipeline.from_single_file(file).save_pretrained(folder)"
        )
    elif not download:
        raise FileNotFoundError(
            f"there is no folder {folder_or_id}; pass the folder of a diffusers pipeline, or allow the download of a"
            " model id from the Hugging Face hub with --download (download=True)"
        )
    # Newer versions of diffusers say `dtype`, 0.32 knows only `torch_dtype`.
    pipeline = DiffusionPipeline.from_pretrained(
        str(folder_or_id), torch_dtype=dtype, local_files_only=not download, use_safetensors=True, **absent
    )
    return pipeline.to(device)


def from_pipeline(
    pipeline,
    prompt=None,
    negative="",
    steps=None,
    cfg=None,
    eta=1.0,
    height=None,
    width=None,
    device=None,
    prompt_embeds=None,
    negative_prompt_embeds=None,
    pooled_prompt_embeds=None,
    negative_pooled_prompt_embeds=None,
    **settings,
):
    """Return the noise-to-sample map of a diffusers pipeline, whose networks it uses and freezes.

    Networks run in the pipeline's dtype; noise, steps and guidance stay in the noise's own.

    Example:
        >>> from diffusers import StableDiffusionPipeline
        >>> from comfyui_dno.core.models.embedded import networks
        >>> vae, text_encoder, unet = networks.build_vae(), networks.build_text_encoder(), networks.build_unet()
        >>> parts = vae, text_encoder, None, unet, networks.scheduler(), None, None
        >>> pipeline = StableDiffusionPipeline(*parts, requires_safety_checker=False)
        >>> text = networks.encode_prompts(["black cat", ""])  # the embedded model has no tokenizer of its own
        >>> from_pipeline(pipeline, steps=4, prompt_embeds=text[:1], negative_prompt_embeds=text[1:]).shape
        (1, 4, 16, 16)

    Args:
        pipeline: a StableDiffusion-, StableDiffusionXL-, StableDiffusion3-, Flux- or LatentConsistencyModelPipeline.
        prompt: a string, or a list of them, one a picture; None where only embeddings are given.
        negative: the negative prompt, shared by all pictures; "" is the pipeline's own default.
        steps: denoising steps; default: the pipeline's own default.
        cfg: guidance scale, off at 1 and below; for Flux and LCM what the network is told. Default: the pipeline's own.
        eta: in [0, 1]; 1 is the paper's SDE. For a few steps, 0 to 0.5.
        height, width: of the picture, in pixels; default: the model's own.
        device: where to move the pipeline first; None: leave it.
        prompt_embeds, negative_prompt_embeds: (B, tokens, channels), used in place of encoding the prompts.
        pooled_prompt_embeds, negative_pooled_prompt_embeds: (B, channels), the same for SDXL, SD3 and Flux.
        settings: further attributes of `SampleMap`, e.g. keep_graphs=True.

    Returns:
        SampleMap of shape (B, C, h, w), the VAE's latent, decoding to (B, 3, height, width).

    Raises:
        ValueError: a pipeline or scheduler of another class, or an argument that does not fit the model.
    """
    family_class = family_of(type(pipeline).__name__)
    _refuse_offloaded(pipeline)
    if device is not None:
        pipeline.to(device)
    _freeze(pipeline)
    defaults = inspect.signature(pipeline.__call__).parameters
    steps = defaults["num_inference_steps"].default if steps is None else steps
    family = family_class(pipeline, defaults["guidance_scale"].default if cfg is None else cfg)
    size = _picture_size(family, height, width)
    prompts = [prompt] if isinstance(prompt, str) else prompt and list(prompt)
    given = Embeddings(prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds)
    sampling = _flow_sampling(family, steps, size) if family.flow else _vp_sampling(pipeline.scheduler, steps)
    batch = family.condition(prompts, negative, given, size)
    shape = (batch, family.channels, *(pixels // pipeline.vae_scale_factor for pixels in size))
    rows = torch.arange(2 * batch, device=family.network.device)
    denoise = Guided(sampling.denoiser(family.predict), *rows.chunk(2), family.cfg if family.guided else 1)
    anywhere = Guided(sampling.denoiser_anywhere(family.predict), *rows.chunk(2), 1)
    vae = _decoding(pipeline.vae, family.upcasts_vae)
    return SampleMap(
        denoise, sampling.schedule, shape, eta, start=sampling.start, finish=sampling.finish,
        decode=_decoder(vae), prompts=prompts, model=fingerprint(family.network),
        device=family.network.device, unguided=anywhere.unguided if family.guided else _alone(anywhere),
        blocks=Blocks([family.network]), decoder_blocks=Blocks([vae.decoder]), **settings,
    )  # fmt: skip


def _alone(denoise):
    """Return what a map without a negative prompt has as `unguided`."""
    return lambda x, sigma: (denoise(x, sigma), None)


def _refuse_offloaded(pipeline):
    """Raise ValueError for a pipeline that moves its weights in and out: autograd needs them where they were."""
    networks = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    if any(hasattr(module, "_hf_hook") for network in networks for module in network.modules()):
        raise ValueError(
            "the pipeline offloads its weights, which a backward pass needs in place; expected a pipeline as a whole on"
            " one device. Call pipeline.remove_all_hooks() and pipeline.to(device), not enable_model_cpu_offload() or"
            " enable_sequential_cpu_offload()"
        )


@dataclass(frozen=True)
class Sampling:
    """How a scheduler samples, in the map's terms.

    Attributes:
        schedule: the noise levels.
        timesteps: (T,), what the network is told at each; None for flow, where it is sigma.
        prediction: "eps" or "v"; None for flow.
        start_scale: x at the first sigma is this times the noise.
        finish_scale: the latent is this times x at the last sigma.
        alphas_cumprod: (N,), of the training timesteps; None for flow.
    """

    schedule: Schedule
    timesteps: torch.Tensor | None = None
    prediction: str | None = None
    start_scale: float = 1.0
    finish_scale: float = 1.0
    alphas_cumprod: torch.Tensor | None = None

    def start(self, noise):
        """Return x at the first sigma."""
        return noise * self.start_scale

    def finish(self, x):
        """Return the latent of x at the last sigma."""
        return x * self.finish_scale

    def denoiser(self, network):
        """Return (x, sigma, rows) -> denoised of a network (x, timesteps or sigma, rows) -> prediction."""
        if self.timesteps is None:
            return lambda x, sigma, rows: x - sigma.view(-1, 1, 1, 1) * network(x, sigma, rows)
        return _ScheduledDenoiser(network, self)

    def denoiser_anywhere(self, network):
        """Return the same at any noise level, which the network is told as the nearest of its training timesteps."""
        if self.timesteps is None:
            return self.denoiser(network)
        return DiscreteDenoiser(network, self.alphas_cumprod, self.prediction)


class _ScheduledDenoiser(DiscreteDenoiser):
    """A DiscreteDenoiser that tells the network the scheduler's timesteps, whole numbers or not."""

    def __init__(self, network, sampling):
        sigmas = torch.tensor(sampling.schedule.sigmas[:-1], dtype=torch.float64)
        super().__init__(network, 1 / (1 + sigmas.square()), sampling.prediction)
        self.timesteps = sampling.timesteps

    def timestep(self, sigma):
        """Return the timestep at each sigma of the schedule, (B,)."""
        if self.timesteps.device != sigma.device:
            self.timesteps = self.timesteps.to(sigma.device)
        return self.timesteps[super().timestep(sigma)]


def _vp_sampling(scheduler, steps):
    """Return the Sampling of an eps or v model's scheduler."""
    from diffusers import DDIMScheduler

    name, config = type(scheduler).__name__, scheduler.config
    _check_scheduler(name, (*DDIM_LIKE, *EULER, LCM))
    # "leading" timesteps are moved up by the offset, and must stay below N.
    _check_steps(steps, config.num_train_timesteps - config.get("steps_offset", 0))
    if config.prediction_type not in PREDICTIONS:
        raise ValueError(f"the model predicts {config.prediction_type!r}; expected one of {', '.join(PREDICTIONS)}")
    own = DDIMScheduler.from_config(config) if name in DDIM_LIKE else copy.deepcopy(scheduler)
    own.set_timesteps(steps)
    prediction = PREDICTIONS[config.prediction_type]
    if name in EULER:
        start_scale, alphas = float(own.init_noise_sigma), own.alphas_cumprod
        return Sampling(Schedule(own.sigmas), own.timesteps, prediction, start_scale, alphas_cumprod=alphas)
    if config.get("clip_sample") or config.get("thresholding"):
        raise ValueError("the scheduler clips its x0 estimate, as pixel models need it; expected clip_sample=False")
    # For 62 of the possible numbers of steps (61 is the first) float rounding makes diffusers give one too many.
    timesteps = own.timesteps[:steps]
    alphas = [*own.alphas_cumprod[timesteps].tolist(), 1.0 if name == LCM else float(own.final_alpha_cumprod)]
    schedule = Schedule([((1 - alpha) / alpha) ** 0.5 for alpha in (max(alpha, LEAST_ALPHA) for alpha in alphas)])
    # DDIM's own coordinates are sqrt(alpha) x, where x_T is the noise and the latent is what is left at the end.
    start_scale, finish_scale = ((1 + sigma**2) ** 0.5 for sigma in (schedule.sigmas[0], schedule.sigmas[-1]))
    return Sampling(schedule, timesteps, prediction, start_scale, 1 / finish_scale, own.alphas_cumprod)


def _flow_sampling(family, steps, size):
    """Return the Sampling of a rectified flow's scheduler, whose shift may depend on the number of patches."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = family.pipeline.scheduler
    _check_scheduler(type(scheduler).__name__, (FLOW,))
    _check_steps(steps, scheduler.config.num_train_timesteps)
    own, config = copy.deepcopy(scheduler), scheduler.config
    patches = math.prod(size) // (family.pipeline.vae_scale_factor * family.patch) ** 2
    lengths, shifts = (config.base_image_seq_len, config.max_image_seq_len), (config.base_shift, config.max_shift)
    mu = calculate_shift(patches, *lengths, *shifts)
    own.set_timesteps(steps, sigmas=family.sigmas(steps), mu=mu)
    return Sampling(Schedule(own.sigmas, "flow"))


def _check_scheduler(name, accepted):
    if name not in accepted:
        raise ValueError(
            f"the pipeline's scheduler is a {name}; expected one of {', '.join(accepted)}. Most can be exchanged:"
            f" pipeline.scheduler = {accepted[0]}.from_config(pipeline.scheduler.config)"
        )


def _check_steps(steps, most):
    if not 1 <= steps <= most:
        raise ValueError(f"steps is {steps}; expected 1 .. {most}")


def _picture_size(family, height, width):
    """Return (height, width) in pixels, the model's own where None, after checking that the networks can take it."""
    pipeline, vae_channels = family.pipeline, family.pipeline.vae.config.latent_channels
    if family.channels != vae_channels:
        raise ValueError(
            f"the network takes {family.channels} channels where the VAE's latent has {vae_channels}: it was made for"
            " inpainting or editing; expected one that makes pictures from text alone"
        )
    own = getattr(pipeline, "default_sample_size", None) or pipeline.unet.config.sample_size
    own = (own, own) if isinstance(own, int) else own
    own = [side * pipeline.vae_scale_factor for side in own]
    size = tuple(side if asked is None else asked for asked, side in zip((height, width), own, strict=True))
    unit = pipeline.vae_scale_factor * family.patch
    if any(side < unit or side % unit for side in size):
        raise ValueError(f"the picture is {size[0]} pixels high and {size[1]} wide; expected multiples of {unit}")
    return size


def _freeze(pipeline):
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)


def _decoding(vae, upcasts):
    """Return the VAE to decode with: in float32 where its half precision overflows."""
    if upcasts and vae.dtype == torch.float16 and vae.config.force_upcast:
        # A copy, so that the pipeline itself stays as it was.
        return copy.deepcopy(vae).float()
    return vae


def _decoder(vae):
    """Return latent (B, C, h, w) -> pictures (B, 3, H, W) in [0, 1], not clamped, in the latent's dtype."""
    config = vae.config
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    shift, scale = getattr(config, "shift_factor", None) or 0.0, 1.0
    if mean is not None and std is not None:
        shift, scale = (
            torch.tensor(values, dtype=torch.float32, device=vae.device).view(1, -1, 1, 1) for values in (mean, std)
        )

    def decode(latent):
        z = latent * scale / config.scaling_factor + shift
        return vae.decode(z.to(vae.dtype), return_dict=False)[0].to(latent.dtype) / 2 + 0.5

    return decode
