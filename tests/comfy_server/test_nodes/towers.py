"""What ComfyUI does with a reward's network, and a stock CLIP_VISION in tiny."""

import json
from pathlib import Path

import comfy.clip_vision
import comfy.model_management as mm
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


class DNOTestShortMemory:
    """Differentiate a Combine by a picture on a device that has room for `room` bytes; tell what lay there at most.

    To ComfyUI "cpu:0" is a device with memory of its own, from which models are moved out to "cpu".
    """

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"reward": ("DNO_REWARD",), "image": ("IMAGE",), "room": ("INT", {"max": 2**62})}}

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "measure"
    CATEGORY = "tests"

    def measure(self, reward, image, room):
        device, resident = torch.device("cpu:0"), []
        stock = {name: getattr(mm, name) for name in ("get_free_memory", "load_models_gpu")}
        modules = [tower_of(part).module for part in reward.parts]

        def used():
            return sum(loaded.model.loaded_size() for loaded in mm.current_loaded_models if loaded.device == device)

        def get_free_memory(dev=None, torch_free_too=False):
            free = room - used()
            return (free, 0) if torch_free_too else free

        def load_models_gpu(patchers, memory_required=0, **settings):
            for patcher in patchers:
                patcher.load_device = device
            stock["load_models_gpu"](patchers, memory_required=memory_required, **settings)
            resident.append(used())
            asked.append(memory_required)

        asked = []
        mm.unload_all_models()
        reserved = mm.minimum_inference_memory()
        room += reserved
        mm.get_free_memory, mm.load_models_gpu = get_free_memory, load_models_gpu
        try:
            with torch.inference_mode(False):
                scores, gradient = reward.image_gradient(image.clone().movedim(-1, 1))
        finally:
            for name, function in stock.items():
                setattr(mm, name, function)
            mm.unload_all_models()
        sizes = [sum(weight.nbytes for weight in module.state_dict().values()) for module in modules]
        notes = {
            "resident": resident, "asked": asked, "sizes": sizes, "scores": scores.tolist(),
            "gradient": gradient.norm().item(),
        }  # fmt: skip
        return {"ui": {"memory": [notes]}}


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


NODES = (DNOTestWatchedTower, DNOTestTower, DNOTestShortMemory, DNOTestClipVision)
