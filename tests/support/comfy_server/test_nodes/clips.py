"""A model that takes the pictures of a batch for the frames of one clip."""

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

from .models import CONTEXT, UNET, fill


class DNOTestClipModel:
    """A tiny random Stable Video Diffusion."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": ("INT", {"default": 0})}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"
    CATEGORY = "tests"

    def load(self, seed):
        own = {"in_channels": 8, "adm_in_channels": 768, "num_classes": "sequential", "context_dim": CONTEXT}
        temporal = {
            "use_temporal_attention": True, "use_temporal_resblock": True, "use_linear_in_transformer": True,
            "extra_ff_mix_layer": True, "use_spatial_context": True, "merge_strategy": "learned_with_images",
            "merge_factor": 0.0, "video_kernel_size": [3, 1, 1], "disable_temporal_crossattention": False,
        }  # fmt: skip
        config = comfy.supported_models.SVD_img2vid({**UNET, **own, **temporal})
        config.unet_config["num_head_channels"] = 16  # the class asks for 64, more than there are channels
        config.set_inference_dtype(torch.float32, None)
        model = comfy.model_base.SVD_img2vid(config)
        fill(model.diffusion_model, seed)
        model.diffusion_model.out[-1].weight.data.mul_(0.1)
        load, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
        patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        return (patcher(model, load_device=load, offload_device=offload),)


NODES = (DNOTestClipModel,)
