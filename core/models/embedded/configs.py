"""The embedded model's sizes: Stable Diffusion's architecture in small, in the words of diffusers and transformers.

Plain dicts, so that reading them imports nothing. What Stable Diffusion and ComfyUI allow decides the sizes:

- channels are multiples of 32, because every GroupNorm has 32 groups;
- the U-Net has 8 attention heads, the only number that ComfyUI's SD15 knows; diffusers calls it `attention_head_dim`;
- each level's channels are a whole multiple of the first level's, as ComfyUI's configurations have it.
"""

IMAGE_SIZE = 128
LATENT_CHANNELS = 4
LATENT_SCALE = 0.18215

VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (64, 64, 64, 64),
    "layers_per_block": 0,
    "latent_channels": LATENT_CHANNELS,
    "norm_num_groups": 32,
    "sample_size": IMAGE_SIZE,
    "scaling_factor": LATENT_SCALE,
}

UNET = {
    "sample_size": IMAGE_SIZE // 8,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (64, 128),
    "layers_per_block": 1,
    "cross_attention_dim": 64,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
}

TEXT = {
    "vocab_size": 49408,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 64,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
    "clip_sample": False,
}
