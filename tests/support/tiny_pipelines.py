"""Tiny diffusers pipelines with random weights, one of each class, built from configs.

The VAE has two levels, so a picture of 16 x 16 has a latent of 8 x 8.
"""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

WIDTH, TOKENS, PIXELS = 8, 6, 16
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WORDS = ["<pad>", "<unk>", "a", "white", "duck", "black", "cat", "blurry"]


def ddim(prediction="epsilon", **config):
    """Stable Diffusion's DDIMScheduler."""
    settings = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": prediction}
    return DDIMScheduler(**(SD_BETAS | settings | config))


def seeded(build):
    """Build a network with the same random weights every time."""
    torch.manual_seed(0)
    return build().eval()


def vae(channels=4, **config):
    return seeded(
        lambda: AutoencoderKL(
            latent_channels=channels, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            **({"scaling_factor": 0.5} | config),
        )
    )  # fmt: skip


def unet(cross=WIDTH, **config):
    return seeded(
        lambda: UNet2DConditionModel(
            sample_size=PIXELS // 2, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=cross,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=4, **config,
        )
    )  # fmt: skip


def tokenizer():
    """A tokenizer of eight words."""
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, model_max_length=TOKENS, pad_token="<pad>", unk_token="<unk>"
    )


def clip(model=CLIPTextModel, width=WIDTH):
    config = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=TOKENS, projection_dim=width, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return seeded(lambda: model(config))


def t5():
    config = T5Config(vocab_size=len(WORDS), d_model=WIDTH, d_kv=4, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0)
    return seeded(lambda: T5EncoderModel(config))


def stable_diffusion(scheduler=None, with_text=True, pipeline=StableDiffusionPipeline, **network):
    return pipeline(
        vae=vae(), unet=unet(**network), scheduler=scheduler or ddim(), safety_checker=None, feature_extractor=None,
        tokenizer=tokenizer() if with_text else None, text_encoder=clip() if with_text else None,
        requires_safety_checker=False,
    )  # fmt: skip


def latent_consistency(scheduler, with_text=True):
    return stable_diffusion(scheduler, with_text, LatentConsistencyModelPipeline, time_cond_proj_dim=8)


def stable_diffusion_xl(scheduler=None, with_text=True, **vae_config):
    extra = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": WIDTH + 6 * 4,
    }
    return StableDiffusionXLPipeline(
        vae=vae(**vae_config), unet=unet(2 * WIDTH, **extra), scheduler=scheduler or ddim(),
        tokenizer=tokenizer() if with_text else None, tokenizer_2=tokenizer() if with_text else None,
        text_encoder=clip() if with_text else None,
        text_encoder_2=clip(CLIPTextModelWithProjection) if with_text else None,
        add_watermarker=False,
    )  # fmt: skip


def stable_diffusion_3(scheduler=None, with_text=True):
    transformer = seeded(
        lambda: SD3Transformer2DModel(
            sample_size=PIXELS // 2, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=4,
            num_attention_heads=2, joint_attention_dim=2 * WIDTH, caption_projection_dim=8,
            pooled_projection_dim=2 * WIDTH, pos_embed_max_size=16,
        )
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        vae=vae(shift_factor=0.1), transformer=transformer,
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
        tokenizer=tokenizer() if with_text else None, tokenizer_2=tokenizer() if with_text else None, tokenizer_3=None,
        text_encoder=clip(CLIPTextModelWithProjection) if with_text else None,
        text_encoder_2=clip(CLIPTextModelWithProjection) if with_text else None, text_encoder_3=None,
    )  # fmt: skip


def flux(scheduler=None, with_text=True, guidance_embeds=True):
    transformer = seeded(
        lambda: FluxTransformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 2, 2),
        )
    )  # fmt: skip
    return FluxPipeline(
        vae=vae(shift_factor=0.1), transformer=transformer,
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        tokenizer=tokenizer() if with_text else None, text_encoder=clip() if with_text else None,
        tokenizer_2=tokenizer() if with_text else None, text_encoder_2=t5() if with_text else None,
    )  # fmt: skip


def embeddings(pooled=None, width=WIDTH, negative=True):
    """Random embeddings of two prompts, as keywords of `from_pipeline`; `pooled` and `width` are their channels."""
    generator = torch.Generator().manual_seed(3)
    found = {"prompt_embeds": torch.randn(2, TOKENS, width, generator=generator)}
    if pooled:
        found["pooled_prompt_embeds"] = torch.randn(2, pooled, generator=generator)
    if negative:
        found |= {f"negative_{name}": torch.randn(value.shape, generator=generator) for name, value in found.items()}
    return found
