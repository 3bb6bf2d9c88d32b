"""The tower of vision-language models: they are asked about a picture, and what they would answer first is read.

    picture, question --chat template, processor--> tokens --model--> states (1, T, width) --language head--> logits

A folder of the hub's layout holds such a model: config.json, tokenizer, processor, safetensors. transformers makes it,
from files alone and without code of theirs. A picture is 8 bits and goes through the model's own processor, so a score
has no gradient. Nothing is padded: the same question about pictures of one size is as long for all of them.
"""

import contextlib
import json
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ..core.memory import is_out_of_memory
from ..core.precision import wide
from . import weights
from .networks import Tower
from .recognise import tensors_of

AT_ONCE = 4
"""Pictures that are read in one call: each is hundreds of tokens, so that more are hardly faster."""

TOKEN_WIDTH, PIXEL_WIDTH = 24, 20
"""Numbers that are held at a time beside the weights, per token and unit of width, and per number of the pixels: for
a picture of 512 x 512 layers of Qwen2-VL-2B's sizes held 103 MB in float32, and this counts 180."""

FILES = ("config.json", "*processor_config.json", "tokenizer_config.json", "*.safetensors")
"""What every such folder has; the tokenizer's other files have many names."""

SUCH = f"such as {weights.known_files(['VLM'])}"
"""What messages advise."""

RATING_TOKEN = "<|Reward|>"
"""Where HPSv3 reads its rating off."""

RATING_LAYERS = (0, 3, 5)
"""Places of the linear layers in `rm_head`; between them a ReLU and, in training, dropout."""


class VlmTower(Tower):
    """The vision-language model of a folder.

    Example:
        >>> tower = rewards.load_tower("Qwen2-VL-2B-Instruct")
        >>> type(tower).__name__, tower.kind
        ('VlmTower', 'VLM')

    Attributes: Tower's, and
        processor: transformers' own, of pictures and texts.
        rates: whether the weights have HPSv3's head.
    """

    def __init__(self, folder, device="cpu"):
        """Read the folder.

        Args:
            folder: path of it.
            device: where the weights are put at first, in the dtype that they have in the file.

        Raises:
            FileNotFoundError: a file is missing in it.
            ValueError: transformers knows no such model, or it takes no pictures or has no chat template.
        """
        folder = Path(folder)
        super().__init__(folder.name, "VLM")
        _check_files(folder)
        config, self.processor = _read(folder)
        self._template = self.processor.chat_template or self.processor.tokenizer.chat_template
        if not self._template:
            raise ValueError(
                f"{self.name} has no chat template, so nothing tells how it is asked; expected chat_template.jinja,"
                f" chat_template.json or one in tokenizer_config.json. Take a model that was tuned to chat, {SUCH}"
            )
        head = _rating_head(folder)
        self.rates = head is not None
        if self.rates:
            self.processor.tokenizer.add_tokens([RATING_TOKEN], special_tokens=True)
            config.get_text_config().vocab_size = _words(folder)  # cut to the tokens in use, unlike Qwen2-VL's own
        # Outside inference mode, as all towers: ComfyUI moves weights that were made in it only in it.
        with torch.inference_mode(False):
            model = _model(folder, config).to(device)
            parts = {"model": model} if head is None else {"model": model, "rating": head.to(device)}
            # In a module of its own: ComfyUI sets `device` on what it manages, a property of transformers' models.
            self.module = nn.ModuleDict(parts).eval().requires_grad_(False)

    def tokens(self, words):
        """Return the numbers of those words that are one token each, without those of no such word.

        Raises:
            ValueError: none is.
        """
        found = [self.processor.tokenizer.encode(word, add_special_tokens=False) for word in words]
        single = sorted({ids[0] for ids in found if len(ids) == 1})
        if not single:
            raise ValueError(
                f"the tokenizer of {self.name} has no token for any of {', '.join(words)}; expected one that has,"
                f" {SUCH}"
            )
        return single

    def answers(self, pictures, texts, tokens):
        """Return the logits (B, len(tokens)) of tokens as the first of the answer, float32 or wider.

        They are made anew of what the language head is given, in float32: bfloat16 rounds a logit of 20 to steps of
        0.125, which is more than the pictures of a search differ by. A cap that a model puts on its logits is left out.

        Args:
            pictures: B of Pillow's, of one size.
            texts: B strings, each the whole question.
            tokens: as `tokens` gives them.
        """
        head = self.module["model"].get_output_embeddings()

        def logits(ids, states):
            bias = None if head.bias is None else wide(head.bias[tokens])
            return F.linear(wide(states[:, -1]), wide(head.weight[tokens]), bias)

        return self._each(pictures, texts, logits)

    def ratings(self, pictures, texts):
        """Return what HPSv3's head says at its token: (B, 2), mean and deviation; as `answers`.

        All positions are counted in a row: that is how its authors run it, unlike Qwen2-VL itself, which counts the
        places of a picture by rows and columns.
        """
        token = self.processor.tokenizer.convert_tokens_to_ids(RATING_TOKEN)

        def rating(ids, states):
            at = (ids[0] == token).int().argmax()
            return self.module["rating"](states[:, at].float())

        return self._each(pictures, texts, rating, in_a_row=True)

    def _each(self, pictures, texts, read, in_a_row=False):
        """Return read(ids, states) of all pictures, (B, n), those of one text together."""
        asked, found = {}, [None] * len(pictures)
        for row, text in enumerate(texts):
            asked.setdefault(text, []).append(row)
        for text, rows in asked.items():
            for start in range(0, len(rows), AT_ONCE):
                some = rows[start : start + AT_ONCE]
                inputs = self._inputs([pictures[row] for row in some], text)
                for row, numbers in zip(some, self._run(inputs, read, in_a_row), strict=True):
                    found[row] = numbers
        return torch.stack(found)

    def _inputs(self, pictures, text):
        """Return what the model takes: name -> tensor. Made one by one: processors want several in different ways."""
        content = [{"type": "image"}, {"type": "text", "text": text}]
        chat = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self._template, add_generation_prompt=True, tokenize=False,
        )  # fmt: skip
        start = self.processor.tokenizer.bos_token
        settings = {"add_special_tokens": False} if start and chat.startswith(start) else {}
        made = [self.processor(text=[chat], images=[picture], return_tensors="pt", **settings) for picture in pictures]
        return {name: torch.cat([each[name] for each in made]) for name in made[0]}

    @torch.no_grad()
    def _run(self, inputs, read, in_a_row):
        """Return read(ids, states), where states (n, T, width) are what the language head is given."""
        model, seen = self.module["model"], []

        def keep(head, given):
            seen.append(given[0])
            return (given[0][:, -1:],)  # the logits of all positions would take gigabytes

        with self.running(self._memory(inputs)) as device:
            inputs = {name: self._placed(value, device) for name, value in inputs.items()}
            ids = inputs["input_ids"]
            if in_a_row:
                inputs["position_ids"] = torch.arange(ids.shape[1], device=device).expand(3, *ids.shape)
            with model.get_output_embeddings().register_forward_pre_hook(keep):
                model(**inputs, use_cache=False)
            return read(ids, seen[0])

    def _placed(self, value, device):
        """Return an input on the device, floats in the weights' dtype."""
        return value.to(device, self.module["model"].dtype if value.is_floating_point() else None)

    def _memory(self, inputs):
        """Return the bytes that a run takes beside the weights."""
        model = self.module["model"]
        numbers = TOKEN_WIDTH * inputs["input_ids"].numel() * model.config.get_text_config().hidden_size
        pixels = sum(value.numel() for value in inputs.values() if value.is_floating_point())
        return (numbers + PIXEL_WIDTH * pixels) * model.dtype.itemsize


def _check_files(folder):
    missing = [name for name in FILES if not any(folder.glob(name))]
    if missing:
        raise FileNotFoundError(
            f"the folder {folder} has no {', no '.join(missing)}; expected all files of a vision-language model as they"
            f" are on the hub, {SUCH}. Weights are read from safetensors alone"
        )


def _read(folder):
    """Return transformers' config and processor."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    kind = _kind(folder / "config.json")
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        if kind in CONFIG_MAPPING_NAMES:
            advice = "which does not answer questions about pictures"
        else:
            advice = (
                f"which transformers {transformers.__version__} does not know. It may be too old: update it. Or the"
                " model has code of its own, which is never run here"
            )
        raise ValueError(f"{folder.name} is a {kind!r}, {advice}. Expected a vision-language model, {SUCH}")
    read = {"local_files_only": True, "trust_remote_code": False}
    with _explained(folder):
        config = transformers.AutoConfig.from_pretrained(folder, **read)
        return config, transformers.AutoProcessor.from_pretrained(folder, **read)


def _kind(path):
    """Return what a config.json says that a model is."""
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
        if not isinstance(kind, (str, type(None))):
            raise ValueError(f"its model_type is {kind!r}")
        return kind
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{path.parent.name}/{path.name} is damaged ({error}); expected a model's configuration. Download the"
            " whole folder again"
        ) from error


def _model(folder, config):
    """Return transformers' model, in the dtype of its weights."""
    from transformers import AutoModelForImageTextToText

    dtype = {"dtype" if hasattr(config, "dtype") else "torch_dtype": "auto"}  # before transformers 4.56
    with _explained(folder):
        model, found = AutoModelForImageTextToText.from_pretrained(
            folder, config=config, local_files_only=True, trust_remote_code=False, use_safetensors=True,
            output_loading_info=True, **dtype,
        )  # fmt: skip
        if found["missing_keys"]:
            raise ValueError(f"no weights of {', '.join(sorted(found['missing_keys'])[:5])}")
    return model


@contextlib.contextmanager
def _explained(folder):
    try:
        yield
    except Exception as error:  # damaged and incomplete files can raise nearly anything
        if is_out_of_memory(error):
            raise
        import transformers

        found = " ".join(str(error).split())[:300]
        raise ValueError(
            f"transformers {transformers.__version__} cannot read {folder.name} ({found}). Download the whole folder"
            " again, or update transformers"
        ) from error


def _rating_head(folder):
    """Return HPSv3's head in float32, None where the weights have none."""
    from safetensors import safe_open

    within = {name: path for path in folder.glob("*.safetensors") for name in tensors_of(path)}
    names = [f"rm_head.{place}.{part}" for place in RATING_LAYERS for part in ("weight", "bias")]
    missing = [name for name in names if name not in within]
    if len(missing) == len(names):
        return None
    if missing:
        lost = ", ".join(missing)
        raise ValueError(f"{folder.name} has a rating head without {lost}. Download the whole folder again")
    layers = []
    for place in RATING_LAYERS:
        found = {}
        for part in ("weight", "bias"):
            name = f"rm_head.{place}.{part}"
            with safe_open(within[name], "pt") as file:  # a file of several may end within the head
                found[part] = file.get_tensor(name).float()
        layer = nn.Linear(*found["weight"].shape[::-1])
        layer.load_state_dict(found)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _words(folder):
    """Return the number of words in the embeddings that a folder holds."""
    found = [tensors_of(path) for path in folder.glob("*.safetensors")]
    return next(shape[0] for names in found for name, shape in names.items() if name.endswith("embed_tokens.weight"))
