"""Transformers of pictures whose latents are (C, H, W)."""

from .family import Family, mask_of_the_prompt

LATENT = (16, 8, 8)
PIXELS = (3, 32, 32)
LAST = "final_layer.linear"
LARGE = (4, 40, 40)  # PixArt counts its positions in parts of 64

SD3 = {
    "input_size": None, "patch_size": 2, "out_channels": 16, "depth": 2, "adm_in_channels": 32, "qk_norm": "rms",
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 128}},
    "num_patches": 256, "pos_embed_max_size": 16, "x_block_self_attn_layers": [0],
}  # fmt: skip
AURAFLOW = {"dim": 128, "n_layers": 2, "n_double_layers": 1, "n_heads": 2, "cond_seq_dim": 32, "max_seq": 64}
PIXART = {
    "input_size": 80, "pe_interpolation": 1, "patch_size": 2, "in_channels": 4, "hidden_size": 96, "depth": 1,
    "num_heads": 2, "caption_channels": 32, "model_max_length": 7,
}  # fmt: skip
HUNYUAN_DIT = {
    "input_size": 32, "hidden_size": 128, "depth": 2, "num_heads": 2, "text_states_dim": 32, "text_states_dim_t5": 32,
    "text_len": 7, "text_len_t5": 9,
}  # fmt: skip
FLUX = {
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "hidden_size": 128, "num_heads": 1, "mlp_ratio": 1.0,
    "axes_dim": [16, 56, 56], "theta": 10000, "depth": 1, "depth_single_blocks": 1, "qkv_bias": True,
    "context_in_dim": 32, "vec_in_dim": 32, "txt_ids_dims": [],
}  # fmt: skip
FLUX2 = {
    "in_channels": 128, "out_channels": 128, "patch_size": 1, "axes_dim": [32, 32, 32, 32], "theta": 2000,
    "global_modulation": True, "mlp_silu_act": True, "qkv_bias": False, "ops_bias": False, "vec_in_dim": None,
    "default_ref_method": "index", "ref_index_scale": 10.0, "txt_ids_dims": [3], "guidance_embed": True,
}  # fmt: skip
LONGCAT = {"context_in_dim": 3584, "vec_in_dim": None, "guidance_embed": False, "txt_ids_dims": [1, 2]}
CHROMA = {
    "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 128, "hidden_dim": 64, "n_layers": 1,
    "vec_in_dim": None,
}  # fmt: skip
RADIANCE = {
    **CHROMA, "in_channels": 3, "out_channels": 3, "patch_size": 16, "nerf_hidden_size": 16, "nerf_mlp_ratio": 2,
    "nerf_depth": 1, "nerf_max_freqs": 4, "nerf_tile_size": 512, "nerf_final_head_type": "conv",
    "nerf_embedder_dtype": None, "use_x0": True, "use_sequential_txt_ids": False,
}  # fmt: skip
LUMINA = {
    "patch_size": 2, "in_channels": 16, "dim": 96, "cap_feat_dim": 32, "n_layers": 1, "n_refiner_layers": 1,
    "qk_norm": True, "n_heads": 1, "n_kv_heads": 1, "axes_dims": [32, 32, 32], "axes_lens": [300, 512, 512],
    "rope_theta": 10000.0, "ffn_dim_multiplier": 1.0, "multiple_of": 32,
}  # fmt: skip
Z_IMAGE = {
    **LUMINA, "dim": 256, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
}  # fmt: skip
Z_IMAGE_PIXELS = {
    **Z_IMAGE, "patch_size": 8, "in_channels": 3, "decoder_in_channels": 192, "decoder_hidden_size": 32,
    "decoder_num_res_blocks": 1, "decoder_max_freqs": 4, "use_x0": True,
}  # fmt: skip
OMNIGEN = {
    "axes_dim_rope": [40, 40, 40], "axes_lens": [1024, 1664, 1664], "hidden_size": 120, "in_channels": 16,
    "multiple_of": 32, "num_attention_heads": 1, "num_kv_heads": 1, "num_layers": 1, "num_refiner_layers": 1,
    "patch_size": 2, "text_feat_dim": 32, "timestep_scale": 1000.0,
}  # fmt: skip
BOOGU = {
    "axes_dim_rope": [40, 40, 40], "hidden_size": 120, "multiple_of": 32, "num_attention_heads": 1, "num_kv_heads": 1,
    "num_layers": 1, "num_double_stream_layers": 1, "num_refiner_layers": 1, "instruction_feat_dim": 32,
}  # fmt: skip
HIDREAM = {
    "attention_head_dim": 128, "axes_dims_rope": [64, 32, 32], "caption_channels": [32, 32], "in_channels": 16,
    "out_channels": 16, "llama_layers": [0, 1], "max_resolution": [128, 128], "num_attention_heads": 1,
    "num_routed_experts": 4, "num_activated_experts": 2, "num_layers": 1, "num_single_layers": 1, "patch_size": 2,
    "text_emb_dim": 32,
}  # fmt: skip
QWEN_3_VL = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1,
}  # fmt: skip
HIDREAM_O1 = {
    "text_config_overrides": QWEN_3_VL,
    "vision_config_overrides": {
        "hidden_size": 32, "num_heads": 1, "intermediate_size": 32, "depth": 1, "num_position_embeddings": 16,
        "deepstack_visual_indexes": (0,), "out_hidden_size": 128,
    },
}  # fmt: skip
HUNYUAN_IMAGE = {
    "in_channels": 64, "out_channels": 64, "patch_size": [1, 1], "vec_in_dim": None, "axes_dim": [64, 64],
    "context_in_dim": 32, "hidden_size": 128, "mlp_ratio": 1.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 1,
    "theta": 256, "qkv_bias": True, "guidance_embed": False, "byt5": False, "meanflow": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
PIXEL_DIT = {
    "num_groups": 1, "hidden_size": 64, "pixel_hidden_size": 8, "pixel_attn_hidden_size": 64, "pixel_num_groups": 1,
    "patch_depth": 1, "pixel_depth": 1, "txt_embed_dim": 32, "txt_max_length": 7,
}  # fmt: skip
KANDINSKY = {
    "model_dim": 128, "ff_dim": 64, "time_dim": 32, "in_text_dim": 32, "in_text_dim2": 32, "num_text_blocks": 1,
    "num_visual_blocks": 1, "axes_dims": (32, 48, 48), "rope_scale_factor": (1.0, 1.0, 1.0), "visual_embed_dim": 64,
}  # fmt: skip
LENS = {"num_layers": 1, "num_attention_heads": 1, "enc_hidden_dim": 32, "selected_layer_index": (0, 1)}
MAGE = {"num_layers": 1, "num_attention_heads": 1, "joint_attention_dim": 32}
IDEOGRAM = {
    "num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 128, "intermediate_size": 64, "adaln_dim": 32,
    "llm_features_dim": 32,
}  # fmt: skip
ERNIE = {"hidden_size": 128, "num_attention_heads": 1, "num_layers": 1, "ffn_hidden_size": 64, "text_in_dim": 32}


def t5_and_its_mask(random):
    """Return what HunyuanDiT has beside CLIP's embedding."""
    masks = {**mask_of_the_prompt(random), "attention_mask_mt5xl": random(1, 9).new_ones(1, 9).long()}
    return {"conditioning_mt5xl": random(1, 9, 32), **masks}


def llama(random):
    """Return HiDream's second prompt embedding, of two layers."""
    return {"conditioning_llama3": random(1, 2, 7, 32)}


def reference(random):
    """Return the picture that an editing model looks at."""
    return {"reference_latents": [random(1, *LATENT)]}


def small_picture(random):
    """Return the latent that PiD decodes to pixels, and how noisy it is."""
    return {"lq_latent": random(1, 16, 2, 2), "degrade_sigma": 0 * random(1)}


def token_ids(random):
    """Return HiDream O1's prompt, which it embeds itself."""
    return {"text_input_ids": (random(1, 7).abs() * 10).long()}


def flux(name, model="Flux", sizes=(), **row):
    """Return a family of Flux's kin, `sizes` beside those of Flux."""
    usual = {"latent": LATENT, "last": LAST, "pooled": 32, "newer": ("txt_ids_dims",)}
    return Family(name, model, {**FLUX, **dict(sizes)}, **{**usual, **row})


FAMILIES = [
    Family("Stable Diffusion 3", "SD3", SD3, LATENT, LAST, pooled=32),
    Family("AuraFlow", "AuraFlow", AURAFLOW, (4, 8, 8), "final_linear"),
    Family("PixArt alpha", "PixArtAlpha", {**PIXART, "micro_condition": True}, LARGE, LAST,
           extras=lambda random: {"width": 64, "height": 64}),
    Family("PixArt sigma", "PixArtSigma", {**PIXART, "micro_condition": False}, LARGE, LAST),
    Family("HunyuanDiT", "HunyuanDiT", HUNYUAN_DIT, (4, 8, 8), LAST, extras=t5_and_its_mask),
    Family("HunyuanDiT 1.0", "HunyuanDiT1", {**HUNYUAN_DIT, "size_cond": True, "use_style_cond": True}, (4, 8, 8),
           LAST, extras=t5_and_its_mask),
    flux("Flux dev", sizes={"guidance_embed": True}),
    flux("Flux Kontext", sizes={"guidance_embed": True}, extras=reference),
    flux("Flux schnell", "FluxSchnell", {"guidance_embed": False}),
    flux("Flux Fill", "FluxInpaint", {"guidance_embed": True, "in_channels": 96}),
    flux("Flux 2", "Flux2", FLUX2, latent=(128, 4, 4)),
    flux("LongCat Image", "LongCatImage", LONGCAT, prompt=(7, 3584), pooled=None),
    flux("Chroma", "Chroma", CHROMA, newer=("txt_ids_dims", "vec_in_dim")),
    flux("Chroma Radiance", "ChromaRadiance", RADIANCE, latent=PIXELS, last="nerf_final_layer_conv.conv",
         newer=("txt_ids_dims", "vec_in_dim", "use_x0", "use_sequential_txt_ids")),
    Family("Lumina 2", "Lumina2", LUMINA, LATENT, LAST),
    Family("Z-Image", "ZImage", Z_IMAGE, LATENT, LAST),
    Family("Z-Image, pixels", "ZImagePixelSpace", Z_IMAGE_PIXELS, PIXELS, "dec_net.final_layer.linear"),
    Family("OmniGen 2", "Omnigen2", OMNIGEN, LATENT, "norm_out.linear_2", extras=mask_of_the_prompt),
    Family("Boogu", "Boogu", BOOGU, LATENT, "norm_out.linear_2", extras=mask_of_the_prompt),
    Family("HiDream I1", "HiDream", HIDREAM, LATENT, LAST, pooled=32, extras=llama),
    Family("HiDream O1", "HiDreamO1", HIDREAM_O1, (3, 64, 64), "final_layer2.linear", extras=token_ids,
           note="the twin's reward is all but flat, so that differences along random directions are mostly rounding"),
    Family("Hunyuan Image 2.1", "HunyuanImage21", HUNYUAN_IMAGE, (64, 4, 4), LAST, newer=("meanflow_sum",)),
    Family("Hunyuan Image 2.1 distilled", "HunyuanImage21", {**HUNYUAN_IMAGE, "meanflow": True}, (64, 4, 4), LAST,
           newer=("meanflow_sum",)),
    Family("PixelDiT", "PixelDiTT2I", PIXEL_DIT, PIXELS, LAST),
    Family("PiD", "PiD", {**PIXEL_DIT, "lq_hidden_dim": 32, "lq_num_res_blocks": 1}, (3, 64, 64), LAST,
           extras=small_picture),
    Family("Kandinsky 5 image", "Kandinsky5Image", KANDINSKY, LATENT, "out_layer.out_layer", pooled=32),
    Family("Lens", "Lens", LENS, (128, 4, 4), "proj_out", prompt=(7, 64)),
    Family("Mage Flow", "MageFlow", MAGE, (128, 4, 4), "proj_out"),
    Family("Ideogram 4", "Ideogram4", IDEOGRAM, (128, 4, 4), "final_layer.linear"),
    Family("ERNIE-Image", "ErnieImage", ERNIE, (128, 4, 4), "final_linear"),
]  # fmt: skip
