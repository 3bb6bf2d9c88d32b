"""DINOv2 and SigLIP against transformers' and timm's own models, in every layout of their files."""

import pytest
import tiny_rewards
import torch
from comfyui_dno.rewards import vision_tower, weights
from comfyui_dno.rewards.vision_tower import VisionTower

DINOV2S = {
    "plain": {},
    "giant": {"swiglu": True},
    "with registers": {"registers": 4},
    "giant with registers": {"swiglu": True, "registers": 4},
}


def pixels(side=224):
    return torch.randn((2, 3, side, side), generator=torch.Generator().manual_seed(0))


def seen(tower, x):
    """Return what the tower's own network gives of preprocessed pixels: embeddings, and tokens of the places."""
    parts = (lambda found: found.pooler_output, lambda found: found.last_hidden_state[:, tower._before_places :])
    return [tower._run(x, part) for part in parts]


def assert_equal_with_gradients(found, expected, x):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
        gradients = [torch.autograd.grad((each * weight).sum(), x, retain_graph=True)[0] for each in (ours, theirs)]
        assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[1].norm()


@pytest.mark.parametrize("variant", DINOV2S)
def test_a_dinov2_of_the_hub_sees_what_transformers_sees(variant):
    model = tiny_rewards.dinov2_model(3, **DINOV2S[variant])
    state = tiny_rewards.hub_state(model)
    mlp = "weights_in" if "giant" in variant else "fc1"
    assert {"encoder.layer.0.attention.attention.query.weight", f"encoder.layer.0.mlp.{mlp}.weight"} <= state.keys()
    x = pixels().requires_grad_()
    expected = model(pixel_values=x)
    before = 1 + DINOV2S[variant].get("registers", 0)
    assert_equal_with_gradients(
        seen(VisionTower(state), x), (expected.pooler_output, expected.last_hidden_state[:, before:]), x
    )


@pytest.mark.parametrize("variant", DINOV2S)
def test_a_dinov2_of_meta_sees_what_timm_sees(variant):
    """timm has a network of its own and reads Meta's files by its own code."""
    timm = pytest.importorskip("timm")
    from timm.models.vision_transformer import checkpoint_filter_fn

    settings = DINOV2S[variant]
    state = tiny_rewards.dinov2_meta_state(4, **settings)
    size = "giant" if settings.get("swiglu") else "small"
    name = f"vit_{size}_patch14_{'reg4_' if settings.get('registers') else ''}dinov2"
    sizes = {"embed_dim": 128, "depth": 2, "num_heads": 2, "img_size": 224}
    if size == "giant":
        sizes["mlp_ratio"] = 2 * 344 / 128
    model = timm.create_model(name, **sizes).eval().requires_grad_(False)
    model.load_state_dict(checkpoint_filter_fn(dict(state), model))
    x = pixels().requires_grad_()
    tokens = model.forward_features(x)
    before = 1 + settings.get("registers", 0)
    assert_equal_with_gradients(seen(VisionTower(state), x), (tokens[:, 0], tokens[:, before:]), x)


@pytest.mark.parametrize("kind", ["full", "image tower", "image tower as transformers 5 saves it"])
def test_a_siglip_sees_what_transformers_sees_with_its_text_tower_or_without(kind):
    model = tiny_rewards.siglip_model(5)
    state = model.state_dict()
    if kind != "full":
        state = {name: value for name, value in state.items() if name.startswith("vision_model.")}
    if "saves" in kind:
        state = {name.removeprefix("vision_model."): value for name, value in state.items()}
    x = pixels(56).requires_grad_()
    expected = model.vision_model(pixel_values=x)
    tower = VisionTower(state)
    assert (tower.kind, tower.width, tower.image_size) == ("SigLIP", 1152, 56)
    assert_equal_with_gradients(seen(tower, x), (expected.pooler_output, expected.last_hidden_state), x)


def test_heads_and_pixels_are_those_of_the_known_models():
    """Widths and heads of the DINOv2s and SigLIPs on the hub; so400m's 384 pixels are 27 patches of 14, and 6 more."""
    known = {384: 6, 768: 12, 1024: 16, 1536: 24, 1152: 16}
    assert {width: vision_tower.heads(width) for width in known} == known
    sides = {(27, 14): 384, (16, 14): 224, (14, 16): 224, (24, 16): 384}
    assert {key: vision_tower.siglip_pixels(*key) for key in sides} == sides


def test_pictures_are_shown_at_the_towers_size_and_judged_some_at_a_time():
    tower = VisionTower(tiny_rewards.dinov2_meta_state())
    shapes, images = [], tiny_rewards.pictures(18, 32, 48)
    tower.module["image"].register_forward_pre_hook(
        lambda *call: shapes.append(tuple(call[-1]["pixel_values"].shape)), with_kwargs=True
    )
    assert tower.embed(images, "dinov2").shape == (18, 128) and tower.places(images, "dinov2").shape == (18, 256, 128)
    assert shapes == [(16, 3, 224, 224), (2, 3, 224, 224)] * 2


def test_the_memory_that_a_run_takes_is_asked_for_by_the_pixels_that_are_shown():
    """518 x 518 is what the position embeddings are for, not what is run."""
    tower, asked = VisionTower(tiny_rewards.hub_state(tiny_rewards.dinov2_model())), []
    tower.on_use = asked.append
    tower.embed(tiny_rewards.pictures(1).requires_grad_(), "dinov2")
    assert asked == [16 * 257 * 2 * 128 * 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_are_the_files_own_where_nothing_changes(dtype):
    state = {name: value.to(dtype) for name, value in tiny_rewards.dinov2_meta_state(swiglu=True).items()}
    places = {value.untyped_storage().data_ptr() for value in state.values()}
    parameters = list(VisionTower(state, dtype=dtype).module.parameters())
    assert all(weight.untyped_storage().data_ptr() in places for weight in parameters)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("norm.weight"), "Missing key.*layernorm.weight"),
        (lambda state: state.pop("blocks.1.mlp.fc1.bias"), "Missing key.*layer.1.mlp.fc1.bias"),
        (lambda state: state.update({"adapter.weight": torch.ones(1)}), "Unexpected key.*adapter"),
        (lambda state: state.update({"norm.bias": torch.ones(3)}), "size mismatch"),
    ],
)
def test_incomplete_and_altered_dinov2s_are_refused(change, message):
    state = tiny_rewards.dinov2_meta_state()
    change(state)
    with pytest.raises(ValueError, match=f"x.pth is not a whole DINOv2 .*{message}.*Download it again"):
        VisionTower(state, "x.pth")


def test_a_siglip_without_its_attention_head_is_refused(files):
    state = {name: value for name, value in weights.read(files["siglip"]).items() if ".head." not in name}
    with pytest.raises(ValueError, match="x.safetensors is not a whole SigLIP .*Missing key.*head.probe"):
        VisionTower(state, "x.safetensors")


def test_a_clip_is_told_what_it_is(files):
    with pytest.raises(ValueError, match=r"clip_l is of the kind 'clip \(HF\)'; expected 'DINOv2 \(HF\)' or"):
        VisionTower(weights.read(files["clip_l"]), "clip_l")
