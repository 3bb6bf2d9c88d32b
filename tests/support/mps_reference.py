"""MPS once more, as slowly and plainly as can be: what it is compared with."""

import torch
from torch.nn import functional as F


def reader(state, patches, tokens, mask):
    """Return what comes out of the layers of an MPS: (B, N, width).

    Written from the port's formulas, head by head: softmax with a mask that is added, positions as complex numbers.

    Args:
        state: weights of the port, under its names after "mps.cross_model.".
        patches, tokens: (B, N, width), (B, T, width).
        mask: (B, T), 0 or minus infinity.
    """
    depth = 1 + max(int(name.split(".")[1]) for name in state)
    for layer in range(depth):
        ours = {name.removeprefix(f"layers.{layer}."): value for name, value in state.items()}
        patches = patches + attend(ours, patches, tokens, mask)
        patches = patches + mix(ours, patches)
    return patches


def attend(weights, patches, tokens, mask):
    patches = normed(patches, weights["0.fn.norm.weight"])
    queries, both = patches @ weights["0.fn.to_q.weight"].T, tokens @ weights["0.fn.to_kv.weight"].T
    width = both.shape[-1] // 2
    found = heads(queries, both[..., :width], both[..., width:], mask)
    hidden = patches @ weights["0.fn.ff.0.weight"].T
    return found @ weights["0.fn.to_out.weight"].T + gated(hidden) @ weights["0.fn.ff.2.weight"].T


def mix(weights, patches):
    fused = normed(patches, weights["1.fn.norm.weight"]) @ weights["1.fn.fused_attn_ff_proj.weight"].T
    inner = weights["1.fn.attn_out.weight"].shape[1]
    hidden = 2 * weights["1.fn.ff_out.1.weight"].shape[1]
    width = (fused.shape[-1] - inner - hidden) // 2
    queries, keys, values, rest = fused.split([inner, width, width, hidden], dim=-1)
    queries = torch.cat([turned(each) for each in queries.split(width, dim=-1)], dim=-1)
    found = heads(queries, turned(keys), values, torch.zeros(keys.shape[:2]))
    return found @ weights["1.fn.attn_out.weight"].T + gated(rest) @ weights["1.fn.ff_out.1.weight"].T


def normed(x, scale):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() * scale


def gated(both):
    half = both.shape[-1] // 2
    return both[..., :half] * both[..., half:] * both[..., half:].sigmoid()


def heads(queries, keys, values, mask):
    found = []
    for query in queries.split(keys.shape[-1], dim=-1):
        products = torch.einsum("bnd,bmd->bnm", query, keys) / keys.shape[-1] ** 0.5 + mask[:, None]
        found.append(torch.einsum("bnm,bmd->bnd", products.softmax(dim=-1), values))
    return torch.cat(found, dim=-1)


def turned(x):
    places, width = x.shape[-2:]
    pairs = torch.complex(*x.chunk(2, dim=-1))
    turns = torch.arange(places)[:, None] * 10000.0 ** (-torch.arange(width // 2) * 2 / width)
    turned = pairs * torch.polar(torch.ones_like(turns), turns).to(pairs.dtype)
    return torch.cat([turned.real, turned.imag], dim=-1)


def scores(model, cross, pixels, ids, condition_ids):
    """Return the scores of pictures, each for its text.

    Args:
        model: transformers' CLIPModel.
        cross: patches, tokens, mask -> patches, as `reader` without its weights.
        pixels: (B, 3, 224, 224), preprocessed.
        ids, condition_ids: (B, 77), (77,), as transformers' tokenizer fills them: with the mark of the end.
    """

    def read(ids):
        found = model.text_model(input_ids=ids)
        ends = found.last_hidden_state[torch.arange(len(ids)), (ids == ids.max()).int().argmax(dim=1)]
        return model.text_projection(found.last_hidden_state), model.text_projection(ends)

    patches = model.visual_projection(model.vision_model(pixel_values=pixels).last_hidden_state)
    (tokens, ends), (condition, _) = read(ids), read(condition_ids[None])
    near = torch.stack([torch.stack([(word @ condition[0].T).max() for word in text]) for text in tokens])
    near = near / near.max(dim=1, keepdim=True).values
    mask = torch.where(near > 0.01, 0.0, -torch.inf)
    found = cross(patches, tokens, mask)[:, 0]
    return model.logit_scale.exp() * F.cosine_similarity(found, ends)
