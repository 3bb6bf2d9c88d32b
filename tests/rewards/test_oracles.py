"""The rewards against their authors' code, on tiny random files: the same pixels, and from a PNG end to end.

The reference packages are no dependency, and want others that would be in the way. In an environment of its own that
has this pack with its test extra, run

    pip install --no-deps hpsv2==1.2.0 imscore==0.0.11 ftfy regex
    pytest -m oracles

Without them this file is skipped. HPS is checked against hpsv2; ImageReward, CycleReward and the aesthetic head against
imscore; CLIPScore and PickScore against transformers' CLIPModel and image processor.
"""

import shutil
from dataclasses import dataclass, replace
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiny_rewards
import torch
from comfyui_dno import rewards
from comfyui_dno.rewards import weights
from PIL import Image
from tiny_image_reward import image_reward_state, write_vocabulary

if find_spec("imscore") is None or find_spec("hpsv2") is None:
    pytest.skip("needs the reference packages", allow_module_level=True)

import open_clip
import torchvision.transforms as T
import transformers
from imscore.aesthetic.model import MLP as AestheticHead
from imscore.cyclereward.model import MLP as CycleHead
from imscore.imreward.bert import BertModel
from imscore.imreward.model import MLP as ImageRewardHead
from imscore.imreward.vit import VisionTransformer
from tokenizers import BertWordPieceTokenizer

pytestmark = pytest.mark.oracles

PROMPTS = ["a black cat", "white owls, a dog"]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
NORMALIZE = T.Normalize(MEAN, STD)
TORCHVISION = T.Compose([T.Resize(224, T.InterpolationMode.BICUBIC), T.CenterCrop(224), T.ToTensor(), NORMALIZE])
"""What LAION's predictor and ImageReward do with a picture."""


@dataclass
class Case:
    """A reward of ours, and what its reference does.

    Attributes:
        reward: ours.
        score: normalised pixels (B, 3, 224, 224) and prompts -> (B,).
        preprocess: a PIL picture -> normalised pixels (3, 224, 224).
        scale: of the score, in cosines.
    """

    reward: Any
    score: Any
    preprocess: Any = TORCHVISION
    scale: float = 1.0


def load_strictly(module, state, prefix):
    module.load_state_dict({k.removeprefix(prefix): w.float() for k, w in state.items() if k.startswith(prefix)})
    return module.eval().requires_grad_(False)


def hps(folder):
    reference = hpsv2_open_clip(folder)
    path = tiny_rewards.write("hps", folder)
    sizes = tiny_rewards.SIZES["H"]
    vision = {"image_size": 224, "layers": 2, "width": sizes["image"], "head_width": 80, "patch_size": 14}
    text = {"context_length": 77, "vocab_size": 49408, "width": sizes["text"], "heads": 2, "layers": 2}
    model = load_strictly(reference.CLIP(1024, vision, text), weights.read(path), "")

    def score(pixels, prompts):
        images, texts, _ = model(pixels, reference.tokenize(prompts))
        return (images @ texts.T).diagonal()

    return Case(
        rewards.HPS(rewards.load_tower(path)),
        score,
        reference.image_transform(224, is_train=False, mean=MEAN, std=STD, resize_longest_max=True),
    )


def hpsv2_open_clip(folder):
    """Import hpsv2's open_clip from a copy with the file its wheel lacks and without its __init__, which downloads."""
    package = folder / "hpsv2"
    shutil.copytree(Path(distribution("hpsv2").locate_file("hpsv2")) / "src", package / "src")
    shutil.copy(Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz", package / "src" / "open_clip")
    (package / "__init__.py").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        from hpsv2.src import open_clip as reference
    return reference


def clip_cosines(size, seed):
    model = tiny_rewards.hf_model(size, seed)

    def score(pixels, prompts):
        return model(input_ids=open_clip.tokenize(prompts), pixel_values=pixels).logits_per_image.diagonal()

    return model.logit_scale.exp().item(), score


def clip_pixels(picture):
    processor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)()
    return processor(picture, return_tensors="pt")["pixel_values"][0]


def clip_l(folder):
    scale, score = clip_cosines("L", 4)
    reward = rewards.CLIPScore(rewards.load_tower(tiny_rewards.write("clip_l", folder)))
    return Case(reward, lambda pixels, prompts: score(pixels, prompts) / scale, clip_pixels)


def pickscore(folder):
    scale, score = clip_cosines("H", 3)
    reward = rewards.PickScore(rewards.load_tower(tiny_rewards.write("pickscore", folder)))
    return Case(reward, score, clip_pixels, scale)


def aesthetic(folder):
    clip = transformers.CLIPVisionModelWithProjection(tiny_rewards.hf_model("L", 4).config.vision_config)
    load_strictly(clip, tiny_rewards.image_tower(tiny_rewards.hf_model("L", 4).state_dict()), "")
    path = tiny_rewards.write("aesthetic", folder)
    head = load_strictly(AestheticHead(), weights.read(path), "")

    def score(pixels, prompts):
        embeds = clip(pixel_values=pixels).image_embeds
        return head(embeds / embeds.norm(dim=-1, keepdim=True)).squeeze(-1)

    return Case(rewards.Aesthetic(rewards.load_tower(tiny_rewards.write("clip_l", folder)), path), score)


def image_reward(folder):
    path = folder / "ImageReward.pt"
    tiny_rewards.save(image_reward_state(), path)
    score = blip_score(folder, path, 35, ImageRewardHead(128), 0.16717362830052426, 1.0333394966054072)
    return Case(rewards.ImageReward(rewards.load_tower(path)), score)


def cycle_reward(folder):
    path = folder / "CycleReward.pt"
    tiny_rewards.save(image_reward_state(head=(0, 2, 4, 6, 8)), path)
    score = blip_score(folder, path, 128, CycleHead(128))
    return Case(rewards.CycleReward(rewards.load_tower(path)), score)


def blip_score(folder, path, length, head, mean=0.0, std=1.0):
    state = weights.read(path)
    config = transformers.BertConfig(
        vocab_size=30524, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
    )
    config.encoder_width = 192
    vision = load_strictly(VisionTransformer(embed_dim=192, depth=2, num_heads=3), state, "blip.visual_encoder.")
    text = load_strictly(BertModel(config), state, "blip.text_encoder.")
    load_strictly(head, state, "mlp.")
    tokenizer = BertWordPieceTokenizer(str(write_vocabulary(folder / "vocab.txt")))
    tokenizer.enable_padding(length=length)

    def score(pixels, prompts):
        found = tokenizer.encode_batch(prompts)
        ids, mask = (torch.tensor([getattr(row, name) for row in found]) for name in ("ids", "attention_mask"))
        patches = vision(pixels)
        tokens = text(ids, mask, patches, torch.ones(patches.shape[:2]))
        return (head(tokens[:, 0])[:, 0] - mean) / std

    return score


CASES = (hps, clip_l, pickscore, aesthetic, image_reward, cycle_reward)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.__name__)
def case(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("reward_models"))


def test_scores_and_gradients_agree_on_identical_pixels(case):
    """At 224 x 224 nothing is resized or cropped. Relative errors: 1e-4 of the scores, 1e-3 of the gradient's norm."""
    images = tiny_rewards.pictures(height=224, width=224).clamp(0, 1).requires_grad_()
    expected, found = case.score(NORMALIZE(images), PROMPTS), case.reward(images, PROMPTS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    d_expected, d_found = (torch.autograd.grad(scores.sum(), images)[0] for scores in (expected, found))
    assert d_expected.norm() > 0
    assert (d_found - d_expected).norm() < 1e-3 * d_expected.norm()


@torch.no_grad()
@pytest.mark.parametrize("size", [(768, 512), (301, 417), (151, 97), (1148, 2004)])
def test_a_png_scores_the_same_end_to_end(case, size, tmp_path):
    """In parity mode; the smooth mode that is optimised may differ by ten times as much."""
    width, height = size
    noise = torch.randn(3, height, width, generator=torch.Generator().manual_seed(0))
    picture = tiny_rewards.pictures(1, height, width)[0] + 0.1 * noise
    Image.fromarray((picture.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()).save(tmp_path / "picture.png")
    opened = Image.open(tmp_path / "picture.png")
    expected = case.score(case.preprocess(opened)[None], PROMPTS[:1])
    images = T.functional.to_tensor(opened)[None]
    in_parity = replace(case.reward, parity=True)(images, PROMPTS[:1])
    assert (in_parity - expected).abs() < 1e-3 * case.scale
    assert (case.reward(images, PROMPTS[:1]) - expected).abs() < 1e-2 * case.scale
