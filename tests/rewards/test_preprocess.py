"""Preprocessing against Pillow, torchvision and transformers, its gradients, and the jittered crops."""

import functools

import numpy as np
import pytest
import torch
from comfyui_dno.rewards.preprocess import NORMALISED_BY, Preprocess, clamp_through, jittered
from image_processors import by_processor
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, ToTensor
from torchvision.transforms import functional as TF

# Square, wide, tall, odd, as it is, tiny, extreme, large. The rules crop 2004 x 1148 and 224 x 227 differently, and the
# "laion" rule crops 224 x 229 as banker's rounding says.
SIZES = [
    (512, 512), (448, 448), (300, 517), (2004, 1148), (224, 224), (224, 227), (224, 229), (223, 225), (100, 57), (7, 5),
    (1, 3), (1000, 30), (2500, 1700),
]  # fmt: skip
RULES = ("clip", "laion", "hps", "dinov2", "siglip")
STATISTICS = {rule: torch.tensor(values).view(2, 3, 1, 1) for rule, values in NORMALISED_BY.items()}
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)


def levels(pixels, rule):
    """Return preprocessed pixels in levels of 0 to 255."""
    mean, std = STATISTICS[rule]
    return (pixels * std + mean) * 255


@functools.cache
def picture(height, width):
    """A Pillow picture with coarse and fine detail, black and white included."""
    rng = np.random.default_rng(height * 10_000 + width)
    coarse = rng.integers(0, 256, (max(height // 8, 1), max(width // 8, 1), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + rng.integers(-40, 41, smooth.shape)).clip(0, 255).astype(np.uint8))


PROCESSORS = {  # rule -> model of transformers, class of its image processor, what the hub's files set
    "clip": ("clip", "CLIPImageProcessor", {}),
    "dinov2": ("bit", "BitImageProcessor", {"size": {"shortest_edge": 256}, "crop_size": 224}),
    "siglip": ("siglip", "SiglipImageProcessor", {"size": {"height": 224, "width": 224}}),
}


def reference(rule, pillow):
    """What the reward's own code computes, (1, 3, 224, 224), in levels of 0 to 255."""
    if rule in PROCESSORS:
        return by_processor(pillow, *PROCESSORS[rule])
    if rule == "laion":
        transform = Compose([Resize(224, interpolation=InterpolationMode.BICUBIC), CenterCrop(224)])
        return torch.from_numpy(np.array(transform(pillow))).permute(2, 0, 1)[None].float()
    scale = 224 / max(pillow.size)
    height, width = round(pillow.height * scale), round(pillow.width * scale)
    resized = TF.resize(ToTensor()(pillow), [height, width], InterpolationMode.BICUBIC, antialias=True)
    down, across = 224 - height, 224 - width
    padding = [across // 2, down // 2, across - across // 2, down - down // 2]
    return TF.pad(resized, padding)[None] * 255


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_parity_mode_gives_the_references_pixels(rule, size):
    pillow = picture(*size)
    expected = reference(rule, pillow)
    found = levels(Preprocess(rule=rule)(ToTensor()(pillow)[None], parity=True), rule)
    error = (found - expected).abs()
    if rule == "siglip" and size[1] < 224 < size[0]:
        # Made wider and less high at once: Pillow 13 goes over the height first, earlier versions over the width.
        assert error.mean() < 0.5
        return
    assert error.mean() < 1e-3
    assert error.max() < (0.01 if rule == "hps" else 1.01)


@pytest.mark.parametrize("rule", RULES)
def test_parity_mode_at_half_the_size_is_pillows_to_the_last_pixel(rule):
    """Where halves are many: rounded to even instead of up, they would miss."""
    pillow = picture(512, 512) if rule == "dinov2" else picture(448, 448)
    found = levels(Preprocess(rule=rule)(ToTensor()(pillow)[None], parity=True), rule)
    torch.testing.assert_close(found, reference(rule, pillow), rtol=0, atol=1e-3)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "hps"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_smooth_mode_is_within_a_level_of_the_reference_on_average(rule, size):
    pillow = picture(*size)
    found = levels(Preprocess(rule=rule)(ToTensor()(pillow)[None]), rule)
    assert (found - reference(rule, pillow)).abs().mean() < 0.6


@pytest.mark.parametrize("rule", RULES)
def test_a_cosine_score_agrees_with_the_references_to_a_thousandth(rule):
    generator = torch.Generator().manual_seed(0)
    tower = torch.randn(64, 3 * 32 * 32, generator=generator)

    def cosine(pixels):
        coarse = torch.nn.functional.avg_pool2d(pixels, 7).flatten(1)
        return torch.cosine_similarity(coarse @ tower.T, tower.sum(dim=1)[None])

    pillow = picture(300, 517)
    images = ToTensor()(pillow)[None]
    mean, std = STATISTICS[rule]
    expected = cosine((reference(rule, pillow) / 255 - mean) / std)
    preprocess = Preprocess(rule=rule)
    torch.testing.assert_close(cosine(preprocess(images, parity=True)), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(cosine(preprocess(images)), expected, rtol=0, atol=1e-3)
    assert (cosine(preprocess(images.flip(2))) - expected).abs() > 5e-3


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [(11, 17), (5, 6), (8, 8)], ids=str)
def test_the_gradient_is_right(rule, size):
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(2, 3, *size, dtype=torch.float64, generator=generator) * 0.2 + 0.4).requires_grad_()
    assert torch.autograd.gradcheck(Preprocess(size=8, rule=rule), images)
    assert torch.autograd.gradcheck(lambda x: tuple(jittered(x, 2, seed=0)), images)


def gradient(preprocess, images, parity):
    images = images.clone().requires_grad_()
    pixels = preprocess(images, parity)
    weights = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1)).to(pixels)
    return torch.autograd.grad((pixels * weights).sum(), images)[0]


@pytest.mark.parametrize("rule", RULES)
def test_parity_mode_has_the_smooth_modes_gradient(rule):
    images = ToTensor()(picture(100, 57))[None]
    preprocess = Preprocess(size=32, rule=rule)
    smooth = gradient(preprocess, images, parity=False)
    torch.testing.assert_close(gradient(preprocess, images, parity=True), smooth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_the_gradient_is_zero_outside_of_the_crop_and_nowhere_inside(rule, parity):
    images = ToTensor()(picture(300, 700))[None]
    found = gradient(Preprocess(rule=rule), images, parity)
    if rule in ("hps", "siglip"):
        assert (found != 0).all()
        return
    if rule == "dinov2":  # 262.5 high and wide, from row 18.75 and column 218
        assert (found[..., 22:278, 221:477] != 0).all()
        assert (found[..., :15, :] == 0).all() and (found[..., 285:, :] == 0).all()
        assert (found[..., :214] == 0).all() and (found[..., 484:] == 0).all()
        return
    # The crop is 300 wide, and the filter reaches 2 * 300 / 224 pixels further.
    assert (found[..., 200:500] != 0).all()
    assert (found[..., :197] == 0).all()
    assert (found[..., 504:] == 0).all()


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_pixels_out_of_range_count_as_black_or_white_and_keep_their_gradient(rule, parity):
    images = torch.tensor([-0.7, 0.4, 1.6]).view(1, 1, 1, 3).expand(1, 3, 48, 3).repeat(1, 1, 1, 16).contiguous()
    preprocess = Preprocess(size=32, rule=rule)
    torch.testing.assert_close(preprocess(images, parity), preprocess(images.clamp(0, 1), parity))
    seen = slice(4, -4) if rule == "dinov2" else slice(None)  # which leaves out an eighth
    assert (gradient(preprocess, images, parity)[..., seen, seen] != 0).all()


def test_dinov2_is_normalised_by_imagenet_and_siglip_to_minus_one_to_one():
    images = torch.rand(1, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(1, 3, 32, 32)
    found = Preprocess(rule="dinov2")(images)
    torch.testing.assert_close(found[..., 0, 0], ((images - IMAGENET[0]) / IMAGENET[1])[..., 0, 0])
    torch.testing.assert_close(Preprocess(rule="siglip")(images)[..., 0, 0], 2 * images[..., 0, 0] - 1)


def test_clamping_through_gives_clamped_values_and_the_gradient_of_the_identity():
    images = torch.tensor([-1e6, -0.3, 0.0, 0.1, 1.0, 1.1, 3e7]).requires_grad_()
    clamped = clamp_through(images)
    assert torch.equal(clamped, images.clamp(0, 1))
    assert torch.autograd.grad(clamped.sum(), images)[0].tolist() == [1.0] * 7


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_pictures_of_a_batch_are_preprocessed_as_alone_and_half_precision_becomes_float32(rule, parity):
    images = torch.rand(3, 3, 40, 33, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    preprocess = Preprocess(size=24, rule=rule)
    together = preprocess(images, parity)
    assert together.shape == (3, 3, 24, 24)
    torch.testing.assert_close(together, torch.cat([preprocess(image[None], parity) for image in images]))
    assert preprocess(images.half(), parity).dtype == preprocess(images.bfloat16(), parity).dtype == torch.float32


def ramp(height, width):
    """(2, 3, H, W): one picture grows by 1 / 1000 a pixel to the right, the other downwards."""
    across = torch.arange(width).expand(3, height, width) / 1000
    return torch.stack([across, torch.arange(height)[:, None].expand(3, height, width) / 1000])


def test_jittered_crops_lie_inside_and_have_sides_within_the_scale():
    """Stretched over the picture, a crop of side s makes a ramp of slope s, from its first pixel to its last."""
    height, width = 60, 80
    crops = torch.stack(list(jittered(ramp(height, width), 40, seed=0, scale=(0.5, 0.9))))
    for crop in crops:
        for line, length in ((crop[0, 0, 30], width), (crop[1, 0, :, 40], height)):
            slope = (line[length - 10] - line[10]) / (length - 20) * 1000
            assert 0.5 - 0.01 < slope < 0.9 + 0.01
            assert -1e-4 < line.min()
            assert line.max() < (length - 1) / 1000 + 1e-4
    for starts in (crops[:, 0, 0, 30, 0], crops[:, 1, 0, 0, 40]):
        assert starts.min() < 0.004
        assert starts.max() > 0.015


def test_a_seeds_crops_stay_where_they_are():
    """Three uniform numbers a crop: its side, then its place from the top, then from the left."""
    height, width = 60, 80
    places = torch.rand((5, 3), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for crop, (side, down, across) in zip(jittered(ramp(height, width), 5, seed=4), places.tolist(), strict=True):
        side = 0.8 + 0.2 * side
        top, left = down * (height - side * height), across * (width - side * width)
        # The ramps are of 1 / 1000 a pixel; sides and places are whole pixels.
        assert crop[1, 0, 0].mean().item() * 1000 == pytest.approx(top, abs=1.1)
        assert crop[0, 0, :, 0].mean().item() * 1000 == pytest.approx(left, abs=1.1)


def test_jittered_crops_are_the_seeds_and_the_same_of_every_picture():
    images = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(0))

    def crops(images, seed=5, scale=(0.8, 1.0)):
        return torch.stack(list(jittered(images, 3, seed, scale)))

    assert torch.equal(crops(images), crops(images))
    assert not torch.allclose(crops(images), crops(images, seed=6))
    assert not torch.allclose(crops(images)[0], crops(images)[1])
    torch.testing.assert_close(crops(images), torch.cat([crops(image[None]) for image in images], dim=1))
    torch.testing.assert_close(crops(images * 1.5, scale=(1, 1)), (images * 1.5).clamp(0, 1).expand(3, -1, -1, -1, -1))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="rule is 'center'; expected one of 'clip', 'laion', 'hps', 'dinov2', 'sig"):
        Preprocess(rule="center")
    with pytest.raises(ValueError, match=r"images are \(1, 64, 64, 3\); expected \(B, 3, H, W\)"):
        Preprocess()(torch.zeros(1, 64, 64, 3))
    with pytest.raises(ValueError, match=r"images are torch.uint8; expected floats, nominally in \[0, 1\]"):
        Preprocess()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    for crops, scale in ((0, (0.8, 1.0)), (2, (0.0, 1.0)), (2, (0.9, 0.8)), (2, (0.8, 1.1))):
        with pytest.raises(ValueError, match=r"expected 1 or more, and 0 < least <= greatest <= 1"):
            list(jittered(torch.zeros(1, 3, 8, 8), crops, seed=0, scale=scale))
