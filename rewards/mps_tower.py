"""The tower of MPS, the Multi-dimensional Preference Score (Zhang et al. 2024): a CLIP whose patches read the prompt.

    prompt    --text tower--> tokens (77, width), and an embedding of the whole (width,)
    condition --text tower--> tokens (77, width): of words for what people look at
    pixels   --image tower--> patches (B, 257, width) --Reader--> (B, width)
                                                          ^ the prompt's tokens that are near to the condition's

The score is exp(logit_scale) times the cosine between what comes out and the prompt's embedding. The towers are
transformers' own; the reader is written by the shapes of the weights in imscore's port (MIT) and gives what that gives.

    Reader    layers of  x + Attend(x, tokens)  and then  x + Mix(x); its first patch, the class token's, comes out
    Attend    each patch asks the tokens, and has an MLP beside that
    Mix       each patch asks all patches, turned by their positions (Su et al. 2021), and has an MLP beside that

Of keys and values there is one head, for all heads of queries.
"""

from math import exp

import torch
from torch import nn
from torch.nn import functional as F

from ..core.precision import wide
from . import weights
from .clip_tower import ClipTower
from .networks import build, graph_bytes, layers, run, slices
from .preprocess import Preprocess

CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance,"
    " texture, quantity, attributes, position, number, location, word, things."
)
"""What the authors give the weights that judge overall, the only ones there are."""

NEAR = 0.01
"""A token counts whose largest product with a token of the condition is more than this part of the largest of all."""

_CLIP, _READER = "mps.model.", "mps.cross_model."
_CONSTANTS = (".norm.bias", ".rotary_emb.inv_freq")
"""In the file though they are not learned: zeros, and the frequencies that `turned` makes itself."""


class MpsTower(ClipTower):
    """The networks of MPS.

    Example:
        >>> tower = rewards.load_tower("MPS.safetensors")
        >>> type(tower).__name__, tower.kind
        ('MpsTower', 'MPS')

    Attributes: ClipTower's, whose own embeddings are not those that MPS compares.
    """

    def __init__(self, state, name="MPS", device="cpu", dtype=torch.float32):
        """Build the networks.

        Args:
            state: weights as `weights.read` gives them, of imscore's port.
            name, device, dtype: see the attributes and `load_tower`.

        Raises:
            ValueError: the weights are another model's or incomplete.
        """
        weights.check_kind(state, name, "MPS")
        super().__init__(_part(state, _CLIP), name, device, dtype)
        self.kind, self._read_texts = "MPS", {}
        reader = {key: value for key, value in _part(state, _READER).items() if not key.endswith(_CONSTANTS)}
        reader = {key.replace(".fn.", "."): value for key, value in reader.items()}
        with torch.inference_mode(False):
            self.module["reader"] = build(_reader, reader, self.kind, name, device, dtype)

    def judge(self, images, texts, parity=False):
        """Return scores (B,), differentiable, float32 or wider, on the module's device.

        Args:
            images: (B, 3, H, W), nominally [0, 1].
            texts: list of B strings.
            parity: see `Preprocess`.
        """
        preprocess = Preprocess(self.image_size, "clip")
        return torch.cat([self._judge(preprocess(images[rows], parity), texts[rows]) for rows in slices(images)])

    def _judge(self, pixels, texts):
        tokens, near, embeds = (torch.stack(parts) for parts in zip(*map(self._read, texts), strict=True))
        image, reader = self.module["image"], self.module["reader"]
        depth = image.config.num_hidden_layers
        with self.running(graph_bytes(image, pixels) * (depth + len(reader.layers)) // depth) as device:
            dtype = image.visual_projection.weight.dtype
            tokens, near = tokens.to(device, dtype), near.to(device)

            def network(x):
                patches = image.visual_projection(image(pixel_values=x.to(device, dtype)).last_hidden_state)
                return reader(patches, tokens, near)

            found = run(network, pixels, dtype)
            return exp(self.logit_scale) * F.cosine_similarity(found, embeds.to(device), dim=-1)

    @torch.no_grad()
    def _read(self, text):
        """Return a text's tokens (77, width), which of them count (77,), and its embedding (width,); on the CPU."""
        if text not in self._read_texts:
            self._say_what_is_cut([text])
            (tokens, condition), (embed, _) = self._run_texts([text, CONDITION])
            likeness = (tokens @ condition.T).amax(dim=1)
            self._read_texts[text] = tokens, likeness / likeness.max() > NEAR, embed
        return self._read_texts[text]

    def _run_texts(self, texts):
        """Return tokens (T, 77, width) and embeddings (T, width) of texts, float32 or wider, on the CPU."""
        network, ids = self.module["text"], filled_with_the_end(self.tokens(texts))
        with self.running() as device:
            found = network(input_ids=ids.to(device))
            return wide(network.text_projection(found.last_hidden_state)).cpu(), wide(found.text_embeds).cpu()


def filled_with_the_end(ids):
    """Return token ids (T, 77) with the mark of the end, the largest there is, from the first one on.

    So MPS was trained, by transformers' tokenizer; the other CLIPs are given 0 there, which they never look at.
    """
    end = ids.amax(dim=1, keepdim=True)
    return torch.where((ids == end).cumsum(dim=1) > 0, end, ids)


class Reader(nn.Module):
    """Patches (B, N, width) that read tokens (B, T, width), of which those count that are near (B, T): (B, width)."""

    def __init__(self, depth, width, heads, head_width, attend_hidden, mix_hidden):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([Attend(width, heads, head_width, attend_hidden), Mix(width, heads, head_width, mix_hidden)])
            for _ in range(depth)
        )

    def forward(self, patches, tokens, near):
        for attend, mix in self.layers:
            patches = patches + attend(patches, tokens, near)
            patches = patches + mix(patches)
        return patches[:, 0]


class Attend(nn.Module):
    """What each patch reads of the tokens, and what it makes of itself; the names are those of the port."""

    def __init__(self, width, heads, head_width, hidden):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, bias=False)
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_kv = nn.Linear(width, 2 * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(width, 2 * hidden, bias=False), SwiGLU(), nn.Linear(hidden, width, bias=False)
        )

    def forward(self, patches, tokens, near):
        patches = self.norm(patches)
        q = self.to_q(patches).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(tokens).chunk(2, dim=-1)
        return self.to_out(attention(q, k, v, near[:, None, None])) + self.ff(patches)


class Mix(nn.Module):
    """What each patch takes of all patches, and what it makes of itself."""

    def __init__(self, width, heads, head_width, hidden):
        super().__init__()
        self.heads, self.parts = heads, (heads * head_width, head_width, head_width, 2 * hidden)
        self.norm = nn.LayerNorm(width, bias=False)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.attn_out = nn.Linear(heads * head_width, width, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(hidden, width, bias=False))

    def forward(self, patches):
        q, k, v, hidden = self.fused_attn_ff_proj(self.norm(patches)).split(self.parts, dim=-1)
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.attn_out(attention(turned(q), turned(k), v)) + self.ff_out(hidden)


class SwiGLU(nn.Module):
    """x silu(gate), of which x is the first half."""

    def forward(self, both):
        x, gate = both.chunk(2, dim=-1)
        return x * F.silu(gate)


def attention(q, k, v, mask=None):
    """Return softmax(q k^T / sqrt(width)) v, with one head of keys and values for all heads of queries.

    Args:
        q: (B, heads, N, width).
        k, v: (B, M, width).
        mask: (B, 1, 1, M), True where a key counts.

    Returns:
        (B, N, heads * width).
    """
    k, v = (each[:, None].expand(-1, q.shape[1], -1, -1) for each in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def turned(x):
    """Return x (.., N, width) turned by position: pair (i, i + width / 2) of place n by n 10000^(-2 i / width)."""
    places, width = x.shape[-2:]
    frequencies = 10000 ** -(torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width)
    angles = torch.arange(places, device=x.device, dtype=torch.float32)[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _part(state, prefix):
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _reader(state):
    """Return a reader of the sizes that a state dict has."""
    inner, width = state["layers.0.0.to_q.weight"].shape
    head_width = len(state["layers.0.0.to_kv.weight"]) // 2
    hidden = (state[f"layers.0.{name}.weight"].shape[1] for name in ("0.ff.2", "1.ff_out.1"))
    return Reader(layers(state, "layers."), width, inner // head_width, head_width, *hidden)
