"""UNets: Stable Diffusion 1 and 2, SDXL, their kin, and Stable Cascade."""

from .family import COARSE, Family

SIZES = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "num_res_blocks": [1, 1],
    "channel_mult": [1, 1], "transformer_depth": [1, 1], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1], "context_dim": 32, "use_spatial_transformer": True, "legacy": False,
    "adm_in_channels": None,
}  # fmt: skip
LATENT = (4, 8, 8)
LAST = "out.2"


def unet(name, model, changes=(), **row):
    """Return a family of the tiny UNet, `changes` beside its sizes."""
    return Family(name, model, {**SIZES, **dict(changes)}, **{"latent": LATENT, "last": LAST, **row})


def labelled(width, **sizes):
    """Return the sizes of a UNet that takes a vector of this width beside the prompt."""
    return {"num_classes": "sequential", "adm_in_channels": width, **sizes}


def sdxl(name, model="SDXL", width=2816, weights=(), note="", **sizes):
    """Return a family of the tiny SDXL; `weights` are names in a checkpoint that say what it predicts."""
    return unet(
        name, model, labelled(width, **sizes), pooled=1280, weights=lambda random: {key: random(1) for key in weights},
        note=note,
    )  # fmt: skip


def video(name, model, width):
    """Return a UNet of clips, whose frames are a batch."""
    sizes = {
        "in_channels": 8, "use_temporal_attention": True, "use_temporal_resblock": True, "extra_ff_mix_layer": True,
        "use_spatial_context": True, "merge_strategy": "learned_with_images", "merge_factor": 0.0,
        "video_kernel_size": [3, 1, 1], "disable_temporal_crossattention": False,
    }  # fmt: skip
    return unet(name, model, labelled(width, **sizes), prompt=(1, 32))


def predicts_v(random):
    """Return the entry by which ComfyUI tells Stable Diffusion 2's v models: a norm's bias that varies."""
    return {"output_blocks.11.1.transformer_blocks.0.norm1.bias": random(64)}


def projection_of_views(random):
    """Return Zero123's layer from a picture's embedding and the camera's angles to a prompt's."""
    return {"cc_projection.weight": random(32, 36), "cc_projection.bias": random(32)}


def cosxl(random):
    """Return the noise levels by which ComfyUI tells CosXL."""
    return {"edm_vpred.sigma_max": 120 + random(1).abs(), "edm_vpred.sigma_min": 0.002 + 0 * random(1)}


CASCADE = {
    "c_cond": 64, "c_hidden": [64, 64], "nhead": [1, 1], "blocks": [[1, 1], [1, 1]], "c_clip_text": 32,
    "c_clip_text_pooled": 32,
}  # fmt: skip
CASCADE_B = {
    "c_cond": 64, "c_hidden": [32, 64, 64, 64], "nhead": [-1, -1, 1, 1], "blocks": [[1, 1, 1, 1], [1, 1, 1, 1]],
    "block_repeat": [[1, 1, 1, 1], [1, 1, 1, 1]], "c_clip": 32,
}  # fmt: skip

FAMILIES = [
    unet("Stable Diffusion 1.5", "SD15"),
    unet("Stable Diffusion 1.5 inpainting", "SD15", {"in_channels": 9}),
    unet("InstructPix2Pix", "SD15_instructpix2pix", {"in_channels": 8}),
    unet("Stable Diffusion 2", "SD20"),
    unet("Stable Diffusion 2, v", "SD20", weights=predicts_v),
    unet("unCLIP L", "SD21UnclipL", labelled(1536)),
    unet("unCLIP H", "SD21UnclipH", labelled(2048)),
    unet("Stable Diffusion x4 upscaler", "SD_X4Upscaler",
         {"in_channels": 7, "num_classes": 1000, "disable_self_attentions": [True, False]}),
    unet("Lotus D", "LotusD", labelled(4, num_heads=-1, num_head_channels=64)),
    # ComfyUI takes a prompt that is 768 wide as projected already.
    unet("Stable Zero123", "Stable_Zero123", {"in_channels": 8, "context_dim": 768}, prompt=(1, 768),
         weights=projection_of_views),
    sdxl("SDXL"),
    sdxl("SDXL inpainting", in_channels=9),
    sdxl("SDXL, v with zero terminal SNR", weights=("v_pred", "ztsnr"), note=COARSE),
    sdxl("SDXL Playground 2.5", weights=("edm_mean", "edm_std")),
    unet("CosXL", "SDXL", labelled(2816), pooled=1280, weights=cosxl),
    sdxl("SDXL InstructPix2Pix", "SDXL_instructpix2pix", in_channels=8),
    sdxl("SDXL refiner", "SDXLRefiner", width=2560),
    sdxl("SSD-1B", "SSD1B"),
    sdxl("Segmind Vega", "Segmind_Vega"),
    sdxl("KOALA 700M", "KOALA_700M"),
    sdxl("KOALA 1B", "KOALA_1B"),
    Family("Stable Cascade C", "Stable_Cascade_C", CASCADE, (16, 8, 8), "clf.1", pooled=32),
    Family("Stable Cascade B", "Stable_Cascade_B", CASCADE_B, (4, 16, 16), "clf.1", pooled=32),
    video("Stable Video Diffusion", "SVD_img2vid", 768),
    video("SV3D u", "SV3D_u", 256),
    video("SV3D p", "SV3D_p", 1280),
]  # fmt: skip
