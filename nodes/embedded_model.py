"""The small model that ships with the pack, in ComfyUI's own classes, and the node that loads it.

The same weights as `core.models.embedded.networks` builds in diffusers'.
"""

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch
from comfy_api.latest import io

from ..core.models.embedded import configs, vocabulary
from ..core.models.embedded.weights import part
from . import page, sockets


class DNOLoadEmbeddedModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOLoadEmbeddedModel",
            display_name="DNO Load Embedded Model",
            category=sockets.CATEGORY,
            description=(
                "A small model that ships with the pack: 128 x 128 pictures of one animal in one colour, such as"
                " 'black cat'. A sampling run takes about a second on a CPU; cfg 3 suits it."
            ),
            inputs=[],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="The denoising network, a small SD1.5."),
                io.Clip.Output("clip", display_name="clip", tooltip="The text encoder: '<colour> <animal>'."),
                io.Vae.Output("vae", display_name="vae", tooltip="The autoencoder, 8 pixels a latent entry."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(load_model(), load_clip(), load_vae())


def _unet_config():
    """Return the U-Net's sizes in the words of ComfyUI's UNetModel, from those of diffusers."""
    widths, layers = configs.UNET["block_out_channels"], configs.UNET["layers_per_block"]
    depths = ["CrossAttn" in block for block in configs.UNET["down_block_types"]]
    return {
        "image_size": 32,
        "in_channels": configs.UNET["in_channels"],
        "out_channels": configs.UNET["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": [layers] * len(widths),
        "transformer_depth": [int(d) for d in depths for _ in range(layers)],
        "transformer_depth_output": [int(d) for d in depths for _ in range(layers + 1)],
        "transformer_depth_middle": 1,
        "context_dim": configs.UNET["cross_attention_dim"],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "use_temporal_attention": False,
        "use_checkpoint": False,
        "legacy": False,
        "adm_in_channels": None,
        "dtype": torch.float32,
    }


def load_model():
    """Return the U-Net as a ModelPatcher: ComfyUI's SD15, v-prediction, float32."""
    config = comfy.supported_models.SD15(_unet_config())
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(config, model_type=comfy.model_base.ModelType.V_PREDICTION)
    # CoreModelPatcher: ComfyUI 0.33 and later, where it may stream weights and then takes them by assignment.
    patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    patcher = patcher_class(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    stored = part("unet")
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    state = {names[key]: value for key, value in stored.items()}
    if getattr(patcher, "is_dynamic", bool)():
        model.load_model_weights(state, "", assign=True)
    else:
        model.load_model_weights(state, "")
    return patcher


def load_vae():
    """Return the autoencoder as a comfy.sd.VAE, float32; the stock SD1.5 latent format applies."""
    widths = configs.VAE["block_out_channels"]
    sizes = {
        "double_z": True,
        "z_channels": configs.LATENT_CHANNELS,
        "resolution": configs.IMAGE_SIZE,
        "in_channels": 3,
        "out_ch": 3,
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": configs.VAE["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    config = {"params": {"ddconfig": sizes, "embed_dim": configs.LATENT_CHANNELS}}
    return comfy.sd.VAE(sd=part("vae"), config=config, dtype=torch.float32)


class _Words:
    """What SDTokenizer asks of a transformers tokenizer, from the model's own table; unknown words are told."""

    @classmethod
    def from_pretrained(cls, path, **settings):
        return cls()

    def __call__(self, text):
        page.show_unknown_words(text)
        known = [vocabulary.TOKEN_IDS[word] for word in vocabulary.known_words(text)]
        return {"input_ids": [vocabulary.BOS, *known, vocabulary.EOS]}

    def get_vocab(self):
        return vocabulary.TOKEN_IDS | {"<|startoftext|>": vocabulary.BOS, "<|endoftext|>": vocabulary.EOS}


class _WordTokenizer(comfy.sd1_clip.SDTokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(
            embedding_directory=embedding_directory,
            embedding_size=configs.TEXT["hidden_size"],
            tokenizer_class=_Words,
            tokenizer_data=tokenizer_data or {},
        )


class _Tokenizer(comfy.sd1_clip.SD1Tokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=_WordTokenizer)


class _SmallClip(comfy.sd1_clip.SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config=dict(configs.TEXT),
            return_projected_pooled=False,
            model_options=model_options or {},
        )


class _TextEncoder(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device=device, dtype=dtype, model_options=model_options or {}, clip_model=_SmallClip)


def load_clip():
    """Return the text encoder as a comfy.sd.CLIP for the stock CLIP Text Encode node; (black:1.2) works."""
    target = comfy.supported_models_base.ClipTarget(_Tokenizer, _TextEncoder)
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32})
    # Stable Diffusion 1 does not use the pooled output that this projection makes.
    state = part("text") | {"text_projection.weight": torch.eye(configs.TEXT["hidden_size"])}
    clip.load_sd(state)
    return clip
