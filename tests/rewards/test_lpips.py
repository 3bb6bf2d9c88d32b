"""LPIPS against torchvision's own networks and a plain loop over its formula, and against the package lpips."""

from importlib.util import find_spec

import pytest
import tiny_rewards
import torch
from comfyui_dno import rewards
from comfyui_dno.core.scoring import exact, score
from comfyui_dno.rewards import weights
from comfyui_dno.rewards.lpips_tower import LAYERS, LpipsTower
from live_bytes import LiveBytes
from reward_laws import check_gradient, gained_by_ten_steps
from safetensors.torch import load_file
from torchvision import models

MAKE = {"AlexNet": models.alexnet, "VGG16": models.vgg16, "SqueezeNet": models.squeezenet1_1}
AFTER = {"AlexNet": [1, 4, 7, 9, 11], "VGG16": [3, 8, 15, 22, 29], "SqueezeNet": [1, 4, 7, 9, 10, 11, 12]}
OF_THE_PACKAGE = {"AlexNet": "alex", "VGG16": "vgg", "SqueezeNet": "squeeze"}


@pytest.fixture(scope="module")
def networks():
    """torchvision's networks without the layers that name things, which are large; random as they are begun with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {name: make(weights=None, num_classes=2).eval().requires_grad_(False) for name, make in MAKE.items()}


@pytest.fixture(scope="module")
def towers(networks):
    return {name: LpipsTower(networks[name].state_dict(), name, "cpu", torch.float32) for name in MAKE}


def pictures(count=2, height=66, width=90, seed=0, dtype=torch.float32):
    return tiny_rewards.pictures(count, height, width, seed=seed, dtype=dtype).clamp(0, 1)


def by_the_formula(name, network, image, reference):
    """Return the distance of one picture, channel by channel."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    found, wanted = ((each - mean[:, None, None]) / std[:, None, None] for each in (image, reference))
    found, wanted, total, layer = found[None], wanted[None], 0, 0
    counts = load_file(weights.__file__.replace("weights.py", "lpips.safetensors"))
    for place, step in enumerate(network.features):
        found, wanted = step(found), step(wanted)
        if place in AFTER[name]:
            lengths = [(each**2).sum(dim=1).sqrt() + 1e-10 for each in (found, wanted)]
            for channel, weight in enumerate(counts[f"{name}.{layer}"]):
                difference = found[:, channel] / lengths[0] - wanted[:, channel] / lengths[1]
                total = total + weight * (difference**2).mean()
            found, wanted, layer = found.clone(), wanted.clone(), layer + 1
    return total


@pytest.mark.parametrize("name", MAKE)
def test_the_score_is_minus_the_distance_of_the_formula(networks, towers, name):
    images, (reference,) = pictures(), pictures(1, seed=5)
    expected = -torch.stack([by_the_formula(name, networks[name], image, reference) for image in images])
    found = score(rewards.LPIPS(towers[name], reference[None]), images)
    assert (expected[0] - expected[1]).abs() > 1e-3 * expected[0].abs()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not find_spec("lpips"), reason="needs the package lpips")
@pytest.mark.parametrize("name", MAKE)
def test_scores_and_gradients_are_those_of_the_package_lpips(networks, towers, name):
    import lpips

    theirs = lpips.LPIPS(net=OF_THE_PACKAGE[name], pnet_rand=True, verbose=False)
    slices = (step for part in theirs.net.children() for step in part)
    for mine, other in zip(networks[name].features, slices, strict=False):
        other.load_state_dict(mine.state_dict())
    images, reference = pictures().requires_grad_(), pictures(1, seed=5)
    expected = -theirs(images, reference, normalize=True).flatten()
    (expected_gradient,) = torch.autograd.grad(expected.sum(), images)
    found, gradient = exact(rewards.LPIPS(towers[name], reference), images.detach())
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-6)
    assert (gradient - expected_gradient).norm() < 1e-3 * expected_gradient.norm()


@pytest.mark.parametrize("name", MAKE)
def test_gradients_agree_with_differences_of_scores(networks, name):
    tower = LpipsTower(networks[name].state_dict(), name, "cpu", torch.float64)
    reward = rewards.LPIPS(tower, pictures(1, seed=5, dtype=torch.float64))
    # No flat parts: where neighbours are equal the largest of them has a bend.
    images = 0.4 + 0.2 * tiny_rewards.pictures(1, 40, 57, dtype=torch.float64)
    direction = tiny_rewards.pictures(1, 40, 57, seed=1, dtype=torch.float64)
    check_gradient(reward, images, direction, step=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", MAKE)
def test_a_picture_is_at_no_distance_from_itself_and_the_gradient_there_is_finite(towers, name):
    images = pictures()
    found, gradient = exact(rewards.LPIPS(towers[name], images[:1]), images)
    assert -1e-6 < found[0] <= 0 and found[1] < -1e-3 and gradient.isfinite().all()


def test_places_where_a_layer_says_nothing_have_a_finite_gradient(networks):
    state = {name: torch.zeros_like(value) for name, value in networks["AlexNet"].state_dict().items()}
    tower = LpipsTower(state, "silent", "cpu", torch.float32)
    found, gradient = exact(rewards.LPIPS(tower, pictures(1, seed=5)), pictures())
    assert (found == 0).all() and (gradient == 0).all()


def test_of_several_references_the_mean_counts_and_each_is_resized(towers):
    images, first, second = pictures(), pictures(1, seed=5), pictures(1, seed=6)
    tower = towers["SqueezeNet"]
    alone = [score(rewards.LPIPS(tower, one), images) for one in (first, second)]
    both = score(rewards.LPIPS(tower, torch.cat([first, second])), images)
    torch.testing.assert_close(both, sum(alone) / 2)
    doubled = first.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert (score(rewards.LPIPS(tower, doubled), first) > 0.2 * alone[0]).all()


def test_scores_of_a_batch_are_those_of_its_pictures(towers):
    reward, images = rewards.LPIPS(towers["SqueezeNet"], pictures(1, seed=5)), pictures(18)
    singles = [score(reward, images[row : row + 1]) for row in range(18)]
    torch.testing.assert_close(score(reward, images), torch.cat(singles), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MAKE)
def test_ten_ascent_steps_raise_the_score(towers, name):
    reward, images = rewards.LPIPS(towers[name], pictures(1, seed=5)), pictures()
    assert (gained_by_ten_steps(reward, images) > 0).all()


def test_everything_may_happen_in_inference_mode(networks, towers):
    images, reference = pictures(), pictures(1, seed=5)
    expected, expected_gradient = exact(rewards.LPIPS(towers["SqueezeNet"], reference), images)
    with torch.inference_mode():
        made = LpipsTower(networks["SqueezeNet"].state_dict(), "made", "cpu", torch.float32)
        found, gradient = exact(rewards.LPIPS(made, reference.clone()), images.clone())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("name", MAKE)
def test_no_more_memory_is_used_than_was_asked_for(networks, name):
    tower, alive, noted = LpipsTower(networks[name].state_dict(), name, "cpu", torch.float32), LiveBytes(), {}

    def note(memory):
        alive.peak = alive.now
        noted.update(asked=memory, before=alive.now)

    tower.on_use = note
    reward, images = rewards.LPIPS(tower, pictures(1, seed=5)), pictures(1, 224, 224)
    with alive:
        exact(reward, images)
    assert noted["asked"] / 2 < alive.peak - noted["before"] < noted["asked"]


@pytest.mark.parametrize("name", MAKE)
def test_the_layers_are_torchvisions(networks, name):
    mine, theirs = LAYERS[name]().state_dict(), networks[name].features.state_dict()
    assert {key: value.shape for key, value in mine.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("make", [models.vgg19, models.vgg16_bn, models.vgg11, models.squeezenet1_0, models.resnet18])
def test_other_networks_of_torchvision_are_not_taken_for_one(make):
    with torch.device("meta"):
        state = make(weights=None).state_dict()
    with pytest.raises(ValueError, match="is of no known kind"):
        weights.kind_of(state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tower, build: rewards.LPIPS(tower, torch.full((1, 3, 64, 64), torch.nan)), "reference holds NaN"),
        (lambda tower, build: rewards.LPIPS(build("CLIPScore L").tower, pictures(1)), "kind LPIPS.*Use LPIPS: alexnet"),
        (
            lambda tower, build: rewards.LPIPS(tower, pictures(1))(pictures(1, 24, 64)),
            r"pictures are \(24, 64\); expected 32 x 32 at least",
        ),
    ],
)
def test_wrong_pictures_and_towers_are_refused(towers, build, make, message):
    with pytest.raises(ValueError, match=message):
        make(towers["SqueezeNet"], build)
