"""What ComfyUI does with a reward's network, and a stock CLIP_VISION in tiny."""

import json
from pathlib import Path

import comfy.clip_vision
import comfy.model_management as mm
import folder_paths
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

        def on_use():
            load_models = mm.load_models_gpu  # looked up now: a cached node may watch this tower too

            def noting(models, **settings):
                loads.append([type(patcher.model).__name__ for patcher in models])
                return load_models(models, **settings)

            mm.load_models_gpu = noting
            try:
                load()
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


NODES = (DNOTestWatchedTower, DNOTestTower, DNOTestClipVision)
