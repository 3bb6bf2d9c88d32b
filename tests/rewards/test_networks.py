"""How networks are run: in their own precision, with a gradient that float16 does not lose."""

import pytest
import tiny_rewards
import torch
from comfyui_dno.rewards import networks
from comfyui_dno.rewards.clip_tower import ClipTower
from comfyui_dno.rewards.towers import load_tower
from torch.nn import functional as F

TEXTS = ["a photo of a black cat", "two dogs, oil on canvas"]


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.complex64])
def test_networks_run_in_four_dtypes_alone(files, dtype):
    with pytest.raises(ValueError, match=f"dtype is {dtype}; expected one of torch.float32, torch.bfloat16, torch.fl"):
        load_tower(files["clip_l"], dtype=dtype)


def pixels(batch=2, seed=0):
    """Return preprocessed pictures."""
    return torch.randn((batch, 3, 224, 224), generator=torch.Generator().manual_seed(seed))


def gradient(tower, weight=1.0):
    """Return the float32 gradient of weight times the cosines by pictures that are no leaf."""
    x = pixels().requires_grad_()
    scores = F.cosine_similarity(tower.image_embeds(x * 1), tower.text_embeds(TEXTS))
    return torch.autograd.grad((weight * scores).sum(), x)[0]


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.25), (torch.float16, 0.025)])
def test_half_precision_changes_the_gradient_little_however_small_it_is(files, dtype, error):
    """The errors are four times what was measured, 0.062 and 0.005."""
    expected = gradient(load_tower(files["hps"]))
    tower = load_tower(files["hps"], dtype=dtype)
    assert tower.image_embeds(pixels()).dtype == tower.text_embeds(TEXTS).dtype == torch.float32
    for weight in (1.0, 1e-6):
        found = gradient(tower, weight) / weight
        assert found.dtype == torch.float32
        assert (found - expected).norm() < error * expected.norm()


def test_a_picture_of_small_weight_keeps_its_gradient_beside_one_of_great_weight(files):
    """The least float16 is 6e-8: scaled by what the whole batch has, the second picture's gradient would be lost."""
    weights = torch.tensor([1.0, 1e-7])
    expected = gradient(load_tower(files["hps"]))
    found = gradient(load_tower(files["hps"], dtype=torch.float16), weights) * (1 / weights).view(-1, 1, 1, 1)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 0.025 * other.norm()


def test_second_derivatives_are_right_or_refused(files):
    """By the pictures; in float16 they would miss the factors that keep first ones from vanishing."""
    v = pixels(seed=1)

    def hessian_times(tower, x):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            (g,) = torch.autograd.grad(tower.image_embeds(x).square().sum(), x, create_graph=True)
            return torch.autograd.grad((g * v).sum(), x)[0]

    tower = ClipTower(tiny_rewards.hf_model("L", 4).double().state_dict(), dtype=torch.float64)
    v, x = v.double(), pixels().double().requires_grad_()
    ends = []
    for sign in (1, -1):
        moved = (x + sign * 1e-4 * v).detach().requires_grad_()
        ends.append(torch.autograd.grad(tower.image_embeds(moved).square().sum(), moved)[0])
    torch.testing.assert_close(hessian_times(tower, x), (ends[0] - ends[1]) / 2e-4, rtol=1e-3, atol=1e-3)
    with pytest.raises(RuntimeError, match="float16 network has no second derivatives"):
        v = pixels(seed=1)
        hessian_times(load_tower(files["clip_l"], dtype=torch.float16), pixels().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_gradient_is_a_gradient_of_zero(files, dtype):
    x = pixels().requires_grad_()
    embeds = load_tower(files["clip_l"], dtype=dtype).image_embeds(x)
    (found,) = torch.autograd.grad((embeds[:1] * torch.arange(768.0)).sum(), x)
    assert found[0].abs().sum() > 0 and torch.equal(found[1], torch.zeros_like(found[1]))


def test_nothing_is_left_on_the_callers_pictures(files):
    x = pixels().requires_grad_()
    load_tower(files["clip_l"]).image_embeds(x)
    (found,) = torch.autograd.grad((2 * x).sum(), x)
    assert torch.equal(found, torch.full_like(x, 2.0))


@pytest.mark.parametrize("kind", ["hps_hf", "clip_l"])
def test_the_memory_asked_for_is_about_what_a_graph_takes(files, kind):
    tower, asked, held = load_tower(files[kind]), [], {}
    weights_of = {weight.untyped_storage().data_ptr() for weight in tower.module.parameters()}
    tower.on_use = asked.append

    def hold(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights_of:
            held[storage.data_ptr()] = storage  # kept, so that no other gets its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        embeds = tower.image_embeds(pixels().requires_grad_())
    size = sum(storage.nbytes() for storage in held.values())
    # The pixels themselves, in 24 layers a hundredth of it all, are a tenth in two.
    assert embeds.requires_grad and 0.6 * asked[0] < size < 1.1 * asked[0]
    tower.image_embeds(pixels())
    assert asked[1] == asked[0] / tower.module["image"].config.num_hidden_layers


def test_the_memory_asked_for_counts_every_patch_and_the_class_token(files):
    network, x = load_tower(files["hps_hf"]).module["image"], pixels(3).requires_grad_()
    tokens, depth, width = 16 * 16 + 1, 2, 160
    assert networks.graph_bytes(network, x) == networks.GRAPH_WIDTH * 3 * tokens * depth * width * 4
