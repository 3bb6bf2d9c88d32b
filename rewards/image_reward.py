"""ImageReward (Xu et al. 2023) and CycleReward (Bahng et al. 2025): a BLIP reads the prompt while it sees the picture.

    pixels --ViT-L/16--> patches (B, 197, 1024) ---.
                                                    v  cross-attention
    prompt --WordPiece--> ids (B, 35) ----------> BERT-base --[CLS]--> head --> score (B,)

    ImageReward    (head - mean) / std, of mean 0 and standard deviation 1 on its authors' pictures    -2 to 2
    CycleReward    head, with GELUs between its layers

The networks are transformers' BLIP, the weights the authors' files. In bfloat16 the gradient by the pixels is off that
of float32 by 2 to 4 % of its norm, and the score by 0.001 (measured at full size with random weights).
"""

import re
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch
from torch import nn

from . import weights
from .clip import texts_for
from .preprocess import Preprocess
from .towers import graph_bytes, scale_gradient

HEAD_WIDTH = 64
"""Width of one attention head in both towers; the file does not tell."""

VOCABULARY_NAMES = ("bert-base-uncased-vocab.txt", "bert-base-uncased/vocab.txt", "vocab.txt")

UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
"""In the file for BLIP's own training; no score depends on them."""

RENAMED = (
    ("blip.visual_encoder.", "vision."),
    ("vision.norm.", "vision.post_layernorm."),
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj.", "embeddings.patch_embedding."),
    ("vision.blocks.", "vision.encoder.layers."),
    (".norm", ".layer_norm"),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
    ("blip.text_encoder.", "text."),
    ("mlp.layers.", "head."),
)
"""From the file's names to those of `_Network`, in this order."""


@dataclass(frozen=True, eq=False)
class ImageReward:
    """How well a picture shows its prompt and how good it looks, as people judged.

    Attributes:
        tower: a BlipTower of ImageReward's file.
        prompt: for every picture; None takes the prompts the sample map hands over.
        parity: compute what the authors' code does from 8-bit pixels, for reporting; see `Preprocess`.
    """

    tower: "BlipTower"
    prompt: str | None = None
    parity: bool = False
    name = "ImageReward"
    differentiable = True
    mean, std = 0.16717362830052426, 1.0333394966054072

    def __post_init__(self):
        if self.tower.kind != self.name:
            raise ValueError(
                f"{self.tower.name} is a file of {self.tower.kind}; expected {self.name}'s, whose network is the same"
                " but for the head"
            )

    @property
    def module(self):
        """The network, for whoever moves it between devices."""
        return self.tower.module

    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), nominally [0, 1]; prompts of length B unless one was set."""
        texts = texts_for(self, images, prompts)
        pixels = Preprocess(self.tower.image_size, "laion")(images, self.parity)
        return ((self.tower.judge(pixels, texts) - self.mean) / self.std).to(images.device)


class CycleReward(ImageReward):
    """How well picture and prompt can each be had back from the other. Attributes: ImageReward's."""

    name = "CycleReward"
    mean, std = 0.0, 1.0


class BlipTower:
    """The network of ImageReward or CycleReward, and the tokenizer of its prompts.

    Attributes:
        name: of its file, for messages.
        kind: "ImageReward" or "CycleReward"; the head tells.
        module: the network; it may be moved to another device from outside.
        on_use: called with the bytes that the run will take before the network runs, if set: the place to load
            `module` to a device.
        image_size: side of the pixels that it takes.
        max_tokens: what is read of a prompt, [CLS] and [SEP] included.
    """

    def __init__(self, path, vocabulary=None, device="cpu", dtype=torch.float32):
        """Build the network from a file.

        Args:
            path: ImageReward.pt, a safetensors port of it, or CycleReward's.
            vocabulary: bert-base-uncased's vocab.txt; None looks for it beside the weights.
            device: where the network is put at first.
            dtype: of the network but for its head; what goes in and out is float32 or wider.

        Raises:
            FileNotFoundError: no file, or no vocabulary.
            ValueError: another file, or another vocabulary.
        """
        path = Path(path)
        state = weights.read_as(path, "ImageReward")
        self.name, self.on_use, self._tokens = path.name, None, {}
        self.kind = "CycleReward" if "mlp.layers.8.weight" in state else "ImageReward"
        self.max_tokens = 128 if self.kind == "CycleReward" else 35
        # Outside inference mode: weights made inside it could take part in no gradient.
        with torch.inference_mode(False):
            self.module = _load(state, path.name, device, dtype)
        self.image_size = self.module.vision.config.image_size
        words = self.module.text.config.vocab_size - 2  # the last two are BLIP's own [DEC] and [ENC]
        self._tokenizer = _tokenizer(vocabulary or find_vocabulary([path.parent]), words)

    def judge(self, pixels, texts):
        """Return what the head says, (B,), differentiable, float32 or wider, on the module's device.

        Args:
            pixels: (B, 3, image_size, image_size), normalised.
            texts: list of B strings.
        """
        if self.on_use is not None:
            self.on_use(graph_bytes(self.module.vision, pixels))
        device = self.module.head[0].weight.device
        ids, mask = (torch.stack(rows).to(device) for rows in zip(*map(self._tokenized, texts), strict=True))
        return self.module(pixels.to(device), ids, mask)

    def _tokenized(self, text):
        """Return ids and attention mask of a text, (max_tokens,) each: [CLS] text [SEP] [PAD] .."""
        if text not in self._tokens:
            found = self._tokenizer(text, padding="max_length", truncation=True, max_length=self.max_tokens)
            self._tokens[text] = torch.tensor(found["input_ids"]), torch.tensor(found["attention_mask"])
        return self._tokens[text]


def find_vocabulary(folders):
    """Return the path of bert-base-uncased's vocabulary in the first folder that has it.

    Raises:
        FileNotFoundError: no folder has it.
    """
    for candidate in (Path(folder) / name for folder in folders for name in VOCABULARY_NAMES):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"ImageReward reads prompts with bert-base-uncased's vocabulary: expected {' or '.join(VOCABULARY_NAMES)} in"
        f" {' or '.join(map(str, folders))}. Take vocab.txt (232 kB) from google-bert/bert-base-uncased on"
        " huggingface.co and put it there"
    )


class _Network(nn.Module):
    """Pixels and tokens to what the head says."""

    def __init__(self, vision, text, head):
        super().__init__()
        self.vision, self.text, self.head = vision, text, head

    def forward(self, pixels, ids, mask):
        pixels = pixels.view_as(pixels)  # a tensor of our own, whose hook is not left on the caller's
        patches = self.vision(pixels).last_hidden_state
        tokens = self.text(ids, attention_mask=mask, encoder_hidden_states=patches, is_decoder=False).last_hidden_state
        judged = tokens[:, 0].to(self.head[0].weight.dtype)
        scale_gradient(pixels, judged)
        return self.head(judged).squeeze(-1)


def _load(state, name, device, dtype):
    """Return the network with the weights themselves for parameters where neither device nor dtype changes."""
    state = {_renamed(key): weight for key, weight in state.items() if not key.startswith(UNUSED)}
    try:
        with torch.device("meta"):
            network = _build(state)
        network.load_state_dict(state, assign=True)
    except (KeyError, RuntimeError) as error:
        found = " ".join(str(error).split())[:300]
        raise ValueError(f"{name} is not the whole of an ImageReward ({found}). Download it again") from error
    # Not in the file, so it is still on the meta device.
    text = network.text.embeddings
    text.position_ids = torch.arange(text.position_embeddings.num_embeddings)[None]
    network.vision.to(device, dtype)
    network.text.to(device, dtype)
    network.head.to(device, torch.promote_types(dtype, torch.float32))
    return network.eval().requires_grad_(False)


def _renamed(name):
    for old, new in RENAMED:
        name = name.replace(old, new)
    return name


def _build(state):
    """Return a network of the sizes that a renamed state dict has."""
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    width, patch = (state["vision.embeddings.patch_embedding.weight"].shape[axis] for axis in (0, -1))
    positions = state["vision.embeddings.position_embedding"].shape[1]
    vision = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(state["vision.encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=_layers(state, "vision.encoder.layers."),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=isqrt(positions - 1) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
        hidden_act="gelu",
    )
    words, text_width = state["text.embeddings.word_embeddings.weight"].shape
    text = BlipTextConfig(
        vocab_size=words,
        hidden_size=text_width,
        encoder_hidden_size=width,
        intermediate_size=len(state["text.encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=_layers(state, "text.encoder.layer."),
        num_attention_heads=text_width // HEAD_WIDTH,
        layer_norm_eps=1e-12,
        is_decoder=True,  # what gives it cross-attention; its attention to the text stays bidirectional
    )
    return _Network(BlipVisionModel(vision), BlipTextModel(text, add_pooling_layer=False), _head(state))


def _layers(state, prefix):
    return 1 + max(int(name[len(prefix) :].split(".")[0]) for name in state if name.startswith(prefix))


def _head(state):
    """Return the linear layers at the places they have in the file; between them GELU if it is CycleReward's.

    ImageReward's has nothing there but the dropout of its training, and not even that before the last layer.
    """
    linear = {int(key.split(".")[1]): state[key].shape for key in state if re.fullmatch(r"head\.\d+\.weight", key)}
    between = nn.GELU if 8 in linear else nn.Identity
    return nn.Sequential(*(nn.Linear(*linear[i][::-1]) if i in linear else between() for i in range(max(linear) + 1)))


def _tokenizer(path, words):
    """Return bert-base-uncased's tokenizer with a vocabulary of so many words."""
    from transformers import BertTokenizer

    if not Path(path).is_file():
        raise FileNotFoundError(f"no vocabulary at {path}; expected bert-base-uncased's vocab.txt")
    # Positional: transformers 5 silently ignores the keyword of transformers 4, vocab_file.
    tokenizer = BertTokenizer(str(path))
    if len(tokenizer) != words or tokenizer.cls_token_id != 101:
        raise ValueError(
            f"the vocabulary {path} has {len(tokenizer)} words with [CLS] at {tokenizer.cls_token_id}; expected"
            f" {words} with [CLS] at 101. Take vocab.txt from google-bert/bert-base-uncased on huggingface.co"
        )
    return tokenizer
