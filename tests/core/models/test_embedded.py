"""The embedded model: vocabulary, weights, scorer and samples."""

import logging

import pytest
import torch
from comfyui_dno.core.models.embedded import configs, networks, vocabulary, weights
from comfyui_dno.core.models.embedded.scorer import load_scorer


@pytest.fixture(scope="module")
def scorer():
    return load_scorer()


@pytest.fixture(scope="module")
def painter():
    report = pytest.importorskip("comfyui_dno.core.models.embedded.training.report")
    return report.Painter()


def test_word_ids_are_those_of_clip():
    tokenizer = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer()
    for word, token in vocabulary.TOKEN_IDS.items():
        assert tokenizer.encode(word) == [token]
    assert (tokenizer.sot_token_id, tokenizer.eot_token_id) == (vocabulary.BOS, vocabulary.EOS)


def test_prompts_are_padded_with_the_end_token_as_stable_diffusion_does():
    ids = vocabulary.tokenize(["A black cat!", ""])
    assert ids.shape == (2, 77)
    assert ids[0, :5].tolist() == [49406, 1449, 2368, 49407, 49407]
    assert ids[1].tolist() == [49406] + [49407] * 76


def test_unknown_words_are_ignored_and_named_once(caplog):
    with caplog.at_level(logging.WARNING):
        ids = vocabulary.tokenize(["a black flerken cat", "the flerken"])
    assert torch.equal(ids, vocabulary.tokenize(["black cat", ""]))
    assert [record.getMessage().split(";")[0] for record in caplog.records] == ["the embedded model ignores 'flerken'"]


def test_unknown_words_of_every_script_are_named_whole(caplog):
    with caplog.at_level(logging.WARNING):
        words = vocabulary.known_words("black_cat \u043a\u043e\u0442 caf\u00e9 \u732b")
    assert words == ["black", "cat"]
    assert all(repr(word) in caplog.text for word in ("caf\u00e9", "\u043a\u043e\u0442", "\u732b"))


def test_weights_fit_into_sixteen_megabytes():
    assert weights.PATH.stat().st_size <= 16_000_000


def test_token_embedding_comes_back_whole():
    embedding = weights.part("text")["text_model.embeddings.token_embedding.weight"]
    assert embedding.shape == (configs.TEXT["vocab_size"], configs.TEXT["hidden_size"])
    used = embedding.abs().sum(1).nonzero().flatten().tolist()
    assert used == list(vocabulary.STORED_IDS)


def test_unknown_part_and_missing_file_are_named(tmp_path):
    with pytest.raises(ValueError, match="unet, vae, text, scorer, found 'lora'"):
        weights.part("lora")
    with pytest.raises(FileNotFoundError, match="gone.safetensors"):
        weights.part("unet", path=tmp_path / "gone.safetensors")


def test_text_encoder_takes_every_stored_weight():
    text = networks.build_text_encoder()
    loaded = {key.removeprefix("text_model."): value for key, value in text.state_dict().items()}
    for key, value in weights.part("text").items():
        torch.testing.assert_close(loaded[key.removeprefix("text_model.")], value)
    hidden = networks.encode_prompts(["black cat", "white cat"], text)
    assert hidden.shape == (2, 77, 64)
    assert not torch.allclose(hidden[0], hidden[1], atol=0.1)


def test_latents_are_whitened_under_the_stock_scale_factor():
    pictures = pytest.importorskip("comfyui_dno.core.models.embedded.training.pictures")
    pytest.importorskip("resvg_py")
    images = torch.from_numpy(pictures.draw_many(64, seed=7)[0]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = networks.build_vae().encode(images).latent_dist.mean * configs.LATENT_SCALE
    flat = latents.transpose(0, 1).flatten(1)
    assert flat.mean(1).abs().max() < 0.2
    torch.testing.assert_close(flat.cov(), torch.eye(4), atol=0.25, rtol=0)


def test_autoencoder_keeps_held_out_pictures():
    pytest.importorskip("resvg_py")
    from comfyui_dno.core.models.embedded.training.report import reconstruction_psnr

    assert reconstruction_psnr(networks.build_vae(), count=24) > 25


def test_scorer_is_right_on_held_out_pictures(scorer):
    pytest.importorskip("resvg_py")
    from comfyui_dno.core.models.embedded.training.scoring import held_out_accuracy

    accuracy = held_out_accuracy(scorer, count=240, seed=92_000)
    assert accuracy["colour"] >= 0.97
    assert accuracy["animal"] >= 0.97


def test_scorer_is_differentiable_and_accepts_any_size(scorer):
    images = torch.rand(2, 3, 128, 128, requires_grad=True)
    colour, animal, score = scorer.consistency(images, ["black cat", "red owl"])
    torch.testing.assert_close(score, (colour + animal) / 2)
    score.sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0
    assert scorer(torch.rand(1, 3, 96, 200))[1].shape == (1, 12)


def test_consistency_without_a_colour_is_the_animals_probability(scorer):
    colour, animal, score = scorer.consistency(torch.rand(1, 3, 64, 64), "cat")
    assert colour.isnan().all()
    torch.testing.assert_close(score, animal)


def test_consistency_needs_an_animal_and_a_prompt_a_picture(scorer):
    with pytest.raises(ValueError, match="names no animal.*cat, dog"):
        scorer.consistency(torch.rand(1, 3, 64, 64), "black")
    with pytest.raises(ValueError, match="expected 2 prompts"):
        scorer.consistency(torch.rand(2, 3, 64, 64), ["black cat"])


def test_samples_show_what_the_prompt_says(painter, scorer):
    prompts = [
        f"{vocabulary.COLOURS[i % len(vocabulary.COLOURS)]} {animal}" for i, animal in enumerate(vocabulary.ANIMALS)
    ]
    images = painter.sample(prompts, range(len(prompts)), steps=10)
    colour, animal = (logits.argmax(-1) for logits in scorer(images))
    shown = [f"{vocabulary.COLOURS[c]} {vocabulary.ANIMALS[a]}" for c, a in zip(colour, animal, strict=True)]
    assert sum(a == b for a, b in zip(shown, prompts, strict=True)) >= len(prompts) - 1


def test_folding_the_norms_keeps_the_function():
    from comfyui_dno.core.models.embedded.training import autoencoder
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = autoencoder.soften_norms(AutoencoderKL(**configs.VAE)).eval()
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        latent = vae.encode(images).latent_dist.mean
        decoded = vae.decode(latent).sample
        autoencoder.fold_norms(vae)
        assert {m.eps for m in vae.modules() if isinstance(m, torch.nn.GroupNorm)} == {1e-6}
        torch.testing.assert_close(vae.encode(images).latent_dist.mean, latent, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(vae.decode(latent).sample, decoded, atol=1e-5, rtol=1e-4)


def test_whitening_keeps_what_the_autoencoder_decodes():
    from comfyui_dno.core.models.embedded.training import diffusion
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(**configs.VAE).eval()
    images = torch.rand(8, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = vae.encode(images).latent_dist.mean
        decoded = vae.decode(before).sample
        whitened = diffusion.whiten(vae, before)
        after = vae.encode(images).latent_dist.mean
        torch.testing.assert_close(after * configs.LATENT_SCALE, whitened, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(vae.decode(after).sample, decoded, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(whitened.transpose(0, 1).flatten(1).cov(), torch.eye(4), atol=1e-2, rtol=0)


def test_training_resumes_where_it_stopped(tmp_path):
    from comfyui_dno.core.models.embedded.training.fit import fit

    def run(seconds):
        model = torch.nn.Linear(2, 1)
        fit("line", model, lambda progress: model(torch.randn(8, 2)).square().mean(), seconds, 1e-2, tmp_path)
        return torch.load(tmp_path / "line.pt", weights_only=True)["state"]

    first = run(0.2)
    second = run(0.4)
    assert second["step"] > first["step"] > 1
    assert run(0.3)["step"] == second["step"]
