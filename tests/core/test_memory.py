"""How much of a pullback's graphs is kept: what fits, what is counted, and what happens where memory runs out."""

import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_dno import core, rewards
from comfyui_dno.core.memory import (
    DECODER,
    GIB,
    GUIDED,
    SHARE,
    STEP,
    Plan,
    Saved,
    Size,
    check_memory,
    free_bytes,
    is_out_of_memory,
)
from tiny_models import SIGMAS, decode

ROOT = Path(__file__).parents[2]
STEPS = len(SIGMAS["vp"]) - 1
ROWS, WIDTH, HIDDEN = 2, 36, 48
BLOCK = ROWS * HIDDEN * 4
"""Bytes that autograd keeps of one block: tanh(..)."""
NOISE_LEVELS = ROWS * 4
"""Bytes that it keeps of a step beside its blocks: what x is divided by."""


class Residual(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = torch.nn.Linear(WIDTH, HIDDEN), torch.nn.Linear(HIDDEN, WIDTH)

    def forward(self, x):
        return x + self.outer(torch.tanh(self.inner(x)))


def network(blocks=3):
    torch.manual_seed(0)
    return torch.nn.Sequential(*(Residual() for _ in range(blocks))).requires_grad_(False)


def map_of(net=None, watch=lambda: None, **settings):
    """A map of three blocks a step, (2, 1, 6, 6), float32; `watch` is called in each call of the network."""
    net = net or network()

    def denoise(x, sigma):
        watch()
        return net(x.flatten(1) / (1 + sigma[:, None])).view_as(x)

    return core.SampleMap(
        denoise, core.Schedule(SIGMAS["vp"]), (ROWS, 1, 6, 6), decode=lambda x: decode(x).expand(-1, 3, -1, -1),
        blocks=core.Blocks([net]), **settings,
    )  # fmt: skip


def gradient(noise_map, seed=0):
    images, vjp = noise_map.pullback(noise_map.randn(seed))
    return vjp(torch.linspace(-1, 1, images.numel()).view_as(images)).flat()


def calls_of(memory, pullbacks=1, **settings):
    """Return how often each of so many pullbacks calls the network, and the map."""
    calls = []
    noise_map = map_of(watch=lambda: calls.append(1), memory=memory, **settings)
    counts = []
    for _ in range(pullbacks):
        calls.clear()
        gradient(noise_map)
        counts.append(len(calls))
    return counts, noise_map


@pytest.mark.parametrize("memory", ["fast", "step", "low", "auto", 1, 1e-9, 0.5])
def test_the_gradient_is_the_same_at_every_setting(memory):
    noise_map, expected = map_of(memory=memory, free_memory=lambda: 10 * BLOCK), gradient(map_of())
    for _ in range(3):
        torch.testing.assert_close(gradient(noise_map), expected, rtol=1e-5, atol=1e-6)


def test_keep_graphs_means_what_it_meant_where_no_memory_is_set():
    for keep_graphs, memory in ((True, "fast"), (False, "step")):
        noise_map = map_of(keep_graphs=keep_graphs)
        assert noise_map.plan.memory == memory
    noise_map.keep_graphs = True
    assert noise_map.plan.memory == "fast"
    assert map_of(keep_graphs=True, memory="low").plan.memory == "low"


@pytest.mark.parametrize("memory", ["slow", 0, -1, float("nan"), float("inf"), True, ""])
def test_other_settings_are_refused(memory):
    with pytest.raises(ValueError, match="expected one of fast, step, low, auto, or a number of GiB above 0"):
        map_of(memory=memory)
    check_memory(None)


def test_what_autograd_would_keep_is_counted_by_storage_without_weights():
    net = network().requires_grad_(True)
    x = torch.ones(ROWS, WIDTH, requires_grad=True)
    blocks = core.Blocks([net])
    with Saved(blocks) as saved, blocks.counted(saved):
        y = (net(x).view(2, -1) * 2).exp()
    kept = 3 * BLOCK + 3 * x.nbytes + y.nbytes  # weights that have gradients need their inputs: x, and tanh's result
    assert saved.size == Size(kept, 3 * x.nbytes + y.nbytes, BLOCK)
    with pytest.raises(RuntimeError, match="this graph was made to count"):
        y.sum().backward()


def test_auto_keeps_what_fits_from_the_second_iteration_on():
    """In the first it counts, and runs each step again."""
    _, noise_map = calls_of("auto", free_memory=lambda: None)
    step, decoder = noise_map.plan.sizes[STEP].whole, noise_map.plan.sizes[DECODER].whole
    assert step == 3 * BLOCK + NOISE_LEVELS
    for fits in (0, 1, 2, STEPS):
        free = (decoder + (fits + 0.5) * step) / SHARE
        counts, noise_map = calls_of("auto", 3, free_memory=lambda free=free: free)
        assert noise_map.plan.kept == fits and not noise_map.plan.by_blocks
        assert counts == [2 * STEPS, 2 * STEPS - fits, 2 * STEPS - fits]


def test_auto_goes_block_by_block_where_one_step_does_not_fit():
    counts, noise_map = calls_of("auto", 2, free_memory=lambda: 2.9 * BLOCK / SHARE)
    assert STEP in noise_map.plan.by_blocks and noise_map.plan.kept == 0
    assert counts == [2 * STEPS, 2 * STEPS]
    assert all(block.copied is not None for block in noise_map.blocks.all)


def test_auto_keeps_graphs_of_blocks_where_whole_ones_do_not_fit():
    net = network(blocks=20)
    step, inputs = 20 * BLOCK + NOISE_LEVELS, 20 * ROWS * WIDTH * 4 + NOISE_LEVELS
    noise_map = map_of(net, memory="auto", free_memory=lambda: 0.99 * step / SHARE)
    for _ in range(2):
        gradient(noise_map)
    assert noise_map.plan.sizes[STEP] == Size(step, inputs, BLOCK)
    beside = noise_map.plan.sizes[DECODER].whole
    assert noise_map.plan.by_blocks == {STEP} and noise_map.plan.kept == (0.99 * step - beside) // inputs == 1


def test_a_number_of_gib_is_what_graphs_may_take():
    _, noise_map = calls_of("auto", free_memory=lambda: None)
    sizes = noise_map.plan.sizes
    gib = (sizes[DECODER].whole + 2.5 * sizes[STEP].whole) / GIB
    _, noise_map = calls_of(gib, 2)
    assert noise_map.plan.kept == 2


def test_where_free_memory_is_not_known_auto_runs_each_step_again():
    counts, noise_map = calls_of("auto", 2)
    assert counts == [2 * STEPS, 2 * STEPS] and not noise_map.plan.by_blocks


def out_of_memory():
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def test_where_kept_graphs_do_not_fit_after_all_the_steps_are_run_again():
    with_graph = []

    def watch():
        with_graph.append(torch.is_grad_enabled())
        if len(with_graph) == 3:
            out_of_memory()

    noise_map = map_of(watch=watch, memory="fast")
    torch.testing.assert_close(gradient(noise_map), gradient(map_of()), rtol=1e-5, atol=1e-6)
    assert with_graph == [True] * 3 + [False] * STEPS + [True] * STEPS and noise_map.plan.kept == 0


@pytest.mark.parametrize("memory", ["fast", "step", "auto"])
def test_a_step_that_does_not_fit_goes_block_by_block(memory):
    """The step's network fails with a graph, unless its blocks are checkpointed."""
    net = network()

    def watch():
        if torch.is_grad_enabled() and "forward" not in vars(net[0]):
            out_of_memory()

    noise_map = map_of(net, watch, memory=memory, free_memory=lambda: None)
    torch.testing.assert_close(gradient(noise_map), gradient(map_of(net)), rtol=1e-5, atol=1e-6)
    assert noise_map.plan.by_blocks == {STEP} and noise_map.plan.kept == 0


def test_kept_graphs_make_room_for_a_reward_that_needs_it():
    calls = []

    def reward(images, prompts):
        calls.append(1)
        if len(calls) == 1:
            out_of_memory()
        return images.mean(dim=(1, 2, 3))

    noise_map = map_of(memory="fast")
    problem = core.Problem(noise_map, reward)
    evaluation, _ = problem.gradient(noise_map.randn(0))
    assert evaluation.scores.isfinite().all() and noise_map.plan.kept == 0


def test_memory_that_no_setting_helps_is_raised_by_its_type():
    noise_map = map_of(watch=lambda: torch.is_grad_enabled() and out_of_memory(), memory="fast")
    with pytest.raises(torch.cuda.OutOfMemoryError):
        core.optimize(noise_map, rewards.Brightness(), noise_map.randn(0), core.GradientAscent(), iterations=1)


@pytest.mark.parametrize("solver", [core.LGD(scale=2.0, samples=2), core.Tilt(0.3)], ids=["LGD", "Tilt"])
def test_guided_runs_are_the_same_block_by_block(solver):
    found = []
    for memory in ("step", "low"):
        noise_map = map_of(memory=memory)
        result = core.optimize(noise_map, rewards.Brightness(), noise_map.randn(0), solver, iterations=1)
        found.append(result.history.rows[-1]["score"])
        assert not noise_map.blocks.reruns
    torch.testing.assert_close(*map(torch.tensor, found), rtol=1e-5, atol=1e-6)
    assert all(block.copied is not None for block in noise_map.blocks.all)


@pytest.mark.parametrize("memory, counted", [("step", True), ("low", True), ("fast", False)])
def test_who_wants_to_know_learns_what_graphs_take_where_none_are_kept_for_no_call_more(memory, counted):
    _, auto = calls_of("auto", free_memory=lambda: None)
    plain, _ = calls_of(memory, 2)
    calls = []
    noise_map = map_of(watch=lambda: calls.append(1), memory=memory)
    noise_map.plan.always_counts, by_blocks = True, set(noise_map.plan.by_blocks)
    found = [gradient(noise_map) for _ in range(2)]
    assert noise_map.plan.sizes == (auto.plan.sizes if counted else {})
    assert len(calls) == sum(plain) and noise_map.plan.by_blocks == by_blocks
    for each in found:
        torch.testing.assert_close(each, gradient(map_of()), rtol=1e-5, atol=1e-6)


def test_graphs_are_let_go_of_in_the_middle_of_a_run_where_another_setting_begins():
    """As where a reward's network must take the model's place in memory."""
    noise_map, watched = map_of(memory="fast"), []
    images, vjp = noise_map.pullback(noise_map.randn(0))
    watched += [weakref.ref(denoised) for _, denoised in vjp.graphs.values()]
    noise_map.memory = "low"
    assert len(watched) == STEPS and noise_map.plan.kept == 0
    assert not vjp.graphs and not any(each() for each in watched)
    found = vjp(torch.linspace(-1, 1, images.numel()).view_as(images)).flat()
    torch.testing.assert_close(found, gradient(map_of()), rtol=1e-5, atol=1e-6)
    assert all(block.copied is not None for block in noise_map.blocks.all) and not noise_map.plan.runs


def test_a_search_that_can_be_stopped_runs_by_the_plan_of_the_map_that_it_is_given():
    """So that who has the map learns what was counted, and can change its memory while the search runs."""
    noise_map, steps = map_of(memory="auto", free_memory=lambda: None), []
    noise_map.on_step = lambda *stage: steps.append(stage)
    settings = {"solver": core.GradientAscent(), "iterations": 1, "stop": lambda: False}
    on_step = noise_map.on_step
    core.optimize(noise_map, rewards.Brightness(), noise_map.randn(0), **settings)
    assert set(noise_map.plan.sizes) == {STEP, DECODER}
    assert steps and noise_map.on_step is on_step


GUIDED_SOLVERS = pytest.mark.parametrize(
    "solver", [core.LGD(scale=2.0, samples=2), core.Tilt(0.3), core.TrustAscent(tilt=0.3)], ids=lambda each: each.name
)


def guided(solver, net=None, watch=lambda: None, **settings):
    """Return the best score of one guided run, and the map that it was made on."""
    noise_map = map_of(net, watch, **settings)
    result = core.optimize(noise_map, rewards.Brightness(), noise_map.randn(0), solver, iterations=1)
    return torch.tensor(result.history.rows[-1]["score"]), noise_map


def sizes_of(solver):
    return guided(solver, memory="auto", free_memory=lambda: None)[1].plan.sizes


@GUIDED_SOLVERS
def test_a_guided_step_is_planned_with_the_decoder_beside_it(solver):
    """At the limit, where each of the two fits by itself; and with 1 % more than both take."""
    step, decoder = (sizes_of(solver)[stage].whole for stage in (STEP, DECODER))
    assert step == 3 * BLOCK + NOISE_LEVELS and sizes_of(solver)[GUIDED].whole == step + decoder
    expected, _ = guided(solver)
    for room, by_blocks in ((0.99 * (step + decoder), {GUIDED}), (1.01 * (step + decoder), set())):
        for settings in ({"memory": "auto", "free_memory": lambda room=room: room / SHARE}, {"memory": room / GIB}):
            found, noise_map = guided(solver, **settings)
            assert noise_map.plan.by_blocks == by_blocks
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
            assert all((block.copied is None) != bool(by_blocks) for block in noise_map.blocks.all)


def test_the_decoders_graph_is_counted_of_all_pictures_that_are_decoded_at_once():
    one, four = (sizes_of(core.LGD(samples=samples))[DECODER].whole for samples in (1, 4))
    assert four == 4 * one
    solvers = core.LGD(samples=4), core.Tilt(), core.Tilt(through="decoder")
    assert [solver.guesses(20) for solver in solvers] == [4, 1, 0]


@pytest.mark.parametrize("solver", [core.LGD(samples=2), core.Tilt()], ids=lambda each: each.name)
def test_counting_costs_a_guided_search_one_call_of_the_network(solver):
    counts = []
    for memory in ("step", "auto"):
        calls = []
        guided(solver, watch=lambda calls=calls: calls.append(1), memory=memory)
        counts.append(len(calls))
    assert counts[1] == counts[0] + 1


@GUIDED_SOLVERS
@pytest.mark.parametrize("memory", ["fast", "step", "auto"])
def test_a_guided_step_that_does_not_fit_goes_block_by_block(solver, memory):
    """The network fails with a graph, unless its blocks are checkpointed."""
    net, expected = network(), None
    expected, _ = guided(solver, net)

    def watch():
        if torch.is_grad_enabled() and "forward" not in vars(net[0]):
            out_of_memory()

    found, noise_map = guided(solver, net, watch, memory=memory, free_memory=lambda: None)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert GUIDED in noise_map.plan.by_blocks


def test_a_guided_step_without_memory_leaves_the_graphs_that_later_runs_keep():
    plan = Plan(core.Blocks([network()]))
    plan.follow("fast")
    assert [plan.lower(GUIDED) for _ in range(2)] == [True, False]
    assert (plan.kept, plan.by_blocks) == (float("inf"), {GUIDED})


def test_a_decoder_that_is_guided_by_alone_goes_block_by_block_where_it_does_not_fit():
    net = torch.nn.Sequential(Residual()).requires_grad_(False)

    def decode_by(forward):
        return lambda x: forward(x.flatten(1)).view_as(x).expand(-1, 3, -1, -1)

    def failing(x):
        if torch.is_grad_enabled() and "forward" not in vars(net[0]):
            out_of_memory()
        return net(x)

    found = []
    for forward in (net, failing):
        noise_map = replace(map_of(memory="step"), decode=decode_by(forward), decoder_blocks=core.Blocks([net]))
        noise = noise_map.randn(0)
        result = core.optimize(noise_map, rewards.Brightness(), noise, core.Tilt(through="decoder"), iterations=1)
        found.append(torch.tensor(result.history.rows[-1]["score"]))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    assert noise_map.plan.by_blocks == {DECODER}


def test_a_stage_that_went_block_by_block_before_it_was_counted_is_counted_and_goes_so_still():
    noise_map = map_of(memory="auto", free_memory=lambda: None)
    assert noise_map.plan.lower(STEP)  # as where the check of the model's gradient runs out of memory
    torch.testing.assert_close(gradient(noise_map), gradient(map_of()), rtol=1e-5, atol=1e-6)
    assert noise_map.plan.sizes[STEP] == sizes_of(core.Tilt())[STEP] and noise_map.plan.by_blocks == {STEP}


def test_a_plan_that_is_lowered_stays_so_until_another_setting():
    plan = Plan(core.Blocks([network()]))
    plan.follow("fast")
    assert [plan.lower(STEP) for _ in range(3)] == [True, True, False]
    plan.follow("fast")
    assert (plan.kept, plan.by_blocks) == (0, {STEP})
    plan.follow("step")
    assert (plan.kept, plan.by_blocks) == (0, set())


def bytes_for(room, **sizes):
    """Return a Plan of so many bytes, whose networks have blocks, that was told these sizes by their stages."""
    plan = Plan(core.Blocks([network()]), core.Blocks([network()]))
    plan.longest = 100
    plan.follow(room / GIB)
    for stage, size in sizes.items():
        plan.note(stage, Size(*size))
    return plan


@pytest.mark.parametrize("step, decoder, kept", [
    ((20, 5, 5), (40, 9, 9), 2),  # (90 - 40) / 20
    ((100, 10, 30), (20, 5, 5), 6),  # the step by blocks: (90 - 30) / 10
    ((100, 10, 30), (200, 15, 45), 3),  # the decoder by blocks too: (90 - 60) / 10
    ((100, 80, 30), (20, 5, 5), 0),
    ((0, 0, 0), (40, 9, 9), 50),
])
def test_as_many_graphs_are_kept_as_fit_beside_the_largest_stage(step, decoder, kept):
    plan = bytes_for(90, step=step, decoder=decoder)
    plan.settle()
    assert plan.kept == kept
    assert plan.by_blocks == {stage for stage, size in ((STEP, step), (DECODER, decoder)) if size[0] > 90}


def test_nothing_is_kept_where_no_step_was_counted():
    plan = bytes_for(90, decoder=(40, 9, 9))
    plan.settle()
    assert plan.kept == 0 and not plan.counts(STEP)


def test_what_was_decided_stays_whatever_is_free_later():
    free = [100.0, 1e6]
    plan = Plan(free=lambda: free.pop(0) / SHARE)
    plan.follow("auto")
    plan.sizes[STEP] = Size(10, 5, 5)
    for _ in range(2):
        plan.settle()
        assert plan.kept == 10


@pytest.mark.parametrize("size, tile", [((200, 60, 20), None), ((200, 60, 40), 64)])
def test_tiles_are_taken_where_one_block_does_not_fit_and_by_the_decoder_alone(size, tile):
    plan = bytes_for(90, decoder=size)
    assert plan.by_blocks == {DECODER} and plan.tile == tile
    assert bytes_for(90, step=size).tile is None
    plan.follow("step")
    assert plan.tile is None and not plan.sizes


def test_of_two_stages_whose_graphs_are_there_at_once_one_block_is_made_again_at_a_time():
    assert Size(1, 2, 3).beside(Size(10, 20, 5)) == Size(11, 22, 5) and Size(11, 22, 5).by_blocks == 27


def test_there_is_no_way_down_for_a_step_that_is_no_row_of_blocks():
    plan = Plan(core.Blocks([torch.nn.Linear(2, 2)]))
    plan.follow("step")
    plan.longest = 100
    assert not plan.lower(STEP) and not plan.by_blocks and plan.tile is None


def test_another_error_is_no_reason_to_take_less_memory():
    def watch():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    noise_map = map_of(watch=watch, memory="fast")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        noise_map.pullback(noise_map.randn(0))
    assert noise_map.plan.kept == float("inf")


def test_every_backends_words_for_memory_that_is_gone_are_known():
    known = [torch.cuda.OutOfMemoryError("x"), RuntimeError("MPS backend out of memory"), RuntimeError("Out of memory")]
    assert all(map(is_out_of_memory, known))
    assert not is_out_of_memory(RuntimeError("x")) and not is_out_of_memory(ValueError("out of memory"))


def test_what_pytorch_has_reserved_and_does_not_use_is_free_too(monkeypatch):
    told = {"mem_get_info": (100, 1000), "memory_reserved": 50, "memory_allocated": 20}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_bytes("cuda:0") == 130 and free_bytes("cpu") is None


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(WIDTH))

    def forward(self, x):
        return x * self.scale


def test_weights_do_not_count_whether_their_network_is_known_or_not():
    x, linear, scaled = torch.ones(ROWS, WIDTH, requires_grad=True), torch.nn.Linear(WIDTH, WIDTH), Scaled()
    linear.requires_grad_(False)
    with Saved() as saved:
        _ = (x @ linear.weight, x @ linear.weight.T, x * linear.bias)
    assert saved.size.whole == 0
    with Saved(core.Blocks([scaled])) as saved:
        scaled(x)
    assert saved.size.whole == 0


def test_a_block_that_is_left_whole_counts_as_no_block_and_what_has_no_gradient_is_no_input():
    class Added(Residual):
        def forward(self, x, context):
            return super().forward(x + context)

    net = torch.nn.ModuleList([Added(), Added()]).requires_grad_(False)
    x, context = torch.ones(ROWS, WIDTH, requires_grad=True), torch.ones(ROWS, WIDTH)
    blocks = core.Blocks([net])
    for whole, inputs in ((False, 2 * x.nbytes), (True, x.nbytes + BLOCK)):
        blocks.all[0].whole = whole
        with Saved(blocks) as saved, blocks.counted(saved):
            net[1](net[0](x, context), context)
        assert saved.size == Size(2 * BLOCK, inputs, BLOCK)


RESIDENT = """
import sys, torch
from functools import partial
from pathlib import Path
sys.path[:0] = {paths!r}
import memory as benchmark
from comfyui_dno import core
from comfyui_dno.core.memory import Plan, Saved

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

torch.manual_seed(0)
unet = benchmark.stable_diffusion().requires_grad_(False)
x, text = torch.randn(1, 4, 32, 32), torch.randn(1, 77, 768)
blocks = core.Blocks([unet])
def call(x):
    return unet(x, torch.tensor([500.0]), text, return_dict=False)[0]
call(x)
with Saved(blocks) as saved, blocks.counted(saved):
    call(x.requires_grad_())
for memory, counted in (("step", saved.size.whole), ("low", saved.size.inputs)):
    plan = Plan(blocks)
    plan.follow(memory)
    before = resident()
    with plan.graph("step"):
        y = call(x)
    print((resident() - before) / counted)
    del y
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_counted_is_what_a_full_size_stable_diffusion_holds():
    """Resident bytes of a call's graph on the CPU, where every large tensor is mapped and given back by itself."""
    paths = [str(ROOT.parent), str(ROOT / "tests" / "benchmarks")]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    script = [sys.executable, "-c", RESIDENT.format(paths=paths)]
    told = subprocess.run(script, env=environment, capture_output=True, text=True, check=True).stdout
    whole, by_blocks = map(float, told.split())
    assert abs(whole - 1) < 0.15 and abs(by_blocks - 1) < 0.15, told


class Counting(torch.nn.Module):
    """A block whose result is another at every call."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer, self.calls = torch.nn.Linear(WIDTH, HIDDEN), torch.nn.Linear(HIDDEN, WIDTH), 0

    def forward(self, x):
        self.calls += 1
        return x + self.calls * self.outer(torch.tanh(self.inner(x)))


@pytest.mark.parametrize("stage", [STEP, DECODER])
def test_a_block_that_does_not_repeat_itself_is_told_of_whichever_stage_it_is_in(stage):
    network = torch.nn.Sequential(Counting()).requires_grad_(False)
    blocks = core.blocks.Blocks([network])
    plan = Plan(blocks) if stage == STEP else Plan(None, blocks)
    plan.follow("low")
    x = torch.ones(ROWS, WIDTH, requires_grad=True)
    with plan.graph(stage):
        y = network(x).sum()
    y.backward()
    assert plan.unlike() == ["Counting"] and plan.unlike() == []
