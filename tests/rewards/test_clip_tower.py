"""CLIP towers against transformers' and open_clip's own models, and what they refuse."""

import pytest
import tiny_rewards
import torch
from comfyui_dno.rewards import clip_tower, weights
from comfyui_dno.rewards.clip_tower import ClipTower
from comfyui_dno.rewards.towers import load_tower
from torch.nn import functional as F

TEXTS = ["a photo of a black cat", "two dogs, oil on canvas"]

ORACLES = {
    "hps": "open_clip",
    "hps_hf": "hf",
    "pickscore_bin": "hf",
    "clip_l": "hf",
    "clip_l_open_clip": "open_clip",
    "clip_h_open_clip": "open_clip",
}


@pytest.fixture(scope="module")
def clip_l():
    """The state dict of a ViT-L/14 in transformers' layout."""
    return tiny_rewards.hf_model("L").state_dict()


def oracle(kind, path):
    """Return the reference library's own (encode_image, encode_text) with the weights of a file."""
    size = "L" if kind.startswith("clip_l") else "H"
    if ORACLES[kind] == "open_clip":
        model = tiny_rewards.open_clip_model(size)
        model.load_state_dict(weights.read(path))
        return model.encode_image, model.encode_text
    model = tiny_rewards.hf_model(size)
    model.load_state_dict(weights.read(path), strict=False)  # old files hold position_ids, newer models do not

    def of(features):  # an object from transformers 5 on
        return getattr(features, "pooler_output", features)

    return lambda x: of(model.get_image_features(pixel_values=x)), lambda ids: of(model.get_text_features(ids))


def pixels(batch=2, seed=0):
    """Return preprocessed pictures."""
    return torch.randn((batch, 3, 224, 224), generator=torch.Generator().manual_seed(seed))


def tokens(texts):
    return pytest.importorskip("open_clip").tokenize(texts)


def forward_counts(tower):
    """Return a dict that counts the forward passes of both networks from now on."""
    counts = {"image": 0, "text": 0}
    for name, network in tower.module.items():
        network.register_forward_hook(lambda *_, name=name: counts.update({name: counts[name] + 1}))
    return counts


@pytest.mark.parametrize("kind", ORACLES)
def test_embeddings_and_gradients_equal_the_reference_librarys(files, kind):
    tower, (encode_image, encode_text) = load_tower(files[kind]), oracle(kind, files[kind])
    x = pixels().requires_grad_()
    with torch.no_grad():
        text = encode_text(tokens(TEXTS))
    torch.testing.assert_close(tower.text_embeds(TEXTS), text, rtol=1e-4, atol=1e-4)
    found, expected = tower.image_embeds(x), encode_image(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    cosines = [F.cosine_similarity(embeds, text) for embeds in (found, expected)]
    torch.testing.assert_close(*cosines, rtol=1e-4, atol=1e-6)
    gradients = [torch.autograd.grad(cosine.sum(), x)[0] for cosine in cosines]
    assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[1].norm()


def test_a_tower_knows_its_sizes(files):
    for kind, width in (("hps", 1024), ("clip_l", 768)):
        tower = load_tower(files[kind])
        assert (tower.width, tower.image_size) == (width, 224)
        assert tower.logit_scale == pytest.approx(4.605, abs=1e-3)


@pytest.mark.parametrize("name", ["B-16-quickgelu", "L-14-quickgelu", "L-14-336-quickgelu", "H-14", "g-14", "bigG-14"])
def test_heads_and_activation_follow_from_the_widths_of_the_known_clips(name):
    config = pytest.importorskip("open_clip").get_model_config(f"ViT-{name}")
    image, text = config["vision_cfg"], config["text_cfg"]
    assert clip_tower.image_heads(image["width"]) == image["width"] // image.get("head_width", 64)
    assert clip_tower.text_heads(text["width"]) == text["heads"]
    assert (clip_tower.activation(config["embed_dim"]) == "quick_gelu") == config.get("quick_gelu", False)


def test_each_text_is_embedded_once(files):
    tower = load_tower(files["hps_hf"])
    calls, counts = [], forward_counts(tower)
    tower.on_use = calls.append
    first = tower.text_embeds(["cat", "dog", "cat"])
    again = tower.text_embeds(["dog", "cat"])
    assert counts == {"image": 0, "text": 1} and calls == [0]
    assert torch.equal(first[0], first[2]) and torch.equal(again, first[[1, 0]])
    assert not torch.allclose(first[0], first[1], atol=0.1)
    tower.text_embeds(["cat", "bird"])
    tower.image_embeds(pixels())
    assert counts == {"image": 1, "text": 2} and len(calls) == 3


def test_a_text_scores_the_same_alone_and_among_others(files):
    alone, among = (ClipTower(weights.read(files["hps"])) for _ in range(2))
    torch.testing.assert_close(alone.text_embeds(TEXTS[:1]), among.text_embeds(TEXTS)[:1], rtol=1e-5, atol=1e-5)


def test_long_texts_are_cut_as_clip_was_trained(files):
    tower = load_tower(files["clip_l"])
    words = ["cat"] * 75
    assert torch.equal(*tower.text_embeds([" ".join(words), " ".join(words + ["dog"])]))
    assert not torch.equal(*tower.text_embeds([" ".join(words), " ".join(words[1:] + ["dog"])]))


def test_what_is_cut_of_a_long_text_is_said_once(files, caplog):
    tower = ClipTower(weights.read(files["clip_l"]), "clip.pt")
    tower.text_embeds(["Cat " * 75])
    assert not caplog.messages
    for _ in range(2):
        tower.text_embeds(["Cat " * 75 + "dog", "a cat"])
    found = "clip.pt reads 75 tokens of a text, and this one has 76; only this counts of it: "
    assert caplog.messages == [found + " ".join(["cat"] * 75)]


def test_towers_made_and_used_in_inference_mode_can_be_differentiated_later(clip_l):
    with torch.inference_mode():
        stock = {key: value.clone() for key, value in clip_l.items()}
        assert stock["logit_scale"].is_inference()
        tower = ClipTower(stock)
        expected = tower.image_embeds(pixels()).clone(), tower.text_embeds(TEXTS)
    x = pixels().requires_grad_()
    embeds = tower.image_embeds(x)
    torch.testing.assert_close(embeds, expected[0].clone(), rtol=1e-5, atol=1e-5)
    (embeds * tower.text_embeds(TEXTS)).sum().backward()
    assert x.grad.abs().sum() > 0 and torch.equal(tower.text_embeds(TEXTS), expected[1])


def test_a_stock_clip_vision_is_an_image_tower(clip_l):
    alone, both = ClipTower(tiny_rewards.image_tower(clip_l)), ClipTower(clip_l)
    assert (alone.has_text, both.has_text) == (False, True)
    assert alone.logit_scale is None
    torch.testing.assert_close(alone.image_embeds(pixels()), both.image_embeds(pixels()))
    with pytest.raises(ValueError, match="CLIP has an image tower alone; expected a text tower beside it"):
        alone.text_embeds(["cat"])


def test_towers_of_two_clips_are_refused(clip_l):
    other = tiny_rewards.hf_model("H").state_dict()
    mixed = tiny_rewards.image_tower(other) | {key: clip_l[key] for key in clip_l if key.startswith("text_")}
    with pytest.raises(ValueError, match="image embeddings are 1024 wide and its text embeddings 768"):
        ClipTower(mixed, "mixed.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("visual_projection.weight"), "visual_projection.weight"),
        (lambda state: state.pop("text_model.encoder.layers.0.mlp.fc1.weight"), "layers.0.mlp.fc1.weight"),
        (lambda state: state.pop("text_model.encoder.layers.1.mlp.fc1.bias"), "Missing key.*layers.1.mlp.fc1.bias"),
        (lambda state: state.update({"visual_attn_pool.query": torch.ones(1)}), "Unexpected key.*attn_pool"),
        (lambda state: state.update({"adapter.weight": torch.ones(1)}), "Unexpected key.*adapter"),
        (lambda state: state.update({"visual_projection.weight": torch.ones(3)}), "tuple index out of range"),
        (lambda state: state.update({"vision_model.pre_layrnorm.bias": torch.ones(3)}), "size mismatch"),
    ],
)
def test_incomplete_and_altered_clips_are_refused(clip_l, change, message):
    state = dict(clip_l)
    change(state)
    with pytest.raises(ValueError, match=f"x.pt is not a whole CLIP .*{message}.*Download it again"):
        ClipTower(state, "x.pt")


def test_a_text_tower_alone_is_told_what_it_is(clip_l):
    state = {key: value for key, value in clip_l.items() if key.startswith("text_")}
    with pytest.raises(ValueError, match="clip_l.safetensors is of the kind 'clip text tower'"):
        ClipTower(state, "clip_l.safetensors")


@pytest.mark.parametrize("kind", ["clip_l", "hps"])
def test_weights_are_the_files_own_where_nothing_changes(files, kind):
    """No second copy: of open_clip's layout the projections alone are, which are transposed."""
    state = weights.read(files[kind])
    dtype = next(iter(state.values())).dtype
    places = {value.untyped_storage().data_ptr() for value in state.values()}
    found = ClipTower(state, dtype=dtype).module.named_parameters()
    copied = {name for name, weight in found if weight.untyped_storage().data_ptr() not in places}
    assert copied == (set() if kind == "clip_l" else {"image.visual_projection.weight", "text.text_projection.weight"})


def test_the_activation_of_other_clips_can_be_given(files):
    """LAION's own ViT-L/14 has OpenAI's sizes, and GELU."""
    model = tiny_rewards.hf_model("L", 4)
    for layer in (*model.vision_model.encoder.layers, *model.text_model.encoder.layers):
        layer.mlp.activation_fn = torch.nn.GELU()
    features = model.get_image_features(pixel_values=pixels())
    expected = getattr(features, "pooler_output", features)
    given, usual = load_tower(files["clip_l"], activation="gelu"), load_tower(files["clip_l"])
    torch.testing.assert_close(given.image_embeds(pixels()), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(usual.image_embeds(pixels()), expected, rtol=1e-2)


def test_whole_numbers_are_no_weights(clip_l):
    state = clip_l | {"visual_projection.weight": clip_l["visual_projection.weight"].to(torch.int8)}
    with pytest.raises(ValueError, match="x.pt holds visual_projection.weight as torch.int8; expected floating-point"):
        ClipTower(state, "x.pt")
