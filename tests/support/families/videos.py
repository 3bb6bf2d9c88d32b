"""Models whose latents have frames, (C, T, H, W): of video, and of pictures that are one frame of it."""

from dataclasses import replace

from .family import COARSE, Family, mask_of_the_prompt

PICTURE = (16, 1, 8, 8)
HEAD, FINAL = "head.head", "final_layer.linear"
CLIP_FRAMES = 5

QWEN = {"in_channels": 64, "num_layers": 1, "num_attention_heads": 1, "joint_attention_dim": 32}
KREA = {
    "features": 128, "tdim": 32, "txtdim": 32, "heads": 1, "kvheads": 1, "multiplier": 1, "layers": 1, "txtlayers": 2,
    "txtheads": 1, "txtkvheads": 1,
}  # fmt: skip
JOY = {"hidden_size": 128, "num_attention_heads": 1, "text_dim": 32, "mlp_width_ratio": 1.0, "num_layers": 1}
PREDICT = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "concat_padding_mask": True, "model_channels": 128, "num_blocks": 1, "num_heads": 1,
    "mlp_ratio": 1.0, "crossattn_emb_channels": 32, "pos_emb_cls": "rope3d", "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop", "use_adaln_lora": True, "adaln_lora_dim": 16, "rope_enable_fps_modulation": False,
}  # fmt: skip
COSMOS = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1,
    "concat_padding_mask": True, "block_config": "FA-CA-MLP", "model_channels": 128, "num_blocks": 1, "num_heads": 1,
    "mlp_ratio": 1.0, "crossattn_emb_channels": 32, "pos_emb_cls": "rope3d", "pos_emb_learnable": False,
    "pos_emb_interpolation": "crop", "block_x_format": "THWBD", "affline_emb_norm": True, "use_adaln_lora": True,
    "adaln_lora_dim": 16, "extra_per_block_abs_pos_emb": True, "extra_per_block_abs_pos_emb_type": "learnable",
}  # fmt: skip
HUNYUAN = {
    "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "vec_in_dim": 32, "axes_dim": [16, 56, 56],
    "context_in_dim": 32, "hidden_size": 128, "mlp_ratio": 1.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 1,
    "theta": 256, "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
REFINER = {"in_channels": 128, "out_channels": 64, "patch_size": [1, 1, 1], "vec_in_dim": None}
HUNYUAN_15 = {
    "in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1], "vec_in_dim": None,
    "guidance_embed": False, "use_cond_type_embedding": True, "vision_in_dim": 32, "meanflow_sum": True,
}  # fmt: skip
WAN = {
    "dim": 128, "ffn_dim": 64, "num_heads": 1, "num_layers": 1, "freq_dim": 32, "text_dim": 32, "text_len": 7,
    "in_dim": 16, "out_dim": 16,
}  # fmt: skip
WAN_5B = {**WAN, "in_dim": 48, "out_dim": 48}
ANIMATE = {**WAN, "in_dim": 36, "num_layers": 5}
LTX = {
    "num_attention_heads": 2, "attention_head_dim": 64, "cross_attention_dim": 128, "caption_channels": 32,
    "num_layers": 1,
}  # fmt: skip
MOCHI = {
    "depth": 2, "num_heads": 1, "hidden_size_x": 64, "hidden_size_y": 32, "mlp_ratio_x": 192.0, "mlp_ratio_y": 4.0,
    "learn_sigma": False, "in_channels": 12, "qk_norm": True, "qkv_bias": False, "out_bias": True,
    "patch_embed_bias": True, "posenc_preserve_area": True, "timestep_mlp_bias": True, "timestep_scale": 1000.0,
    "use_t5": True, "t5_feat_dim": 32, "t5_token_length": 7, "rope_theta": 10000.0,
}  # fmt: skip
KANDINSKY = {
    "model_dim": 64, "ff_dim": 64, "time_dim": 32, "in_text_dim": 32, "in_text_dim2": 32, "num_text_blocks": 1,
    "num_visual_blocks": 1, "axes_dims": (16, 24, 24), "visual_embed_dim": 132,
}  # fmt: skip
COGVIDEO = {
    "num_attention_heads": 1, "time_embed_dim": 32, "text_embed_dim": 32, "num_layers": 1,
    "use_rotary_positional_embeddings": True, "max_text_seq_length": 7,
}  # fmt: skip
SEEDVR = {
    "vid_dim": 128, "heads": 1, "num_layers": 2, "norm_eps": 1e-5, "mlp_type": "swiglu", "vid_out_norm": True,
    "mm_layers": 1, "expand_ratio": 1,
}  # fmt: skip


def clip(family):
    """Return the same family with a clip of a few frames in place of a picture."""
    channels, _, height, width = family.latent
    return replace(family, name=f"{family.name}, {CLIP_FRAMES} frames", latent=(channels, CLIP_FRAMES, height, width))


def hunyuan(name, model, sizes=(), **row):
    """Return a family of Hunyuan Video's kin, `sizes` beside its own."""
    usual = {"latent": PICTURE, "last": FINAL, "pooled": 32, "newer": ("meanflow_sum",)}
    return Family(name, model, {**HUNYUAN, **dict(sizes)}, **{**usual, **row})


def degraded(frames):
    """Return the extras of SeedVR2, which restores a clip of so many frames."""
    return lambda random: {"condition": random(1, 17, frames, 8, 8)}


HUNYUAN_VIDEO = hunyuan("Hunyuan Video", "HunyuanVideo")
WAN_21 = Family("Wan 2.1", "WAN21_T2V", WAN, PICTURE, HEAD)
WAN_22 = Family("Wan 2.2, 5B", "WAN22_T2V", WAN_5B, (48, 1, 8, 8), HEAD)
LTX_VIDEO = Family("LTX-Video", "LTXV", LTX, (128, 1, 4, 4), "proj_out", extras=mask_of_the_prompt)
COSMOS_1 = Family("Cosmos 1", "CosmosT2V", {**COSMOS, "in_channels": 16}, PICTURE, FINAL)
MOCHI_1 = Family("Mochi", "GenmoMochi", MOCHI, (12, 1, 8, 8), FINAL, extras=mask_of_the_prompt)
KANDINSKY_5 = Family("Kandinsky 5 video", "Kandinsky5", KANDINSKY, PICTURE, "out_layer.out_layer", pooled=32)
COGVIDEO_X = Family("CogVideoX", "CogVideoX_T2V", COGVIDEO, PICTURE, "proj_out", note=COARSE)
SEED_VR = Family("SeedVR2", "SeedVR2", SEEDVR, PICTURE, "vid_out.proj", prompt=(7, 5120), extras=degraded(1))

FAMILIES = [
    Family("Qwen-Image", "QwenImage", QWEN, PICTURE, "proj_out"),
    Family("Qwen-Image Edit", "QwenImage", QWEN, PICTURE, "proj_out",
           extras=lambda random: {"reference_latents": [random(1, *PICTURE)]}),
    Family("Krea 2", "Krea2", KREA, PICTURE, "last.linear", prompt=(7, 64)),
    Family("JoyImage", "JoyImage", JOY, PICTURE, "proj_out"),
    Family("Anima", "Anima", {**PREDICT, "crossattn_emb_channels": 1024}, PICTURE, FINAL, prompt=(7, 1024)),
    Family("Cosmos Predict 2, pictures", "CosmosT2IPredict2", PREDICT, PICTURE, FINAL),
    hunyuan("Hunyuan Image 2.1 refiner", "HunyuanImage21Refiner", REFINER, latent=(64, 1, 4, 4), decoded=32,
            pooled=None),
    HUNYUAN_VIDEO, clip(HUNYUAN_VIDEO),
    hunyuan("Hunyuan Video I2V", "HunyuanVideoI2V", {"in_channels": 33}),
    hunyuan("SkyReels I2V", "HunyuanVideoSkyreelsI2V", {"in_channels": 32}),
    hunyuan("Hunyuan Video 1.5", "HunyuanVideo15", HUNYUAN_15, latent=(32, 1, 4, 4)),
    hunyuan("Hunyuan Video 1.5 SR", "HunyuanVideo15_SR_Distilled", {**HUNYUAN_15, "in_channels": 98},
            latent=(32, 1, 4, 4)),
    WAN_21, clip(WAN_21), WAN_22, clip(WAN_22),
    Family("Wan 2.1 I2V", "WAN21_I2V", {**WAN, "in_dim": 36}, PICTURE, HEAD),
    Family("Wan 2.1 Fun Control", "WAN21_FunControl2V", {**WAN, "in_dim": 48}, PICTURE, HEAD),
    Family("Wan 2.1 VACE", "WAN21_Vace", {**WAN, "vace_layers": 1, "vace_in_dim": 96}, PICTURE, HEAD),
    Family("Wan 2.1 Fun Camera", "WAN21_Camera", {**WAN, "in_dim": 32}, PICTURE, HEAD),
    Family("Wan 2.2 Fun Camera", "WAN22_Camera", {**WAN, "in_dim": 36}, PICTURE, HEAD),
    Family("Wan 2.2 S2V", "WAN22_S2V", {**WAN, "audio_inject_layers": [0], "audio_dim": 32}, PICTURE, HEAD),
    Family("HuMo", "WAN21_HuMo", {**WAN, "in_dim": 36}, PICTURE, HEAD),
    Family("Wan 2.2 Animate", "WAN22_Animate", ANIMATE, PICTURE, HEAD),
    Family("Wan Animate 2", "WAN_Animate2", {**WAN, "in_dim": 36}, PICTURE, HEAD),
    Family("Wan 2.1, causal", "WAN21_CausalAR_T2V", WAN, PICTURE, HEAD),
    Family("FlowRVS", "WAN21_FlowRVS", WAN, PICTURE, HEAD),
    Family("SCAIL", "WAN21_SCAIL", {**WAN, "in_dim": 20}, PICTURE, HEAD),
    Family("SCAIL 2", "WAN21_SCAIL2", {**WAN, "in_dim": 20}, PICTURE, HEAD),
    Family("WanDancer", "WAN22_WanDancer", {**WAN, "in_dim": 36, "audio_inject_layers": [0]}, PICTURE, HEAD),
    LTX_VIDEO, clip(LTX_VIDEO), COSMOS_1, clip(COSMOS_1),
    Family("Cosmos 1 I2V", "CosmosI2V", {**COSMOS, "in_channels": 17}, PICTURE, FINAL),
    Family("Cosmos Predict 2 I2V", "CosmosI2VPredict2", {**PREDICT, "in_channels": 17}, PICTURE, FINAL),
    MOCHI_1, clip(MOCHI_1), KANDINSKY_5, clip(KANDINSKY_5), COGVIDEO_X, clip(COGVIDEO_X),
    Family("CogVideoX I2V", "CogVideoX_I2V", {**COGVIDEO, "in_channels": 32}, PICTURE, "proj_out",
           note=COARSE),
    Family("CogVideoX inpainting", "CogVideoX_Inpaint", {**COGVIDEO, "in_channels": 48}, PICTURE, "proj_out",
           note=COARSE),
    SEED_VR, replace(clip(SEED_VR), extras=degraded(CLIP_FRAMES)),
]  # fmt: skip
