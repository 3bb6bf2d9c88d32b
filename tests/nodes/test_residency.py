"""Which models are in memory together, beside a ComfyUI that only counts bytes."""

import enum
import importlib
import sys
import types

import pytest
import torch
from comfy_server.server import PACK

DEVICE = torch.device("meta")


class Patcher:
    """A model of so many bytes, as ComfyUI's ModelPatcher tells of one."""

    def __init__(self, size, device=DEVICE, dynamic=False):
        self.size, self.load_device, self.loaded, self.dynamic = size, device, 0, dynamic
        self.model = torch.nn.Linear(1, 1)

    def model_size(self):
        return self.size

    def loaded_size(self):
        return self.loaded

    def model_patches_models(self):
        return []

    def is_dynamic(self):
        return self.dynamic


def born_in_inference():
    with torch.inference_mode():
        return torch.nn.Linear(1, 1)


class Memory(types.ModuleType):
    """comfy.model_management with a device of so many bytes."""

    class VRAMState(enum.Enum):
        NORMAL_VRAM, HIGH_VRAM, SHARED = range(3)

    def __init__(self, size):
        super().__init__("comfy.model_management")
        self.size, self.vram_state, self.current_loaded_models, self.loads = size, self.VRAMState.NORMAL_VRAM, [], []

    def minimum_inference_memory(self):
        return 1

    def extra_reserved_memory(self):
        return 1

    def get_free_memory(self, device):
        return self.size - sum(loaded.model.loaded for loaded in self.current_loaded_models)

    def free_memory(self, size, device, keep_loaded=()):
        for loaded in list(self.current_loaded_models):
            if loaded not in keep_loaded and self.get_free_memory(device) < size:
                loaded.model.loaded = 0
                self.current_loaded_models.remove(loaded)

    def load_models_gpu(self, patchers, memory_required=0, force_full_load=False):
        assert torch.is_inference_mode_enabled()
        self.loads.append((patchers, memory_required, force_full_load))
        ours = [loaded for loaded in self.current_loaded_models if loaded.model in patchers]
        missing = sum(patcher.size - patcher.loaded for patcher in patchers)
        self.free_memory(missing + memory_required, DEVICE, ours)
        for patcher in patchers:
            room = patcher.size if force_full_load else max(self.get_free_memory(DEVICE) - memory_required, 0)
            patcher.loaded = min(patcher.size, patcher.loaded + room)
            if all(loaded.model is not patcher for loaded in self.current_loaded_models):
                self.current_loaded_models.append(types.SimpleNamespace(model=patcher))

    def inside(self):
        return [loaded.model for loaded in self.current_loaded_models]


@pytest.fixture
def residency_of(monkeypatch):
    """residency_of(bytes) -> the module `residency` on a device of that size, and its Memory."""

    def make(size):
        memory, package = Memory(size), types.ModuleType("nodes_alone")
        comfy, package.__path__ = types.ModuleType("comfy"), [str(PACK / "nodes")]
        comfy.model_management = memory
        for module in (comfy, memory, package):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        for name in ("residency", "weights"):
            monkeypatch.delitem(sys.modules, f"nodes_alone.{name}", raising=False)
        return importlib.import_module("nodes_alone.residency"), memory

    return make


def test_what_fits_together_is_loaded_once_and_whole(residency_of):
    residency, memory = residency_of(101)
    model, vae, tower = Patcher(40), Patcher(10), Patcher(20)
    with residency.of_a_search() as resident:
        assert resident.begin([model, vae, model], {"fast": 60, "step": 30, "low": 5}) == "step"
        residency.load_tower(tower, 10)
        enter = resident.stage([model], lambda: 1 / 0)
        for _ in range(3):
            enter()
            residency.load_tower(tower, 10)
    assert resident.together and resident.loads == 0
    assert [patcher.loaded for patcher in (model, vae, tower)] == [40, 10, 20]
    assert memory.loads[0] == ([model, vae], 30, True)


def test_a_tower_must_leave_the_room_that_the_searchs_own_graphs_take(residency_of):
    """40 and 20 are the weights, 5 is what the tower runs in, 35 what a step's graph takes."""
    for size, together in ((99, True), (94, False)):
        residency, memory = residency_of(size)
        model, tower, told = Patcher(40), Patcher(20), []
        with residency.of_a_search() as resident:
            resident.when_in_turns(lambda told=told: told.append("in turns"))
            assert resident.begin([model], {"step": 35}) == "step" and resident.together
            residency.load_tower(tower, 5)
            assert resident.together == together and told == ([] if together else ["in turns"])
            resident.stage([model], lambda: 35)()
            assert memory.inside() == ([model, tower] if together else [model])


def test_of_two_towers_that_fit_one_at_a_time_alone_the_second_begins_the_turns(residency_of):
    residency, memory = residency_of(100)
    model, first, second = Patcher(40), Patcher(30), Patcher(30)
    with residency.of_a_search() as resident:
        resident.begin([model], {"step": 10})
        residency.load_tower(first, 5)
        assert resident.together
        residency.load_tower(second, 5)
        assert not resident.together and resident.loads == 1
        for _ in range(2):
            residency.load_tower(first, 5)
            residency.load_tower(second, 5)
        resident.stage([model], lambda: 10)()
    assert resident.loads >= 2 and model in memory.inside()
    assert all(whole for patchers, _, whole in memory.loads if patchers != [model]), "towers run in memory alone"


def test_in_turns_a_stage_loads_what_it_runs_where_it_is_not_there_already(residency_of):
    residency, memory = residency_of(60)
    model, vae = Patcher(40), Patcher(30)
    with residency.of_a_search() as resident:
        assert resident.begin([model, vae], {"fast": 20, "low": 10}) == "low" and not resident.together
        step, decode = resident.stage([model], lambda: 10), resident.stage([vae], lambda: 10, whole=True)
        for _ in range(2):
            for _ in range(3):
                step()
            decode()
    assert [load[0] for load in memory.loads] == [[model], [vae]] * 2 and resident.loads == 4
    assert [load[2] for load in memory.loads] == [False, True] * 2, "whole where it cannot run from outside"


def test_who_asks_late_is_told_at_once_that_models_take_turns(residency_of):
    residency, _ = residency_of(10)
    resident, told = residency.Residency(), []
    resident.begin([Patcher(40)], {"low": 1})
    resident.when_in_turns(lambda: told.append(1))
    assert told == [1]


def test_a_search_that_is_over_loads_no_tower_any_more(residency_of):
    residency, memory = residency_of(60)
    model, tower = Patcher(40), Patcher(10)
    with pytest.raises(ValueError), residency.of_a_search() as resident:
        resident.begin([model], {"low": 5})
        raise ValueError
    tower.model = born_in_inference()
    residency.load_tower(tower, 3)
    assert memory.loads[-1] == ([tower], 3, True) and not tower.model.weight.is_inference()


def test_what_was_moved_out_in_between_is_loaded_again(residency_of):
    """By whoever else loads models while a search runs: a reward of another pack, say."""
    residency, memory = residency_of(60)
    model = Patcher(70)
    resident = residency.Residency()
    resident.begin([model], {"low": 5})
    step = resident.stage([model], lambda: 5)
    step()
    with torch.inference_mode():
        memory.load_models_gpu([Patcher(50)], 5)
    step()
    assert resident.loads == 2 and memory.inside() == [model]


def test_autograd_accepts_the_weights_of_what_is_loaded_with_a_model(residency_of):
    """A ControlNet, say, which ComfyUI loads as a part of the model's patches."""
    residency, _ = residency_of(60)
    model, patch = Patcher(40), Patcher(0)
    model.model, patch.model = born_in_inference(), born_in_inference()
    model.model_patches_models = lambda: [patch]
    residency.Residency().begin([model], {"low": 5})
    assert not model.model.weight.is_inference() and not patch.model.weight.is_inference()


def test_a_tower_before_the_search_has_begun_is_loaded_alone(residency_of):
    residency, memory = residency_of(60)
    tower = Patcher(10)
    tower.model = born_in_inference()
    with residency.of_a_search() as resident:
        residency.load_tower(tower, 3)
    assert memory.loads == [([tower], 3, True)] and resident.together
    assert not tower.model.weight.is_inference()


@pytest.mark.parametrize("state", ["HIGH_VRAM", "SHARED"])
def test_where_there_is_no_other_memory_everything_is_together(residency_of, state):
    residency, memory = residency_of(10)
    memory.vram_state = memory.VRAMState[state]
    resident = residency.Residency()
    assert resident.begin([Patcher(40)], {"fast": 50, "low": 1}) == "fast" and resident.together


def test_what_lives_in_dynamic_memory_or_on_the_cpu_is_asked_for_no_room_it_does_not_take(residency_of):
    residency, _ = residency_of(60)
    resident = residency.Residency()
    resident.begin([Patcher(40, dynamic=True)], {"low": 5})
    assert not resident.together, "ComfyUI may move it out at any time"
    resident = residency.Residency()
    resident.begin([Patcher(40), Patcher(1000, torch.device("cpu"))], {"low": 5})
    assert resident.together
