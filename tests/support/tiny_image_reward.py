"""Random ImageReward files of the exact key layout of `ImageReward.pt`, of any size, and a vocabulary for them."""

import torch

VOCABULARY = 30522
WORDS = ("a", "black", "white", "cat", "dog", "##s", "##ish", "owl", ",")
NORMS = ("norm", "LayerNorm")


def image_reward_state(vision=(192, 2), text=(128, 2), head=(0, 2, 4, 6, 7), std=0.1, dtype=torch.float32, seed=0):
    """Return a state dict of ImageReward's layout, with random weights.

    Args:
        vision, text: width and number of layers of the two towers; the original's are (1024, 24) and (768, 12).
        head: the indices of the head's linear layers; (0, 2, 4, 6, 8) are CycleReward's.
        std: of the weights; with less than 0.1 all scores of a tiny network are nearly equal.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in _shapes(vision, text, head):
        weight = torch.empty(shape, dtype=dtype)
        is_scale = name.endswith("weight") and any(part.startswith(NORMS) for part in name.split(".")[-2:])
        state[name] = weight.normal_(1.0 if is_scale else 0.0, std, generator=generator)
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(512).expand(1, -1).clone()
    return state


def write_vocabulary(path, cls=101, lines=VOCABULARY):
    """Write a vocabulary of bert-base-uncased's layout: the special tokens at their places, few words, fillers."""
    special = ["[PAD]", *(f"[unused{i}]" for i in range(cls - 2)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *WORDS]
    tokens += [f"filler{i}" for i in range(lines - len(tokens))]
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return path


def _shapes(vision, text, head):
    yield from ((f"blip.visual_encoder.{name}", shape) for name, shape in _vision_shapes(*vision))
    yield from ((f"blip.text_encoder.{name}", shape) for name, shape in _text_shapes(*text, vision[0]))
    yield from _linear("blip.vision_proj", vision[0], 256)
    yield from _linear("blip.text_proj", text[0], 256)
    widths = (text[0], 1024, 128, 64, 16, 1)
    for index, inputs, outputs in zip(head, widths, widths[1:], strict=False):
        yield from _linear(f"mlp.layers.{index}", inputs, outputs)


def _vision_shapes(width, layers):
    yield "cls_token", (1, 1, width)
    yield "pos_embed", (1, 197, width)
    yield "patch_embed.proj.weight", (width, 3, 16, 16)
    yield "patch_embed.proj.bias", (width,)
    for layer in (f"blocks.{i}" for i in range(layers)):
        yield from _norm(f"{layer}.norm1", width)
        yield from _linear(f"{layer}.attn.qkv", width, 3 * width)
        yield from _linear(f"{layer}.attn.proj", width, width)
        yield from _norm(f"{layer}.norm2", width)
        yield from _linear(f"{layer}.mlp.fc1", width, 4 * width)
        yield from _linear(f"{layer}.mlp.fc2", 4 * width, width)
    yield from _norm("norm", width)


def _text_shapes(width, layers, vision_width):
    yield "embeddings.word_embeddings.weight", (VOCABULARY + 2, width)
    yield "embeddings.position_embeddings.weight", (512, width)
    yield from _norm("embeddings.LayerNorm", width)
    for layer in (f"encoder.layer.{i}" for i in range(layers)):
        for attention, inputs in (("attention", width), ("crossattention", vision_width)):
            yield from _linear(f"{layer}.{attention}.self.query", width, width)
            yield from _linear(f"{layer}.{attention}.self.key", inputs, width)
            yield from _linear(f"{layer}.{attention}.self.value", inputs, width)
            yield from _linear(f"{layer}.{attention}.output.dense", width, width)
            yield from _norm(f"{layer}.{attention}.output.LayerNorm", width)
        yield from _linear(f"{layer}.intermediate.dense", width, 4 * width)
        yield from _linear(f"{layer}.output.dense", 4 * width, width)
        yield from _norm(f"{layer}.output.LayerNorm", width)


def _linear(name, inputs, outputs):
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _norm(name, width):
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
