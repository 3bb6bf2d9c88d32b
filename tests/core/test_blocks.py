"""Gradients block by block against those of the same networks as autograd has them."""

import contextlib

import pytest
import tiny_pipelines
import torch
from comfyui_dno import core
from comfyui_dno.core.blocks import Blocks, blocks_of, mapped
from comfyui_dno.core.models.embedded import networks
from diffusers import LCMScheduler
from live_bytes import LiveBytes

WIDTH = 4


class Residual(torch.nn.Module):
    """x + outer(tanh(inner(x))), in float64, and a way to do something odd before that."""

    def __init__(self, odd=None):
        super().__init__()
        self.inner, self.outer, self.odd = torch.nn.Linear(WIDTH, 16), torch.nn.Linear(16, WIDTH), odd
        self.double().requires_grad_(False)

    def forward(self, x, *args, **kwargs):
        if self.odd is not None:
            x = self.odd(self, x, *args, **kwargs)
        return x + self.outer(torch.tanh(self.inner(x)))


class Network(torch.nn.Module):
    """Three residual blocks in a row; `call` says how each is called."""

    def __init__(self, odd=None, call=lambda block, x: block(x)):
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.call = torch.nn.ModuleList(Residual(odd) for _ in range(3)), call

    def forward(self, x):
        for block in self.blocks:
            x = self.call(block, x)
        return x


def given():
    return torch.randn(2, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradient(network, blocks=None):
    """Return the result and the gradient of its weighted sum: by blocks, or as it is."""
    x = given().requires_grad_()
    with contextlib.nullcontext() if blocks is None else blocks.checkpointed():
        y = network(x)
    weights = torch.arange(y.numel(), dtype=y.dtype).view_as(y)
    return y.detach(), torch.autograd.grad((y * weights).sum(), x)[0]


def check(make, whole=0):
    """Compare a network's two gradients, twice: the first time blocks are found out about; return the Blocks."""
    expected, network = gradient(make()), make()
    blocks = Blocks([network])
    assert len(blocks.all) == 3
    for _ in range(2):
        found = gradient(network, blocks)
        assert len(blocks.reruns) == 3 - whole
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert not blocks.unlike()
    assert sum(block.whole for block in blocks.all) == whole
    return blocks


def test_the_blocks_of_a_network_are_found_by_how_it_is_written():
    def names(network):
        return {type(block).__name__ for block in blocks_of(network)}

    assert names(networks.build_unet()) == {"ResnetBlock2D", "BasicTransformerBlock"}
    assert names(networks.build_vae().decoder) == {"ResnetBlock2D", "Attention"}
    assert names(tiny_pipelines.stable_diffusion_3().transformer) == {"JointTransformerBlock"}
    assert names(tiny_pipelines.flux().transformer) == {
        "FluxTransformerBlock", "FluxSingleTransformerBlock",
    }  # fmt: skip


def test_a_block_with_a_row_of_smaller_ones_in_it_is_one_if_much_is_outside_of_those():
    class Experts(torch.nn.Module):
        def __init__(self, count):
            super().__init__()
            self.attention = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
            self.experts = torch.nn.ModuleList(Residual() for _ in range(count))

    few, many = (torch.nn.Sequential(Experts(count)) for count in (2, 4))  # 2 of 6 layers outside, 2 of 10
    assert blocks_of(few) == [few[0]] and blocks_of(many) == list(many[0].experts)


def test_a_plain_block():
    check(Network)


def test_tensors_come_as_arguments_keywords_and_in_lists():
    def odd(block, x, context, pair, scale):
        return x * context + pair[0] * pair[1]["deep"] + scale

    def call(block, x):
        return block(x, x.sin(), [x, {"deep": x.cos()}], scale=torch.ones((), dtype=x.dtype))

    check(lambda: Network(odd, call))


def test_results_come_in_tuples_and_dicts_and_may_be_what_was_given():
    class Pair(Residual):
        def forward(self, x):
            return {"x": super().forward(x), "rest": (x, None, "text")}

    def make():
        network = Network(call=lambda block, x: block(x)["x"] + block(x)["rest"][0])
        network.blocks = torch.nn.ModuleList(Pair() for _ in range(3))
        for new, old in zip(network.blocks, Network().blocks, strict=True):
            new.load_state_dict(old.state_dict())
        return network

    expected, network = gradient(make()), make()
    blocks = Blocks([network])
    torch.testing.assert_close(gradient(network, blocks), expected, rtol=1e-12, atol=1e-12)
    assert len(blocks.reruns) == 3  # of each block the second call, whose new tensor is not used, is not run again


def test_a_dict_that_goes_on_changing_is_as_it_was_in_the_second_run():
    """ComfyUI writes each block's number into the transformer options, which the patches of blocks go by."""
    options = {}

    def odd(block, x, options):
        return x * (1 + options["number"]) + options["many"][-1]

    def make():
        numbers = iter(range(100))

        def call(block, x):
            options["number"] = next(numbers) % 3
            options["many"] = [options["number"]] * 2
            return block(x, options=options)

        return Network(odd, call)

    check(make)


def test_what_a_block_writes_into_a_list_is_a_result():
    """The decoders of Wan and Qwen-Image pass a cache from block to block, and a place in it that goes on."""

    def odd(block, x, cache, place):
        before, cache[place[0]] = cache[place[0]], x.tanh()
        place[0] += 1
        return x if before is None else x * before

    class Cached(Network):
        def forward(self, x):
            cache = [None] * 3
            for _ in range(2):  # two frames
                place = [0]
                for block in self.blocks:
                    x = block(x, cache, place=place)
                assert place == [3]
            return x + cache[1]

    expected, network = gradient(Cached(odd)), Cached(odd)
    blocks = Blocks([network])
    for _ in range(2):
        torch.testing.assert_close(gradient(network, blocks), expected, rtol=1e-12, atol=1e-12)
        assert len(blocks.reruns) == 6 and not blocks.unlike()


def test_lists_that_are_emptied_outside_of_blocks_are_not_emptied_again():
    """ControlNet's residuals are popped by the network while its blocks run."""

    class Controlled(Network):
        def forward(self, x):
            left = [x.sin(), x.cos(), x.tanh()]
            for block in self.blocks:
                x = block(x) + left.pop()
            return x

    check(Controlled)


def test_a_block_may_change_in_place_what_it_is_given_and_return_it():
    class InPlace(Residual):
        def forward(self, x):
            x += self.outer(torch.tanh(self.inner(x.clone())))
            return x

    def make():
        network = Network(call=lambda block, x: block(x * 1.5))
        for number, old in enumerate(list(network.blocks)):
            network.blocks[number] = InPlace()
            network.blocks[number].load_state_dict(old.state_dict())
        return network

    blocks = check(make)
    assert [block.copied for block in blocks.all] == [{0}] * 3


def test_a_block_that_changes_in_place_what_it_does_not_return_is_left_whole():
    def odd(block, x, other):
        other += x.sin()
        return x

    def call(block, x):
        other = x * 2
        return block(x, other) + other

    check(lambda: Network(odd, call), whole=3)


def test_a_result_may_be_changed_in_place_by_the_network_also_where_it_is_a_view():
    class View(Residual):
        def forward(self, x):
            return super().forward(x).flip(0)[:, :]

    class Outer(Network):
        def forward(self, x):
            for block in self.blocks:
                x = View.forward(block, x) if not isinstance(block, View) else block(x)
                x += 1.0
                x = x * x.sin()
            return x

    def make():
        network = Outer()
        for number, old in enumerate(list(network.blocks)):
            network.blocks[number] = View()
            network.blocks[number].load_state_dict(old.state_dict())
        return network

    check(make)


def test_a_block_whose_result_depends_on_x_in_a_hidden_way_is_left_whole():
    """A closure or an attribute that holds a tensor with a graph, which the block is not given."""

    def call(block, x):
        block.hidden = x.sin()
        return block(x)

    check(lambda: Network(lambda block, x: x * block.hidden, call), whole=3)


def test_a_block_with_a_state_is_found_out_and_left_whole():
    """What an attention keeps for a later block of the same call is gone when its own turn comes again."""

    def odd(block, x):
        network["calls"] += 1
        return x * (1.0 + network["calls"])

    network = {"calls": 0}
    blocks = Blocks([made := Network(odd)])
    gradient(made, blocks)
    assert blocks.unlike() == ["Residual"]
    network["calls"] = 0
    expected = gradient(Network(odd))
    network["calls"] = 0
    torch.testing.assert_close(gradient(made, blocks), expected, rtol=1e-12, atol=1e-12)
    assert not blocks.reruns and all(block.whole for block in blocks.all)


@pytest.mark.parametrize("place", ["denoise", "decode"])
def test_a_map_with_such_a_block_has_the_right_gradient_from_the_first_on(place):
    def odd(block, x):
        block.calls = getattr(block, "calls", 0) + 1
        return x * (2.0 + block.calls % 2)  # the second of a call's two runs is another

    def build(memory):
        network = Network(odd)
        network.call = lambda block, x: (setattr(block, "calls", 0), block(x))[1]
        settings = {place: lambda x, *sigma: network(x.flatten(1)).view_as(x)}
        settings |= {"blocks" if place == "denoise" else "decoder_blocks": Blocks([network]), "memory": memory}
        settings.setdefault("denoise", lambda x, sigma: x / 2)
        return core.SampleMap(schedule=core.Schedule([3.0, 1.0, 0.0]), shape=(2, 1, 2, 2), **settings)

    found = []
    for memory in ("step", "low"):
        noise_map = build(memory)
        images, vjp = noise_map.pullback(noise_map.randn(0).to(torch.float64))
        found.append(vjp(torch.ones_like(images)).flat())
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    assert all(block.whole for block in (noise_map.blocks or noise_map.decoder_blocks).all)


def test_random_numbers_autocast_and_weights_are_those_of_the_first_run():
    """Decoders draw noise of their own; hooks of prompts put other weights in place for the next prompt's call."""

    def odd(block, x):
        assert torch.is_autocast_enabled("cpu")
        return x + torch.randn(x.shape, dtype=x.dtype)

    class Hooked(Network):
        def forward(self, x):
            torch.manual_seed(3)
            with torch.autocast("cpu", torch.bfloat16):
                for factor in (1.0, 2.0):
                    for block in self.blocks:
                        own = block.inner.weight
                        block.inner.weight = torch.nn.Parameter(own.detach() * factor, requires_grad=False)
                        x = block(x).double()
                        block.inner.weight = own
            return x

    expected, network = gradient(Hooked(odd)), Hooked(odd)
    blocks = Blocks([network])
    weights = [block.inner.weight for block in network.blocks]
    state = torch.manual_seed(3).get_state()
    torch.testing.assert_close(gradient(network, blocks), expected, rtol=1e-12, atol=1e-12)
    assert len(blocks.reruns) == 6 and not blocks.unlike()
    assert all(block.inner.weight is weight for block, weight in zip(network.blocks, weights, strict=True))
    assert not torch.equal(torch.random.get_rng_state(), state)


def test_forwards_are_given_back_as_they_were_on_every_way_out():
    network = Network()
    own = network.blocks[1].forward = lambda x: x * 2
    for error in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(error), Blocks([network]).checkpointed():
            raise error
        assert ["forward" in vars(block) for block in network.blocks] == [False, True, False]
        assert network.blocks[1].forward is own


def test_a_block_that_is_interrupted_in_its_second_run_leaves_its_weights_and_the_random_numbers_as_they_were():
    class Interrupted(Exception):
        pass

    def odd(block, x):
        torch.rand(1)
        if torch.is_grad_enabled() and x.requires_grad:
            torch.rand(5)
            raise Interrupted
        return x

    network = Network(odd)
    state, weights = torch.random.get_rng_state(), [block.inner.weight for block in network.blocks]
    with pytest.raises(Interrupted):
        gradient(network, Blocks([network]))
    state_after = torch.random.get_rng_state()
    torch.random.set_rng_state(state)
    torch.rand(3)
    assert torch.equal(torch.random.get_rng_state(), state_after)
    assert all(block.inner.weight is weight for block, weight in zip(network.blocks, weights, strict=True))


def test_nothing_is_done_where_no_gradient_is_asked_for():
    network = Network()
    blocks = Blocks([network])
    with blocks.checkpointed(), torch.no_grad():
        network(given())
    with blocks.checkpointed():
        network(given())
    assert all(block.copied is None for block in blocks.all)


def test_lists_that_hold_themselves_are_looked_into_once():
    box = [1]
    box.append(box)
    copy = mapped(box, lambda leaf: leaf + 1)
    assert copy[0] == 2 and copy[1] is copy and box[0] == 1


PIPELINES = {
    "sd": tiny_pipelines.stable_diffusion,
    "sdxl": tiny_pipelines.stable_diffusion_xl,
    "sd3": tiny_pipelines.stable_diffusion_3,
    "flux": tiny_pipelines.flux,
    "lcm": lambda: tiny_pipelines.latent_consistency(LCMScheduler()),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipelines_gradient_is_the_same_at_every_setting(name):
    pipeline, found = PIPELINES[name](), {}
    for memory in ("fast", "step", "low"):
        noise_map = core.from_pipeline(pipeline, "white duck", steps=2, eta=1.0, memory=memory)
        images, vjp = noise_map.pullback(noise_map.randn(0))
        found[memory] = vjp(torch.linspace(-1, 1, images.numel()).view_as(images)).flat()
        for blocks in (noise_map.blocks, noise_map.decoder_blocks):
            assert blocks.all and all((block.copied is not None) == (memory == "low") for block in blocks.all)
            assert not any(block.whole for block in blocks.all)
    for memory in ("fast", "low"):  # rounding in float32
        torch.testing.assert_close(
            found[memory], found["step"], rtol=1e-5, atol=1e-5 * found["step"].abs().max().item()
        )


def test_a_step_costs_one_run_of_each_block_more_and_no_other_call_of_the_network():
    noise_map, calls = core.load_embedded("black cat", steps=2), {"blocks": 0, "unet": 0}
    unet = noise_map.blocks.networks[0]
    unet.register_forward_hook(lambda *_: calls.__setitem__("unet", calls["unet"] + 1))
    block = noise_map.blocks.all[0].module
    block.conv1.register_forward_hook(lambda *_: calls.__setitem__("blocks", calls["blocks"] + 1))
    found = []
    for memory in ("step", "low"):
        noise_map.memory, calls["unet"], calls["blocks"] = memory, 0, 0
        images, vjp = noise_map.pullback(noise_map.randn(0))
        vjp(torch.ones_like(images))
        found.append((calls["unet"], calls["blocks"]))
    assert found == [(4, 4), (4, 6)]


def test_the_memory_of_a_step_is_that_of_one_block_and_the_inputs_of_all():
    network = Network()
    network.blocks = torch.nn.ModuleList(Residual() for _ in range(24))
    x = torch.ones(1000, WIDTH, dtype=torch.float64, requires_grad=True)
    peaks = []
    for context in (contextlib.nullcontext(), Blocks([network]).checkpointed()):
        with LiveBytes() as live:
            with context:
                y = network(x).sum()
            torch.autograd.grad(y, x)
        peaks.append(live.peak)
        del y
    # Of each block autograd keeps tanh(..), 16 numbers a row; by blocks the x, 4 numbers, and of one block all.
    assert peaks[0] > 24 * 1000 * 16 * 8 > 2 * peaks[1]
