"""Tiny random vision-language models in the hub's folders: a Qwen2-VL, a LLaVA, and a Qwen2-VL with HPSv3's head.

Classes, names of tensors and files are transformers' own; the tokenizers know all bytes and the words yes and no.
"""

import contextlib

import torch
from tiny_rewards import randomize

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
           "<|video_pad|>", "<image>")  # fmt: skip
CORPUS = ["Yes No yes no", " Yes No yes no"] * 9

QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
VISION = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
ROTARY = {"type": "mrope", "mrope_section": [1, 1, 2]}
SIZES = {**TEXT, "rope_scaling": ROTARY, "vision_config": VISION, "tie_word_embeddings": False}
QWEN2_VL_2B = {
    "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "max_position_embeddings": 32768, "vocab_size": 151936, "tie_word_embeddings": True,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4},
}  # fmt: skip
"""Those of Qwen2-VL-2B-Instruct."""


def write_qwen2_vl(folder, seed=0, dtype=torch.float32, rating=False, sizes=SIZES, std=0.3):
    """Write a Qwen2-VL, and return its folder; with HPSv3's head, embeddings are cut to the tokens there are."""
    import transformers
    from safetensors.torch import load_file, save_file

    tokenizer = _tokenizer("Qwen2TokenizerFast", eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start")}
    patches = {"patch_size": 14, "in_channels": 3, "in_chans": 3, "spatial_merge_size": 2, "temporal_patch_size": 2}
    words = {"vocab_size": len(tokenizer) + (1 if rating else 64)}
    config = transformers.Qwen2VLConfig(
        **words | sizes | {"vision_config": sizes["vision_config"] | patches},
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
        image_token_id=ids["image_pad"], video_token_id=ids["video_pad"], vision_start_token_id=ids["vision_start"],
    )  # fmt: skip
    with made_in(dtype):
        model = randomize(transformers.Qwen2VLForConditionalGeneration(config), seed, std)
    model.save_pretrained(folder)
    if rating:
        file = folder / "model.safetensors"
        save_file(load_file(file) | rating_head(seed), file, metadata={"format": "pt"})
        config.get_text_config().vocab_size += 63  # as in Qwen2-VL's own config, which goes with those weights
        config.save_pretrained(folder)
    images = transformers.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=28 * 28 * 1280)
    parts = [images, tokenizer]
    if hasattr(transformers, "Qwen2VLVideoProcessor"):
        parts.append(transformers.Qwen2VLVideoProcessor())
    transformers.Qwen2VLProcessor(*parts, chat_template=QWEN_TEMPLATE).save_pretrained(folder)
    return folder


@contextlib.contextmanager
def made_in(dtype):
    """Let networks be made in this dtype, without a copy in float32 first."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def write_llava(folder, seed=0, chat_template=LLAVA_TEMPLATE):
    """Write a LLaVA, whose text begins with a mark, and return its folder."""
    import transformers

    tokenizer = _tokenizer("PreTrainedTokenizerFast", bos_token="<|im_start|>", pad_token="<|endoftext|>")
    image = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**image, image_size=56, patch_size=14),
        text_config=transformers.LlamaConfig(**TEXT, vocab_size=len(tokenizer) + 3),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=16,
    )  # fmt: skip
    randomize(transformers.LlavaForConditionalGeneration(config), seed, std=0.3).save_pretrained(folder)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    transformers.LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", chat_template=chat_template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def rating_head(seed=0, width=TEXT["hidden_size"]):
    """Return the weights of HPSv3's head, under their names in its file; only the first is as wide as the model."""
    generator, shapes = torch.Generator().manual_seed(seed), {0: (1024, width), 3: (16, 1024), 5: (2, 16)}
    state = {}
    for place, shape in shapes.items():
        state[f"rm_head.{place}.weight"] = torch.randn(shape, generator=generator) * shape[1] ** -0.5
        state[f"rm_head.{place}.bias"] = torch.randn(shape[:1], generator=generator) * 0.1
    return state


def _tokenizer(name, **marks):
    """Return a tokenizer of transformers' class of that name, of bytes and a few words; it begins with its mark."""
    import tokenizers
    import transformers

    found = tokenizers.Tokenizer(tokenizers.models.BPE())
    found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    found.train_from_iterator(CORPUS, trainer)
    made = getattr(transformers, name)(tokenizer_object=found, **marks)
    made.add_tokens(list(SPECIAL), special_tokens=True)
    if made.bos_token:
        start = (made.bos_token, made.bos_token_id)
        made.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{made.bos_token} $A", special_tokens=[start]
        )
    return made


def add_rating_token(folder):
    """Add HPSv3's token to a folder's tokenizer, as its authors do, and cut its config to the words that it has."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|Reward|>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.get_text_config().vocab_size = len(tokenizer)
    config.save_pretrained(folder)
