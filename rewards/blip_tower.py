"""The tower of ImageReward and CycleReward: a BLIP that reads the prompt while it sees the picture.

    pixels --ViT-L/16--> patches (B, 197, 1024) ---.
                                                    v  cross-attention
    prompt --WordPiece--> ids (B, 35) ----------> BERT-base --[CLS]--> head --> (B,)

The networks are transformers' own, the weights the authors' files. The head runs in float32 whatever the dtype.
"""

import logging
import re
from math import isqrt
from pathlib import Path

import torch
from torch import nn

from . import weights
from .networks import CUT, Tower, build, graph_bytes, layers, run, slices
from .preprocess import Preprocess

log = logging.getLogger(__name__)

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


class BlipTower(Tower):
    """The network of ImageReward or CycleReward, and the tokenizer of its prompts.

    Example:
        >>> tower = rewards.load_tower("ImageReward.pt")  # and vocab.txt beside it
        >>> type(tower).__name__
        'BlipTower'

    Attributes: Tower's, and
        max_tokens: what is read of a prompt, [CLS] and [SEP] included.
    """

    def __init__(self, state, vocabulary, name="ImageReward", device="cpu", dtype=torch.float32):
        """Build the network.

        Args:
            state: weights as `weights.read` gives them, of ImageReward.pt, a port of it, or CycleReward's.
            vocabulary: path of bert-base-uncased's vocab.txt.
            name, device, dtype: see the attributes and `load_tower`.

        Raises:
            FileNotFoundError: no vocabulary.
            ValueError: the weights are another model's or incomplete, or it is another vocabulary.
        """
        weights.check_kind(state, name, "ImageReward")
        super().__init__(name, "CycleReward" if "mlp.layers.8.weight" in state else "ImageReward")
        self.max_tokens, self._tokens = 128 if self.kind == "CycleReward" else 35, {}
        state = {_renamed(key): weight for key, weight in state.items() if not key.startswith(UNUSED)}
        # Outside inference mode: weights made inside it could take part in no gradient.
        with torch.inference_mode(False):
            self.module = build(_network, state, self.kind, name, device, dtype, wide=("head.",))
        self.image_size = self.module.vision.config.image_size
        words = self.module.text.config.vocab_size - 2  # the last two are BLIP's own [DEC] and [ENC]
        self._tokenizer = _tokenizer(vocabulary, words)

    def judge(self, images, texts, parity=False):
        """Return what the head says, (B,), differentiable, float32 or wider, on the module's device.

        Args:
            images: (B, 3, H, W), nominally [0, 1].
            texts: list of B strings.
            parity: see `Preprocess`.
        """
        preprocess = Preprocess(self.image_size, "laion")
        return torch.cat([self._judge(preprocess(images[rows], parity), texts[rows]) for rows in slices(images)])

    def _judge(self, pixels, texts):
        network = self.module
        with self.running(graph_bytes(network.vision, pixels)) as device:
            dtype = network.vision.post_layernorm.weight.dtype
            ids, mask = (torch.stack(rows).to(device) for rows in zip(*map(self._tokenized, texts), strict=True))
            token = run(lambda x: network(x.to(device, dtype), ids, mask), pixels, dtype)
            return network.head(token.to(network.head[0].weight.dtype)).squeeze(-1)

    def _tokenized(self, text):
        """Return ids and attention mask of a text, (max_tokens,) each: [CLS] text [SEP] [PAD] .."""
        if text not in self._tokens:
            found = self._tokenizer(text, padding="max_length", truncation=True, max_length=self.max_tokens)
            self._tokens[text] = tuple(
                torch.tensor(found[key], device="cpu") for key in ("input_ids", "attention_mask")
            )
            self._say_if_cut(text, found["input_ids"])
        return self._tokens[text]

    def _say_if_cut(self, text, ids):
        room, length = self.max_tokens - 2, len(self._tokenizer.tokenize(text))
        if length > room:
            log.warning(CUT, self.name, room, length, self._tokenizer.decode(ids, skip_special_tokens=True))


def find_vocabulary(folders):
    """Return the path of bert-base-uncased's vocabulary in the first folder that has it.

    Raises:
        FileNotFoundError: no folder has it.
    """
    folders = dict.fromkeys(map(str, folders))
    for candidate in (Path(folder) / name for folder in folders for name in VOCABULARY_NAMES):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        "ImageReward and CycleReward read prompts with bert-base-uncased's vocabulary: expected"
        f" {' or '.join(VOCABULARY_NAMES)} in {' or '.join(folders)}. Take vocab.txt (232 kB)"
        " from google-bert/bert-base-uncased on huggingface.co and put it there"
    )


class _Network(nn.Module):
    """Pixels and tokens to the text's first token, (B, 768); `head` makes the score of it."""

    def __init__(self, vision, text, head):
        super().__init__()
        self.vision, self.text, self.head = vision, text, head

    def forward(self, pixels, ids, mask):
        patches = self.vision(pixels).last_hidden_state
        tokens = self.text(ids, attention_mask=mask, encoder_hidden_states=patches, is_decoder=False)
        return tokens.last_hidden_state[:, 0]


def _renamed(name):
    for old, new in RENAMED:
        name = name.replace(old, new)
    return name


def _network(state):
    """Return a network of the sizes that a renamed state dict has."""
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    width, patch = (state["vision.embeddings.patch_embedding.weight"].shape[axis] for axis in (0, -1))
    positions = state["vision.embeddings.position_embedding"].shape[1]
    vision = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(state["vision.encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=layers(state, "vision.encoder.layers."),
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
        num_hidden_layers=layers(state, "text.encoder.layer."),
        num_attention_heads=text_width // HEAD_WIDTH,
        layer_norm_eps=1e-12,
        is_decoder=True,  # what gives it cross-attention; its attention to the text stays bidirectional
    )
    return _Network(BlipVisionModel(vision), BlipTextModel(text, add_pooling_layer=False), _head(state))


def _head(state):
    """Return the linear layers at the places they have in the file; between them GELU if it is CycleReward's.

    ImageReward's has nothing there but the dropout of its training, and not even that before the last layer.
    """
    linear = {int(key.split(".")[1]): state[key].shape for key in state if re.fullmatch(r"head\.\d+\.weight", key)}
    between = nn.GELU if 8 in linear else nn.Identity
    if linear[max(linear)][0] != 1:
        raise KeyError("the last layer of mlp, whose output is the score")
    return nn.Sequential(*(nn.Linear(*linear[i][::-1]) if i in linear else between() for i in range(max(linear) + 1)))


def _tokenizer(path, words):
    """Return bert-base-uncased's tokenizer with a vocabulary of so many words."""
    from transformers import BertTokenizer

    if not Path(path).is_file():
        raise FileNotFoundError(f"no vocabulary at {path}; expected bert-base-uncased's vocab.txt")
    try:
        # Positional: transformers 5 silently ignores the keyword of transformers 4, vocab_file.
        tokenizer = BertTokenizer(str(path))
    except Exception as error:  # the tokenizers library raises bare ones
        raise ValueError(f"{path} is no vocabulary ({error}); expected bert-base-uncased's vocab.txt") from error
    if len(tokenizer) != words or tokenizer.cls_token_id != 101:
        raise ValueError(
            f"the vocabulary {path} has {len(tokenizer)} words with [CLS] at {tokenizer.cls_token_id}; expected"
            f" {words} with [CLS] at 101. Take vocab.txt from google-bert/bert-base-uncased on huggingface.co"
        )
    return tokenizer
