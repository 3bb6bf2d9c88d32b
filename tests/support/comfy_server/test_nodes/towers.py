"""What ComfyUI does with a reward's network, and a stock CLIP_VISION in tiny."""

import json
from functools import partial
from pathlib import Path

import comfy.clip_vision
import comfy.model_management as mm
import comfy.patcher_extension
import folder_paths
import torch
from comfy.utils import load_torch_file


def tower_of(reward):
    return getattr(reward, "reward", reward).tower


class DNOTestWatchedTower:
    """The reward, its tower's `on_use` and what that loads noted from now on."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"reward": ("DNO_REWARD",)}}

    RETURN_TYPES = ("DNO_REWARD", "DNO_TOWER_NOTES")
    FUNCTION = "watch"
    CATEGORY = "tests"

    def watch(self, reward):
        tower, loads = tower_of(reward), []
        load = tower.on_use

        def on_use(memory):
            load_models = mm.load_models_gpu  # looked up now: a cached node may watch this tower too

            def noting(models, **settings):
                loads.append([type(patcher.model).__name__ for patcher in models])
                return load_models(models, **settings)

            mm.load_models_gpu = noting
            try:
                load(memory)
            finally:
                mm.load_models_gpu = load_models

        tower.on_use = on_use
        return reward, loads


class DNOTestTower:
    """Notes on a reward's tower; `after` is any output of the sampler, so that this runs when it is done."""

    @classmethod
    def INPUT_TYPES(cls):
        optional = {"after": ("LATENT",), "loads": ("DNO_TOWER_NOTES",)}
        return {"required": {"reward": ("DNO_REWARD",)}, "optional": optional}

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "tell"
    CATEGORY = "tests"

    def tell(self, reward, after=None, loads=()):
        module = tower_of(reward).module
        managed = [loaded.model.model for loaded in mm.current_loaded_models if loaded.model is not None]
        notes = {
            "reward": reward.name, "tower": id(tower_of(reward)), "loads": list(loads),
            "managed": any(each is module for each in managed),
            "inference_weights": sum(weight.is_inference() for weight in module.parameters()),
            "dtypes": sorted({str(weight.dtype) for weight in module.parameters()}),
        }  # fmt: skip
        return {"ui": {"tower": [notes]}}


class ShortMemory:
    """`with`: models run on a device that has room for so many bytes beside what ComfyUI keeps free.

    To ComfyUI "cpu:0" is a device with memory of its own, from which models are moved out to "cpu".

    Args:
        room: in bytes.
        patchers: of models that are to run there; others do from when they are loaded.

    Attributes:
        resident: bytes of weights that lay there after each load.
        asked: bytes beside weights that each load was for.
    """

    DEVICE = torch.device("cpu:0")

    def __init__(self, room, patchers=()):
        self.room, self.resident, self.asked, self.moved = room + mm.minimum_inference_memory(), [], [], {}
        self.patchers = patchers

    def __enter__(self):
        mm.unload_all_models()
        self.move(self.patchers)
        self.stock = {name: getattr(mm, name) for name in ("get_free_memory", "load_models_gpu")}
        for name in self.stock:
            setattr(mm, name, getattr(self, name))
        return self

    def __exit__(self, *_):
        for name, function in self.stock.items():
            setattr(mm, name, function)
        mm.unload_all_models()
        for patcher, device in self.moved.items():
            patcher.load_device = device

    def used(self):
        # By model, since patchers may share one; not by ComfyUI's list, off which it takes a model while it loads it.
        return sum({id(patcher.model): patcher.loaded_size() for patcher in self.moved}.values())

    def get_free_memory(self, dev=None, torch_free_too=False):
        free = self.room - self.used()
        return (free, 0) if torch_free_too else free

    def move(self, patchers):
        for patcher in patchers:
            self.moved.setdefault(patcher, patcher.load_device)
            patcher.load_device = self.DEVICE

    def load_models_gpu(self, patchers, memory_required=0, **settings):
        self.move(patchers)
        self.stock["load_models_gpu"](patchers, memory_required=memory_required, **settings)
        self.resident.append(self.used())
        self.asked.append(memory_required)


def size(module):
    return sum(weight.nbytes for weight in module.state_dict().values())


def is_loaded(module):
    """Whether ComfyUI has the model that the module is of in its memory, and says that all of it is there."""
    own = next(module.parameters())
    patchers = [loaded.model for loaded in mm.current_loaded_models if loaded.model is not None]
    found = [patcher for patcher in patchers if any(own is each for each in patcher.model.parameters())]
    return any(patcher.loaded_size() >= patcher.model_size() for patcher in found)


class DNOTestShortMemory:
    """Differentiate a Combine by a picture in `ShortMemory`; tell what lay there at most."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"reward": ("DNO_REWARD",), "image": ("IMAGE",), "room": ("INT", {"max": 2**62})}}

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "measure"
    CATEGORY = "tests"

    def measure(self, reward, image, room):
        with ShortMemory(room) as memory, torch.inference_mode(False):
            scores, gradient = reward.image_gradient(image.clone().movedim(-1, 1))
        notes = {
            "resident": memory.resident, "asked": memory.asked, "scores": scores.tolist(),
            "sizes": [size(tower_of(part).module) for part in reward.parts], "gradient": gradient.norm().item(),
        }  # fmt: skip
        return {"ui": {"memory": [notes]}}


class InShortMemory:
    """A solver whose steps are made in `ShortMemory`, with notes on every network that runs."""

    differentiates = False

    def __init__(self, solver, networks, share, notes):
        self.solver, self.networks, self.share, self.notes = solver, networks, share, notes

    def fresh(self, checkpoint=None):
        return InShortMemory(self.solver.fresh(checkpoint), self.networks, self.share, self.notes)

    def step(self, problem, noise):
        towers = {part.name: tower_of(part).module for part in problem.reward.parts}
        networks = self.networks | {name: tower["image"] for name, tower in towers.items()}
        sizes = [size(module) for module in (*self.networks.values(), *towers.values())]
        hooks = [network.register_forward_pre_hook(partial(self.note, name)) for name, network in networks.items()]
        try:
            with ShortMemory(int(self.share * max(sizes))) as memory:
                found = self.solver.step(problem, noise)
        finally:
            for hook in hooks:
                hook.remove()
        self.notes["resident"] += memory.resident
        self.notes["sizes"] = sizes
        return found

    def note(self, name, module, _):
        self.notes["runs"].append([name, is_loaded(module)])


class DNOTestSolverInShortMemory:
    """`share` of the largest network's size is there."""

    @classmethod
    def INPUT_TYPES(cls):
        inputs = {"solver": ("DNO_SOLVER",), "model": ("MODEL",), "vae": ("VAE",), "share": ("FLOAT", {"max": 1e9})}
        return {"required": inputs}

    RETURN_TYPES = ("DNO_SOLVER", "DNO_TOWER_NOTES")
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self, solver, model, vae, share):
        networks = {"model": model.model.diffusion_model, "vae": vae.first_stage_model.decoder}
        notes = {"runs": [], "resident": []}
        return InShortMemory(solver, networks, share, notes), notes


class SmallDevice:
    """A wrapper of a guider's sampling, which runs in `ShortMemory`, with notes on every network that runs."""

    def __init__(self, networks, patchers, room, notes):
        self.networks, self.patchers, self.room, self.notes = networks, patchers, room, notes

    def __call__(self, executor, *args, **kwargs):
        hooks = [each.register_forward_pre_hook(partial(self.note, name)) for name, each in self.networks.items()]
        try:
            with ShortMemory(self.room, self.patchers) as memory:
                found = executor(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        self.notes["resident"] += memory.resident
        return found

    def note(self, name, module, _):
        self.notes["runs"].append([name, is_loaded(module)])


class DNOTestSmallDevice:
    """The model, sampled on a device with `share` of the size of the largest of model, VAE and tower."""

    @classmethod
    def INPUT_TYPES(cls):
        inputs = {"reward": ("DNO_REWARD",), "model": ("MODEL",), "vae": ("VAE",), "share": ("FLOAT", {"max": 1e9})}
        return {"required": inputs}

    RETURN_TYPES = ("MODEL", "DNO_TOWER_NOTES")
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self, reward, model, vae, share):
        model, tower = model.clone(), tower_of(reward)
        networks = {
            "model": model.model.diffusion_model, "vae": vae.first_stage_model.decoder, "tower": tower.module["image"],
        }  # fmt: skip
        patchers = [model, vae.patcher, tower.on_use.args[0]]
        sizes = [patcher.model_size() for patcher in patchers]
        notes = {"runs": [], "resident": [], "sizes": sizes}
        device = SmallDevice(networks, patchers, int(share * max(sizes)), notes)
        model.add_wrapper(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, device)
        return model, notes


class DNOTestShow:
    """Notes, after any output of the sampler."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"notes": ("DNO_TOWER_NOTES",), "after": ("LATENT",)}}

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "tell"
    CATEGORY = "tests"

    def tell(self, notes, after):
        return {"ui": {"notes": [notes]}}


class DNOTestClipVision:
    """ComfyUI's own CLIP_VISION, of the sizes in a JSON file: its loader knows the large ones alone."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"file": ("STRING", {}), "config": ("STRING", {})}}

    RETURN_TYPES = ("CLIP_VISION",)
    FUNCTION = "load"
    CATEGORY = "tests"

    def load(self, file, config):
        path = Path(folder_paths.get_temp_directory()) / "clip_vision.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(json.loads(config)))
        clip_vision = comfy.clip_vision.ClipVisionModel(path)
        missing, _ = clip_vision.load_sd(load_torch_file(folder_paths.get_full_path_or_raise("reward_models", file)))
        assert not missing, missing
        return (clip_vision,)


NODES = (
    DNOTestWatchedTower, DNOTestTower, DNOTestShortMemory, DNOTestSolverInShortMemory, DNOTestSmallDevice, DNOTestShow,
    DNOTestClipVision,
)  # fmt: skip
