"""Tensors that autograd accepts, over the storage of inference tensors: of every kind, wherever they hang."""

import importlib.util
import operator

import pytest
import torch
from comfy_server.server import PACK
from torch.overrides import _get_current_function_mode
from torch.testing._internal.two_tensor import TwoTensor

# By its path: its package imports ComfyUI.
SPEC = importlib.util.spec_from_file_location("weights", PACK / "nodes" / "weights.py")
weights = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(weights)


class Stored(torch.Tensor):
    """As packs keep quantised weights: bytes of a class of their own, with what tells how to read them."""


def born(make):
    with torch.inference_mode():
        return make()


def stored():
    tensor = torch.arange(6.0).view(2, 3).t().as_subclass(Stored)
    tensor.kind = "Q4"
    return tensor


KINDS = {
    "plain": lambda: torch.arange(6.0).view(2, 3).t(),
    "a slice": lambda: torch.arange(6.0)[2:4],
    "parameter": lambda: torch.nn.Parameter(torch.arange(3.0)),
    "subclass": stored,
    "wrapper": lambda: TwoTensor(torch.arange(3.0), torch.arange(3.0)),
}


@pytest.mark.parametrize("asked_in_inference_mode", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_renewed_tensor_is_the_same_but_for_what_autograd_refuses(kind, asked_in_inference_mode):
    old = born(KINDS[kind])
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        torch.ones(1, requires_grad=True) * old
    with torch.inference_mode(asked_in_inference_mode):
        new = weights.renewed(old)
    assert type(new) is type(old) and not new.requires_grad and getattr(new, "kind", "") == getattr(old, "kind", "")
    one, other = (new.a, old.a) if kind == "wrapper" else (new, old)
    assert one.data_ptr() == other.data_ptr() and one.stride() == other.stride() and not one.is_inference()
    x = torch.ones(1, requires_grad=True)
    (gradient,) = torch.autograd.grad((x * new).sum(), x)
    assert float(gradient) == float(torch.as_tensor(other).sum())


def test_rewrap_finds_parameters_buffers_attributes_and_the_latent_formats_statistics():
    class Format:
        pass

    def model():
        network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
        network[1].cached, network.latent_format = [{"keys": (torch.ones(1),)}], Format()
        network.latent_format.mean = network[1].mean = torch.ones(2)
        return network

    network = born(model)
    weights.rewrap(network)
    found = [*network.parameters(), *network.buffers(), network[1].cached[0]["keys"][0], network.latent_format.mean]
    assert len(found) == 9 and not any(tensor.is_inference() for tensor in found)
    assert network.latent_format.mean is network[1].mean, "what was one tensor stays one"


def test_rewrap_takes_the_gradient_of_its_own_from_a_weight():
    """Of a model that was loaded outside of inference mode: a search would compute it for nothing."""
    network = torch.nn.Linear(2, 2)
    before = network.weight
    weights.rewrap(network)
    assert not network.weight.requires_grad and network.weight.data_ptr() == before.data_ptr()
    assert isinstance(network.weight, torch.nn.Parameter)


def test_rewrap_leaves_quantised_weights_and_layers_in_dynamic_video_memory_as_they_are():
    network = torch.nn.Sequential(torch.nn.Module(), born(lambda: torch.nn.Linear(2, 2)))
    network[0].weight, network[1]._v = born(KINDS["wrapper"]), "a place in ComfyUI's bookkeeping"
    weights.rewrap(network)
    assert network[0].weight.is_inference() and network[1].weight.is_inference()


def test_what_holds_nothing_to_thaw_is_returned_itself():
    options = {"patches": [torch.ones(1), {"blocks": (1, "a")}]}
    assert weights.thaw(options) is options
    mask = born(lambda: torch.ones(1))
    thawed = weights.thaw({"patches": [mask, options]})
    assert not thawed["patches"][0].is_inference() and thawed["patches"][0].data_ptr() != mask.data_ptr()
    assert thawed["patches"][1] is options


class Conditioning:
    """As ComfyUI's CONDRegular and its kin: a tensor, and a copy with another."""

    def __init__(self, cond):
        self.cond = cond

    def _copy_with(self, cond):
        return type(self)(cond)


def test_a_conditioning_is_thawed():
    given = {"c_crossattn": Conditioning([born(lambda: torch.ones(1))])}
    thawed = weights.thaw(given)
    assert type(thawed["c_crossattn"]) is Conditioning and not thawed["c_crossattn"].cond[0].is_inference()
    assert given["c_crossattn"].cond[0].is_inference()


def test_what_holds_itself_is_thawed_once():
    options = {"mask": born(lambda: torch.ones(1)), "patches": [1]}
    options["patches"].append(options)
    thawed = weights.thaw(options)
    assert not thawed["mask"].is_inference() and thawed["patches"][1]["patches"] is options["patches"]
    module = torch.nn.Module()
    module.cached = {"mask": options["mask"]}
    module.cached["itself"] = module.cached
    weights.rewrap(module)
    assert not module.cached["mask"].is_inference()


def test_what_is_in_two_places_stays_one():
    shared = [born(lambda: torch.ones(1))]
    thawed = weights.thaw({"one": shared, "other": shared})
    assert thawed["one"] is thawed["other"] and not thawed["one"][0].is_inference()
    parts = torch.nn.Sequential(torch.nn.Module(), torch.nn.Module())
    parts[0].cached = parts[1].cached = shared
    weights.rewrap(parts)
    assert parts[0].cached is parts[1].cached and not parts[0].cached[0].is_inference()


class Part:
    """A part of a model that multiplies by a tensor of inference mode which it holds out of reach."""

    def __init__(self):
        self.calls, self._mask = 0, born(lambda: torch.full((1,), 3.0))

    def __call__(self, x):
        self.calls += 1
        return x * self._mask


def test_a_part_runs_again_with_tensors_renewed_where_autograd_refuses_one_and_from_then_on_at_once():
    part, renewal, x = Part(), weights.Renewal(), torch.ones(1, requires_grad=True)
    with torch.no_grad():
        assert renewal(part, x) == 3 and part.calls == 1 and not renewal.needed
    for calls in (3, 4):
        (gradient,) = torch.autograd.grad(renewal(part, x), x)
        assert gradient == 3 and part.calls == calls and renewal.needed


def test_what_is_not_differentiated_runs_as_it_is():
    renewal, modes = weights.Renewal(), []
    renewal.needed = True
    for with_gradient in (False, True):
        with torch.set_grad_enabled(with_gradient):
            renewal(lambda: modes.append(_get_current_function_mode()))
    assert modes[0] is None and modes[1] is not None


def test_a_tensor_of_inference_mode_that_is_changed_is_not_renewed():
    """The gradient that goes into it would be lost for who reads the old one."""
    mask, renewal, x = born(lambda: torch.ones(1)), weights.Renewal(), torch.ones(1, requires_grad=True)
    renewal.needed = True
    for change in (lambda x: mask.mul_(x), lambda x: mask.__setitem__(0, x[0]), lambda x: torch.mul(x, x, out=mask)):
        with pytest.raises(RuntimeError):
            renewal(change, x)
    assert mask == 1


MASK, PLACES = born(lambda: torch.tensor([2.0, 3.0])), born(lambda: torch.tensor([1, 0]))


def with_items_set(x):
    result = torch.zeros(2)
    result[PLACES] = x * x
    return result


@pytest.mark.parametrize("change, expected", [
    (lambda x: (2 * x).mul_(MASK), [4.0, 6.0]),
    (lambda x: operator.imul(2 * x, MASK), [4.0, 6.0]),
    (lambda x: (2 * x).addcmul_(x, MASK), [4.0, 5.0]),
    (lambda x: (2 * x).mul_(other=MASK), [4.0, 6.0]),
    (with_items_set, [2.0, 4.0]),
])  # fmt: skip
def test_a_result_that_is_changed_by_a_tensor_of_inference_mode_has_its_gradient(change, expected):
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        change(x)
    (gradient,) = torch.autograd.grad(weights.Renewal()(change, x).sum(), x)
    assert gradient.tolist() == expected


def test_a_result_that_is_written_into_a_given_tensor_has_its_gradient():
    def part(x):
        double = 2 * x
        return torch.add(torch.sin(double), double, out=torch.empty(1))

    x = torch.ones(1, requires_grad=True)
    with pytest.raises(RuntimeError, match="out=... arguments don't support"):
        part(x)
    (gradient,) = torch.autograd.grad(weights.Renewal()(part, x), x)
    torch.testing.assert_close(gradient, 2 * torch.cos(2 * x.detach()) + 2)


def test_other_errors_are_raised_at_once():
    calls, renewal = [], weights.Renewal()

    def fail():
        calls.append(1)
        raise RuntimeError("another error")

    with pytest.raises(RuntimeError, match="another error"):
        renewal(fail)
    assert calls == [1] and not renewal.needed
