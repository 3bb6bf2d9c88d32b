"""The pretend device itself: the CPU's numbers and gradients, CUDA's refusals, and what it counts."""

import copy

import pytest
import torch
from second_device import counting, jitter, without_float64
from torch.nn import functional as F

OPERATIONS = {
    "arithmetic": lambda x: (2 * x - 1) / (x.square() + 3) + x**3,
    "in place on a view": lambda x: x.clone()[:, 1:].mul_(x[:, 1:]).add_(1),
    "assigned rows": lambda x: x.clone().index_put((torch.tensor([1, 0]),), x[:2] * 2),
    "boolean mask": lambda x: x[x > 0],
    "where": lambda x: torch.where(x > 0, x.exp(), torch.zeros(())),
    "cat and stack": lambda x: torch.cat([x, torch.stack([x[0], x[1]])]).flatten(1).diff(dim=1),
    "sorted": lambda x: x.sort(dim=-1).values.cumsum(-1),
    "norms": lambda x: x.flatten(1).norm(dim=1) + x.abs().amax(dim=(1, 2, 3)) + x.std(dim=(1, 2, 3)),
    "softmax": lambda x: x.softmax(-1).log(),
    "product": lambda x: x @ x.mT,
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x),
    "convolution": lambda x: F.conv2d(x, x[:3, :, :3, :3], padding=1, stride=2),
    "convolution upwards": lambda x: F.conv_transpose2d(x, x[:, :, :3, :3].transpose(0, 1), stride=2),
    "linear": lambda x: F.linear(x, x[0, 0], x[0, 0, 0]),
    "attention": lambda x: F.scaled_dot_product_attention(x, x + 1, x * 2),
    "group norm": lambda x: F.group_norm(x, 2, x[0, :, 0, 0], x[1, :, 0, 0]),
    "layer norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "activations": lambda x: F.gelu(x) + F.silu(x) + torch.tanh(x) + F.softplus(x),
    "resized": lambda x: F.interpolate(x, size=(5, 9), mode="bicubic", antialias=True),
    "pooled and padded": lambda x: F.pad(F.avg_pool2d(x, 2, ceil_mode=True), (1, 1, 0, 2), mode="replicate"),
    "embedding": lambda x: F.embedding(torch.tensor([1, 0], device=x.device), x[0, 0]),
    "eigenvalues": lambda x: torch.linalg.eigvalsh(x[:, 0, :3, :3] + x[:, 0, :3, :3].mT),
    "unfolded": lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(2),
}


def numbers(seed=0):
    return torch.randn((3, 4, 6, 6), generator=torch.Generator().manual_seed(seed))


def with_gradient(operation, x):
    """Return the result, and the gradient of a weighted sum of it."""
    x = x.detach().requires_grad_()
    result = operation(x)
    weights = torch.arange(1.0, result.numel() + 1).view(result.shape).to(x.device) / result.numel()
    return result.detach(), torch.autograd.grad(result, x, weights)[0]


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_results_and_gradients_are_the_cpus(pretend, operation):
    for found, expected in zip(
        with_gradient(operation, numbers().to(pretend)), with_gradient(operation, numbers()), strict=True
    ):
        assert found.device == pretend
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_a_module_trains_on_it_as_on_the_cpu(pretend):
    torch.manual_seed(0)
    ours = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.ReLU())
    theirs = copy.deepcopy(ours).to(pretend)
    for module in (ours, theirs):
        optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
        for seed in range(3):
            optimizer.zero_grad()
            module(numbers(seed).to(module[0].weight.device)).square().mean().backward()
            optimizer.step()
    again = copy.deepcopy(theirs)
    assert again[0].weight.device == pretend and again[0].weight.data_ptr() != theirs[0].weight.data_ptr()
    for name, expected in ours.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name].cpu(), expected)


def test_views_share_their_memory(pretend):
    x = torch.zeros(2, 3, device=pretend)
    x[1].view(3, 1).copy_(torch.ones(3, 1, device=pretend))
    assert x.tolist() == [[0, 0, 0], [1, 1, 1]]
    with torch.inference_mode():
        assert (x + 1).is_inference() and not x[0].is_inference()


def test_it_refuses_two_devices_and_takes_numbers_and_indices(pretend):
    x = torch.arange(6.0, device=pretend).view(2, 3)
    for refused in (
        lambda: x + torch.ones(3),
        lambda: torch.cat([x, torch.ones(1, 3)]),
        lambda: torch.where(torch.ones(2, 3, dtype=torch.bool), x, x),
        lambda: torch.stack([x[0, 0], torch.tensor(1.0)]),
        lambda: x.add_(torch.ones(3)),
        lambda: x.index_select(0, torch.tensor([1])),
        lambda: F.embedding(torch.tensor([0]), x),
        lambda: F.conv2d(x.view(1, 1, 2, 3), torch.ones(1, 1, 1, 1)),
    ):
        with pytest.raises(RuntimeError, match="two devices"):
            refused()
    assert (x * torch.tensor(2.0)).sum() == 30
    assert x[torch.tensor([1])].tolist() == [[3, 4, 5]]
    assert x[torch.tensor([False, True])].tolist() == [[3, 4, 5]]


def test_it_refuses_another_devices_generator(pretend):
    with pytest.raises(RuntimeError, match="Expected a 'pretend' device type for generator"):
        torch.randn(3, generator=torch.Generator(), device=pretend)
    assert torch.randn(3, device=pretend).device == pretend


def test_without_float64_it_refuses_to_hold_any(pretend):
    with without_float64():
        x = torch.ones(2, device=pretend)
        for refused in (
            lambda: x.double(),
            lambda: torch.ones(2, dtype=torch.float64).to(pretend),
            lambda: torch.zeros(2, dtype=torch.float64, device=pretend),
            lambda: torch.full((2,), 1.0, dtype=torch.float64, device=pretend),
        ):
            with pytest.raises(TypeError, match="doesn't support float64"):
                refused()
        assert x.cpu().double().sum() == 2
    assert x.double().dtype == torch.float64


def test_jitter_moves_products_by_its_size_each_time_otherwise_and_nothing_else(pretend):
    x = numbers().to(pretend)
    exact = F.conv2d(x, x).cpu()
    with jitter(1e-2):
        first, second = (F.conv2d(x, x).cpu() for _ in range(2))
        assert torch.equal((x + x).cpu(), 2 * numbers())
    for found, expected in ((first, exact), (second, exact), (second, first)):
        assert 2e-3 < ((found - expected) / expected).square().mean().sqrt() < 5e-2
    assert torch.equal(F.conv2d(x, x).cpu(), exact)


def test_it_counts_what_makes_the_host_wait(pretend):
    x = torch.arange(4.0).to(pretend)
    mask = x > 1
    for waiting, expected in {
        lambda: x.sum().item(): 1,
        lambda: bool((x > 1).any()): 1,
        lambda: x[mask]: 1,
        lambda: x.cpu(): 1,
        lambda: x.copy_(torch.ones(4)): 1,
        lambda: torch.where(mask, x, 2 * x).sum() * 2: 0,
        lambda: x[1:3].clone(): 0,
    }.items():
        with counting() as counts:
            waiting()
        assert counts.synchronisations.total() == expected, counts


def test_it_counts_living_bytes_and_their_peak(pretend):
    before = torch.zeros(500, device=pretend)
    with counting() as counts:
        x = torch.zeros(1000, device=pretend)
        view = x[:500]
        del before  # was not counted
        assert counts.bytes == 4000
        del x
        assert counts.bytes == 4000
        del view
        assert counts.bytes == 0 and counts.peak == 4000


def test_autocast_lowers_products_and_takes_scores_as_they_are(pretend):
    x = numbers().to(pretend)
    with torch.autocast("pretend", dtype=torch.bfloat16):
        assert (x @ x).dtype == F.conv2d(x, x).dtype == F.linear(x, x[0, 0]).dtype == torch.bfloat16
        assert (x + x).dtype == x.sum().dtype == torch.float32
        with torch.autocast("pretend", enabled=False):
            assert (x @ x).dtype == torch.float32
