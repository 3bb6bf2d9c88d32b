"""A vector's numbers in another order, against PyTorch's own indexing."""

import pytest
import torch
from comfyui_dno.core import shuffle as module
from comfyui_dno.core.shuffle import Shuffle


def permutation(n, seed=0):
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[True, False], ids=["in two passes", "in one"])
def passes(request, monkeypatch):
    """Cut the short vectors of a test as long ones are, or leave them whole."""
    monkeypatch.setattr(module, "PART", 4 if request.param else 10**9)
    return 2 if request.param else 1


@pytest.mark.parametrize(("n", "kept"), [(97, 97), (97, 90), (1000, 993), (60, 60)])
@pytest.mark.parametrize("turn", [0, 1, 59, 60, 1001])
def test_it_picks_what_indexing_picks(passes, n, kept, turn):
    order, z = permutation(n), torch.randn(2, 3, n)
    shuffle = Shuffle(order, kept)
    assert len(shuffle._orders) == passes
    assert torch.equal(shuffle.pick(z, turn), z.roll(turn, dims=-1)[..., order[:kept]])


@pytest.mark.parametrize(("n", "kept"), [(97, 97), (97, 90), (1000, 993), (60, 60)])
@pytest.mark.parametrize("turn", [0, 1, 59, 60, 1001])
def test_what_is_put_back_is_the_transpose_of_picking(passes, n, kept, turn):
    """By the definition of a transpose, in whole numbers, which are exact."""
    shuffle = Shuffle(permutation(n), kept)
    one_by_one = torch.eye(n)
    picked = torch.stack([shuffle.pick(row[None], turn)[0] for row in one_by_one])
    found = torch.arange(1.0, kept + 1).expand(2, kept)
    assert torch.equal(shuffle.put_back(found, turn), found @ picked.T)


def test_a_long_vector_is_read_in_two_passes_on_a_cpu_alone():
    n = 13 * module.PART
    order = permutation(n)
    assert len(Shuffle(order, n)._orders) == 2 and len(Shuffle(order[: n // 2].argsort(), n // 2)._orders) == 1
    assert len(Shuffle(order, n, "meta")._orders) == 1
    z = torch.arange(n, dtype=torch.float32)  # below 2^24, so whole numbers still
    assert torch.equal(Shuffle(order, n).pick(z), z[order])


def test_four_bytes_a_number_are_kept_for_a_pass_and_none_for_the_way_back_before_it_is_asked_for(passes):
    shuffle = Shuffle(permutation(60), 57)
    assert kept_bytes(shuffle) == passes * 4 * 57 + 8 * 3
    shuffle.pick(torch.zeros(1, 60))
    assert kept_bytes(shuffle) == passes * 4 * 57 + 8 * 3
    shuffle.put_back(torch.zeros(1, 57))
    assert kept_bytes(shuffle) == passes * 4 * 57 + 8 * 3 + (passes - 1) * 4 * 57 + 4 * 60


def kept_bytes(shuffle):
    """Count whole storages: a part of a tensor keeps all of it."""
    tensors = [t for value in vars(shuffle).values() for t in (value if isinstance(value, list) else [value])]
    return sum(each.untyped_storage().nbytes() for each in tensors if torch.is_tensor(each))
