"""What `load_pipeline` and `from_pipeline` refuse: what was found, what was expected, what to do."""

import json

import diffusers
import pytest
import tiny_pipelines as tiny
import torch
from comfyui_dno.core.models.pipelines import from_pipeline, load_pipeline


def test_only_folders_of_known_pipelines_are_loaded_without_download(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder some-one/model; pass the folder .* --download"):
        load_pipeline("some-one/model")
    with pytest.raises(FileNotFoundError, match="no model_index.json; expected the folder of a diffusers pipeline"):
        load_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableVideoDiffusionPipeline"}))
    with pytest.raises(ValueError, match="is a StableVideoDiffusionPipeline; expected a text-to-image pipeline"):
        load_pipeline(tmp_path)


@pytest.mark.parametrize("build", [tiny.stable_diffusion, tiny.stable_diffusion_3])
@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_outside_the_models_are_refused(build, steps):
    with pytest.raises(ValueError, match=rf"steps is {steps}; expected 1 \.\. "):
        from_pipeline(build(), "black cat", steps=steps)


@pytest.mark.parametrize("build, height, unit", [
    (tiny.stable_diffusion, 15, 2),
    (tiny.stable_diffusion, 0, 2),
    (tiny.stable_diffusion_3, 18, 4),
    (tiny.flux, 18, 4),
])  # fmt: skip
def test_a_size_that_the_network_cannot_take_is_refused(build, height, unit):
    with pytest.raises(ValueError, match=f"{height} pixels high and 16 wide; expected multiples of {unit}"):
        from_pipeline(build(), "black cat", height=height, width=16)


def test_a_pipeline_of_another_class_or_for_inpainting_is_refused():
    pipeline = tiny.stable_diffusion()
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    with pytest.raises(ValueError, match="is a StableDiffusionImg2ImgPipeline; expected a text-to-image pipeline: Sta"):
        from_pipeline(other, "black cat")
    with pytest.raises(ValueError, match="takes 9 channels where the VAE's latent has 4"):
        from_pipeline(tiny.stable_diffusion(in_channels=9), "black cat")


@pytest.mark.parametrize("pipeline, message", [
    (tiny.stable_diffusion(diffusers.HeunDiscreteScheduler()), "a HeunDiscreteScheduler; expected one of DDIMSch"),
    (tiny.stable_diffusion_3(tiny.ddim()), "is a DDIMScheduler; expected one of FlowMatchEulerDiscreteScheduler"),
    (tiny.stable_diffusion(tiny.ddim("sample")), "predicts 'sample'; expected one of epsilon, v_prediction"),
    (tiny.stable_diffusion_xl(diffusers.DDIMScheduler()), "expected clip_sample=False"),
])  # fmt: skip
def test_a_scheduler_that_the_map_cannot_follow_is_refused(pipeline, message):
    with pytest.raises(ValueError, match=message):
        from_pipeline(pipeline, "black cat")


@pytest.mark.parametrize("build, given, message", [
    (tiny.stable_diffusion, {}, "no tokenizer and no text_encoder; expected prompt_embeds and negative_prompt_embeds"),
    (tiny.stable_diffusion, tiny.embeddings(negative=False), "expected negative_prompt_embeds instead"),
    (tiny.stable_diffusion_xl, {}, "no tokenizer_2 and no text_encoder_2; expected prompt_embeds and pooled"),
    (tiny.flux, tiny.embeddings(tiny.WIDTH), "Flux takes no negative prompt"),
])  # fmt: skip
def test_prompts_without_text_encoders_are_refused(build, given, message):
    with pytest.raises(ValueError, match=message):
        from_pipeline(build(with_text=False), "black cat", cfg=3.0, **given)


def test_prompts_or_embeddings_must_be_there_and_whole():
    with pytest.raises(ValueError, match="neither a prompt nor prompt_embeds"):
        from_pipeline(tiny.stable_diffusion())
    with pytest.raises(ValueError, match="only one of prompt_embeds and pooled_prompt_embeds is given"):
        from_pipeline(tiny.stable_diffusion_xl(), **tiny.embeddings(width=2 * tiny.WIDTH, negative=False))


def test_a_pipeline_that_offloads_its_weights_is_refused():
    hooks = pytest.importorskip("accelerate.hooks")
    pipeline = tiny.stable_diffusion()
    hooks.add_hook_to_module(pipeline.unet, hooks.CpuOffload())  # as enable_model_cpu_offload does
    with pytest.raises(ValueError, match="offloads its weights.*remove_all_hooks"):
        from_pipeline(pipeline, "a cat", steps=2)
    pipeline.remove_all_hooks()
    from_pipeline(pipeline, "a cat", steps=2)


@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_a_pipeline_that_diffusers_offloads_is_refused_and_taken_once_its_hooks_are_gone(pretend, offload):
    pytest.importorskip("accelerate")
    pipeline = tiny.stable_diffusion()
    getattr(pipeline, offload)(device=pretend)
    with pytest.raises(ValueError, match=r"offloads its weights.*remove_all_hooks\(\) and pipeline.to\(device\)"):
        from_pipeline(pipeline, "a cat", steps=2, device=pretend)
    pipeline.remove_all_hooks()
    from_pipeline(pipeline.to("cpu"), "a cat", steps=2)


def test_a_pipelines_noise_is_drawn_where_its_network_is():
    sample_map = from_pipeline(tiny.stable_diffusion(), "a cat", steps=2)
    assert sample_map.device == sample_map.randn(0).initial.device == torch.device("cpu")
