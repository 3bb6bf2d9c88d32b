"""The families of diffusers pipelines: how each encodes its prompts and calls its network.

    family              class               the network sees          predicts    conditioned on
    SD 1.x, 2.x, LCM    StableDiffusion     x / sqrt(1 + sigma^2)     eps or v    text; cfg where it is distilled in
    SDXL                StableDiffusionXL   x / sqrt(1 + sigma^2)     eps or v    text, pooled text, picture size
    SD3                 StableDiffusion3    x                         x_T - x_0   text, pooled text
    Flux                Flux                x in patches of 2 x 2     x_T - x_0   text, pooled text, cfg, positions

`predict(x, t, rows)` is the network without guidance. `rows` (len(x),) says which encoded prompt each row of x has:
0 .. B - 1 are the prompts, B .. 2B - 1 the negative ones. So one tensor stands for the whole condition, whatever it
consists of, and `Guided` can repeat it for candidates and put both halves into one call.
"""

from dataclasses import dataclass
from functools import partial

import torch

from ..checks import check_finite


@dataclass(frozen=True)
class Embeddings:
    """Encoded prompts by the names of the pipelines' arguments: text (B, tokens, c), pooled (B, c); None: not given."""

    prompt_embeds: torch.Tensor | None = None
    negative_prompt_embeds: torch.Tensor | None = None
    pooled_prompt_embeds: torch.Tensor | None = None
    negative_pooled_prompt_embeds: torch.Tensor | None = None


class StableDiffusion:
    """Stable Diffusion 1.x and 2.x, and LCM, whose network is told cfg instead of being guided by it.

    Attributes:
        text_parts: the pipeline's components that encoding a prompt needs.
        flow: whether it is a rectified flow.
        pooled: whether it is conditioned on pooled text too.
        upcasts_vae: whether the VAE overflows in float16 and says so by `force_upcast`.
        patch: side of the network's patches, in latent pixels.
    """

    text_parts = ("tokenizer", "text_encoder")
    flow, pooled, upcasts_vae, patch = False, False, False, 1

    def __init__(self, pipeline, cfg):
        check_finite(cfg=cfg)
        self.pipeline, self.cfg = pipeline, cfg

    @property
    def network(self):
        """The U-Net or transformer."""
        return self.pipeline.unet

    @property
    def channels(self):
        """Channels of the latent that the network takes."""
        return self.network.config.in_channels

    @property
    def guided(self):
        """Whether classifier-free guidance is evaluated: above cfg 1, as in the pipelines."""
        return self.cfg > 1 and self.network.config.time_cond_proj_dim is None

    def condition(self, prompts, negative, given, size):
        """Encode the prompts, or take their embeddings as given; return B.

        Args:
            prompts: list of B strings, or None.
            negative: a string shared by all; "" is the pipeline's own default.
            given: Embeddings.
            size: (height, width) of the picture in pixels.

        Raises:
            ValueError: neither prompts nor embeddings suffice.
        """
        self._check(prompts, negative, given)
        rows = len(given.prompt_embeds) if prompts is None else len(prompts)
        with torch.no_grad():
            encoded = self._encode(prompts, [negative] * rows if negative else None, given)
        self.text = self._both(encoded.prompt_embeds, encoded.negative_prompt_embeds)
        if self.pooled:
            self.pooled_text = self._both(encoded.pooled_prompt_embeds, encoded.negative_pooled_prompt_embeds)
        self.size = size
        return len(encoded.prompt_embeds)

    def predict(self, x, timesteps, rows):
        """Return the network's output at x (rows, C, H, W), in x's dtype; timesteps (rows,)."""
        inputs = self.extra_inputs(rows)
        if self.network.config.time_cond_proj_dim is not None:
            # The embedding of cfg - 1 that the network was distilled with.
            told = self.pipeline.get_guidance_scale_embedding(
                torch.full((len(x),), self.cfg - 1.0, dtype=torch.float32),
                embedding_dim=self.network.config.time_cond_proj_dim,
            )
            inputs["timestep_cond"] = told.to(x.device, self.network.dtype)
        x_in = x.to(self.network.dtype)
        output = self.network(x_in, timesteps, encoder_hidden_states=self.text[rows], return_dict=False, **inputs)[0]
        return output.to(x.dtype)

    def extra_inputs(self, rows):
        """Return the network's inputs beside latent, timestep and text."""
        return {}

    def has_default_negative(self, negative):
        """Whether the negative prompt is one that needs no encoding."""
        return False

    def _encode(self, prompts, negatives, given):
        text, negative = self.pipeline.encode_prompt(
            prompts, self.network.device, 1, self.guided, negatives,
            prompt_embeds=given.prompt_embeds, negative_prompt_embeds=given.negative_prompt_embeds,
        )  # fmt: skip
        return Embeddings(text, negative)

    def _both(self, positive, negative):
        parts = [positive, negative] if self.guided else [positive]
        if len({part.shape for part in parts}) > 1:
            raise ValueError(f"embeddings are {[tuple(part.shape) for part in parts]}; expected one shape for both")
        return torch.cat(parts).to(self.network.device, self.network.dtype)

    def _check(self, prompts, negative, given):
        if not prompts and given.prompt_embeds is None:
            raise ValueError("there is neither a prompt nor prompt_embeds; expected one of them")
        taken = [name for name in vars(given) if self.pooled or "pooled" not in name]
        if not self.guided or self.has_default_negative(negative):
            taken = [name for name in taken if "negative" not in name]
        missing = [name for name in taken if getattr(given, name) is None]
        absent = [part for part in self.text_parts if getattr(self.pipeline, part) is None]
        if missing and absent:
            raise ValueError(f"the pipeline has no {' and no '.join(absent)}; expected {' and '.join(missing)} instead")
        for name in (name for name in taken if self.pooled and "pooled" not in name):
            partner = name.replace("prompt", "pooled_prompt")
            if (name in missing) != (partner in missing):
                raise ValueError(f"only one of {name} and {partner} is given; this model takes both or none")


class StableDiffusionXL(StableDiffusion):
    """SDXL: two text encoders, and the size of the picture as a condition."""

    text_parts = ("tokenizer_2", "text_encoder_2")
    pooled, upcasts_vae = True, True

    def extra_inputs(self, rows):
        # Original size, crop, target size, as the pipeline has them by default.
        sizes = torch.tensor([*self.size, 0, 0, *self.size]).to(self.text)
        return {"added_cond_kwargs": {"text_embeds": self.pooled_text[rows], "time_ids": sizes.expand(len(rows), -1)}}

    def has_default_negative(self, negative):
        return not negative and self.pipeline.config.force_zeros_for_empty_prompt

    def _encode(self, prompts, negatives, given):
        return _encode_four(self, self.pipeline.encode_prompt, prompts, negatives, given)


class StableDiffusion3(StableDiffusion):
    """SD3: a transformer, rectified flow, three text encoders, of which T5 may be absent."""

    text_parts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    flow, pooled = True, True

    @property
    def network(self):
        return self.pipeline.transformer

    @property
    def patch(self):
        return self.network.config.patch_size

    @property
    def guided(self):
        return self.cfg > 1

    def sigmas(self, steps):
        """Return the sigmas to hand to the scheduler before its shift, or None for its own."""
        return None

    def predict(self, x, sigma, rows):
        """Return the velocity at x (rows, C, H, W), in x's dtype; sigma (rows,) in [0, 1]."""
        velocity = self.network(
            hidden_states=x.to(self.network.dtype),
            timestep=sigma * self.pipeline.scheduler.config.num_train_timesteps,
            encoder_hidden_states=self.text[rows],
            pooled_projections=self.pooled_text[rows],
            return_dict=False,
        )[0]
        return velocity.to(x.dtype)

    def _encode(self, prompts, negatives, given):
        return _encode_four(self, partial(self.pipeline.encode_prompt, prompt_3=None), prompts, negatives, given)


class Flux(StableDiffusion3):
    """Flux: packed latents; cfg is an input of the network (dev) or nothing (schnell), there is no negative prompt."""

    patch, guided = 2, False

    @property
    def channels(self):
        return self.network.config.in_channels // 4

    def sigmas(self, steps):
        return torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64).numpy()

    def predict(self, x, sigma, rows):
        """Return the velocity at x (rows, C, H, W), packed for the network and unpacked again."""
        height, width = x.shape[-2] // 2, x.shape[-1] // 2
        packed = torch.nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)
        text, guidance = self.text[rows], None
        if self.network.config.guidance_embeds:
            guidance = torch.full((len(x),), float(self.cfg), dtype=torch.float32, device=x.device)
        velocity = self.network(
            hidden_states=packed.to(self.network.dtype),
            timestep=sigma,
            guidance=guidance,
            encoder_hidden_states=text,
            pooled_projections=self.pooled_text[rows],
            txt_ids=text.new_zeros(text.shape[1], 3),
            img_ids=_positions(height, width).to(text),
            return_dict=False,
        )[0]
        unpacked = velocity.transpose(1, 2).unflatten(2, (height, width))
        return torch.nn.functional.pixel_shuffle(unpacked, 2).to(x.dtype)

    def _encode(self, prompts, negatives, given):
        text, pooled, _ = self.pipeline.encode_prompt(
            prompts, None, self.network.device,
            prompt_embeds=given.prompt_embeds, pooled_prompt_embeds=given.pooled_prompt_embeds,
        )  # fmt: skip
        return Embeddings(text, None, pooled)

    def _check(self, prompts, negative, given):
        if negative or given.negative_prompt_embeds is not None or given.negative_pooled_prompt_embeds is not None:
            raise ValueError("Flux takes no negative prompt, its cfg is distilled into the network; leave it empty")
        super()._check(prompts, negative, given)


FAMILIES = {
    "StableDiffusionPipeline": StableDiffusion,
    "LatentConsistencyModelPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
}


def family_of(class_name):
    """Return the family of a pipeline's class; raise ValueError for one that is not known."""
    if class_name not in FAMILIES:
        raise ValueError(f"the pipeline is a {class_name}; expected a text-to-image pipeline: {', '.join(FAMILIES)}")
    return FAMILIES[class_name]


def _encode_four(family, encode_prompt, prompts, negatives, given):
    """Encode by a pipeline that returns text and pooled text, each followed by its negative or None."""
    four = encode_prompt(
        prompt=prompts, prompt_2=None, device=family.network.device, do_classifier_free_guidance=family.guided,
        negative_prompt=negatives, **vars(given),
    )  # fmt: skip
    return Embeddings(*four)


def _positions(height, width):
    """Return Flux's (height * width, 3) places of the patches: 0, row, column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1)
