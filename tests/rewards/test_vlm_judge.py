"""VLMJudge and HPSv3 on tiny models, against transformers' own forward pass and what HPSv3's authors compute."""

import json
import shutil

import numpy
import pytest
import tiny_rewards
import tiny_vlm
import torch
from comfyui_dno import core, rewards
from comfyui_dno.core.scoring import exact, score
from comfyui_dno.rewards import vlm_judge
from comfyui_dno.rewards.vlm_tower import AT_ONCE
from live_bytes import LiveBytes
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

MODELS = {"qwen2_vl": tiny_vlm.write_qwen2_vl, "llava": tiny_vlm.write_llava}
QUESTION = "Is there {prompt} in it?"
PROMPTS = ["a cat", "two very small dogs on a long red sofa", "a cat", ""]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each model, and one of HPSv3's layout."""
    folder = tmp_path_factory.mktemp("vlm")
    found = {name: write(folder / name) for name, write in MODELS.items()}
    return found | {"hpsv3": tiny_vlm.write_qwen2_vl(folder / "hpsv3", rating=True)}


@pytest.fixture
def tower(folders):
    return lambda name: rewards.load_tower(folders[name])


def files(images):
    return [Image.fromarray(levels.movedim(0, -1).numpy()) for levels in (images * 255).round().to(torch.uint8)]


def pictures(count=4, height=62, width=90):
    return tiny_rewards.pictures(count, height, width).clamp(0, 1)


def asked(folder, image, text):
    """Return transformers' model and its inputs for one picture and question."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    chat = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    inputs = processor(text=chat, images=files(image[None]), return_tensors="pt", add_special_tokens=False)
    return AutoModelForImageTextToText.from_pretrained(folder), processor.tokenizer, inputs


@torch.no_grad()
def probability(folder, image, text):
    """Return P(yes) / (P(yes) + P(no)) of the first answered token, by transformers' logits of all words."""
    model, tokenizer, inputs = asked(folder, image, text)
    chances = model(**inputs).logits[0, -1].double().softmax(dim=0)
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    yes, no = (
        sum(chances[number] for number, word in enumerate(words) if word in (start + end for start in ("", "\u0120")
        for end in (answer.capitalize(), answer, answer.upper())))
        for answer in ("yes", "no")
    )  # fmt: skip
    return yes / (yes + no)


@pytest.mark.parametrize("name", MODELS)
def test_the_score_is_how_probable_yes_is_beside_no_as_the_first_token(folders, tower, name):
    images = pictures()
    expected = torch.stack([
        probability(folders[name], image, QUESTION.replace("{prompt}", prompt))
        for image, prompt in zip(images, PROMPTS, strict=True)
    ])  # fmt: skip
    chance = score(rewards.VLMJudge(tower(name), QUESTION, scale="probability"), images, PROMPTS)
    odds = score(rewards.VLMJudge(tower(name), QUESTION), images, PROMPTS)
    assert chance.dtype == odds.dtype == torch.float32 and expected.std() > 1e-3
    torch.testing.assert_close(chance, expected.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(odds, expected.logit().float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*MODELS, "hpsv3"])
def test_scores_of_a_batch_are_those_of_its_pictures(tower, name):
    """Questions of several lengths, and more pictures of one question than are read in one call."""
    count = 2 * AT_ONCE + 2
    images, prompts = pictures(count), [*PROMPTS, *["a cat"] * (count - 4)]
    reward = rewards.HPSv3(tower(name)) if name == "hpsv3" else rewards.VLMJudge(tower(name), QUESTION)
    singles = [score(reward, images[row : row + 1], prompts[row : row + 1]) for row in range(count)]
    torch.testing.assert_close(score(reward, images, prompts), torch.cat(singles), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def authors_rating(folder, image, prompt):
    """Return what HPSv3's authors compute: their own forward pass, with no positions but those in a row."""
    picture = files(image[None])[0].resize((560, 392), Image.Resampling.BICUBIC)  # by their own package
    seen = torch.from_numpy(numpy.array(picture)).movedim(-1, 0) / 255
    model, tokenizer, inputs = asked(folder, seen, vlm_judge.instruction().replace("{prompt}", prompt))
    ids = inputs["input_ids"]
    embeds = model.get_input_embeddings()(ids)
    visual, language = (getattr(model.model, part, None) for part in ("visual", "language_model"))
    found = (visual or model.visual)(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    found = getattr(found, "pooler_output", found)
    embeds = embeds.masked_scatter((ids == model.config.image_token_id)[..., None], found)
    states = (language or model.model)(inputs_embeds=embeds, attention_mask=inputs["attention_mask"])[0]
    (at,) = (ids[0] == tokenizer.convert_tokens_to_ids("<|Reward|>")).nonzero()[:, 0]
    head = load_file(folder / "model.safetensors")
    x = states[0, at]
    for place in (0, 3, 5):
        x = F.linear(x.relu() if place else x, head[f"rm_head.{place}.weight"], head[f"rm_head.{place}.bias"])
    return x[0]


def test_hpsv3_gives_what_its_authors_compute(folders, tower, tmp_path):
    images = pictures(2, 62, 90)
    found = score(rewards.HPSv3(tower("hpsv3")), images, PROMPTS[:2])
    whole = shutil.copytree(folders["hpsv3"], tmp_path / "whole")
    tiny_vlm.add_rating_token(whole)
    expected = torch.stack([authors_rating(whole, *pair) for pair in zip(images, PROMPTS, strict=False)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (expected[0] - expected[1]).abs() > 1e-3


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((512, 512), (448, 448)), ((1024, 1024), (448, 448)), ((1344, 768), (588, 336)), ((40, 56), (392, 532)),
        ((448, 448), (448, 448)), ((300, 900), (252, 756)), ((460, 430), (476, 448)), ((28, 1000), (84, 2688)),
    ],
)  # fmt: skip
def test_hpsv3_sees_pictures_of_the_size_that_its_authors_package_makes(size, seen):
    """What the package hpsv3 1.0.0, and imscore 0.0.11, give for these sizes."""
    assert vlm_judge.seen_size(*size) == seen


def test_a_half_precision_models_scores_are_not_rounded_to_its_steps(tmp_path):
    """The states are bfloat16's, the logits are not: where it rounds them, 16 pictures have few scores."""
    folder = tiny_vlm.write_qwen2_vl(tmp_path / "half", dtype=torch.bfloat16)
    tower = rewards.load_tower(folder)
    assert {weight.dtype for weight in tower.module.parameters()} == {torch.bfloat16}
    logits = tower.answers(files(pictures(8)), ["Is it?"] * 8, tower.tokens(["Yes"]))
    assert logits.dtype == torch.float32
    assert (logits != logits.bfloat16().float()).all()


def test_a_question_without_a_prompt_needs_none(tower):
    images = pictures(1)
    reward = rewards.VLMJudge(tower("llava"), "Is it pretty?")
    assert score(reward, images).isfinite().all()
    with pytest.raises(ValueError, match="VLM judge needs a prompt to score pictures with; found none"):
        rewards.VLMJudge(tower("llava"), QUESTION)(images)


def test_everything_may_happen_in_inference_mode(folders, tower):
    images = pictures(2)
    expected = score(rewards.VLMJudge(tower("qwen2_vl"), QUESTION, "a cat"), images)
    with torch.inference_mode():
        made = rewards.VlmTower(folders["qwen2_vl"])
        found = score(rewards.VLMJudge(made, QUESTION, "a cat"), images)
    torch.testing.assert_close(found, expected)
    assert not any(weight.is_inference() for weight in made.module.parameters())


@pytest.mark.parametrize("make", [
    lambda tower: rewards.VLMJudge(tower("llava"), "Is it a cat?"),
    lambda tower: rewards.HPSv3(tower("hpsv3"), "a cat"),
])
def test_a_search_of_three_iterations_without_gradients_raises_the_score(tower, make):
    sample_map = core.generator_map(lambda z: z.sigmoid(), (3, 56, 56))
    solver = core.ZeNO(4, beta=0.3)
    result = core.optimize(sample_map, make(tower), sample_map.randn(0), solver, iterations=3)
    assert result.history.best_row["score"][0] > result.history.rows[0]["score"][0]


def test_a_solver_that_needs_a_gradient_is_told_which_ones_do_not(tower):
    with pytest.raises(ValueError, match="VLM judge is not differentiable.*ZeNO or Search"):
        exact(rewards.VLMJudge(tower("llava"), QUESTION, "a cat"), pictures(1))


def test_a_picture_that_is_not_finite_has_no_score(tower):
    images = pictures(2)
    images[0, 0, 0, 0] = torch.nan
    scores = rewards.VLMJudge(tower("llava"), QUESTION, "a cat")(images)
    assert scores[0].isnan() and scores[1].isfinite()


@pytest.mark.parametrize("name", MODELS)
def test_no_more_memory_is_used_than_was_asked_for(folders, name):
    tower, alive, noted = rewards.VlmTower(folders[name]), LiveBytes(), {}

    def note(memory):
        alive.peak = alive.now
        noted.update(asked=memory, before=alive.now)

    tower.on_use = note
    reward, images = rewards.VLMJudge(tower, QUESTION, "a cat"), pictures(AT_ONCE, 448, 448)
    with alive:
        score(reward, images)
    assert 0 < alive.peak - noted["before"] < noted["asked"]


def changed_config(folder, target, **changes):
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


def test_a_model_that_transformers_does_not_know_is_refused(folders, tmp_path):
    folder = changed_config(folders["llava"], tmp_path / "new", model_type="qwen9_vl")
    with pytest.raises(ValueError, match=r"new is a 'qwen9_vl', which transformers .* does not know. .* update it"):
        rewards.load_tower(folder)


def test_a_model_that_takes_no_pictures_is_refused(folders, tmp_path):
    folder = changed_config(folders["llava"], tmp_path / "texts", model_type="bert")
    with pytest.raises(ValueError, match="texts is a 'bert', which does not answer questions about pictures"):
        rewards.load_tower(folder)


@pytest.mark.parametrize("lost", ["config.json", "tokenizer_config.json", "*.safetensors", "*processor_config.json"])
def test_a_folder_that_lacks_a_file_is_refused_by_the_files_name(folders, tmp_path, lost):
    folder = shutil.copytree(folders["llava"], tmp_path / "lacks")
    for path in folder.glob(lost):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle, which is not read")
    with pytest.raises(FileNotFoundError) as refusal:
        rewards.load_tower(folder)
    assert f"has no {lost}; expected all files" in str(refusal.value)


def test_weights_that_lack_a_layer_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders["llava"], tmp_path / "broken")
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if "layers.1" in name and "vision" not in name)
    del state[name]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="cannot read broken .no weights of .*layers.1.*Download the whole folder"):
        rewards.load_tower(folder)


@pytest.mark.parametrize("content", ["{", "[1]", "\xff", '{"model_type": []}'])
def test_a_configuration_that_is_damaged_is_refused_as_that(folders, tmp_path, content):
    folder = shutil.copytree(folders["llava"], tmp_path / "broken")
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match="broken/config.json is damaged .*Download the whole folder again"):
        rewards.load_tower(folder)


def test_a_rating_head_may_lie_in_several_files_and_is_missed_where_a_part_is(folders, tmp_path):
    image, question = pictures(1), "a cat"
    expected = rewards.HPSv3(rewards.load_tower(folders["hpsv3"]), question)(image)
    folder = shutil.copytree(folders["hpsv3"], tmp_path / "sharded")
    state = load_file(folder / "model.safetensors")
    last = [name for name in state if name.startswith("rm_head")][-1:]
    files = {"model-00001-of-00002.safetensors": state.keys() - set(last), "model-00002-of-00002.safetensors": last}
    for file, names in files.items():
        save_file({name: state[name] for name in names}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, names in files.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    torch.testing.assert_close(rewards.HPSv3(rewards.load_tower(folder), question)(image), expected)
    (folder / "model-00002-of-00002.safetensors").unlink()
    kept = load_file(folder / "model-00001-of-00002.safetensors")
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    for file in ("model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (folder / file).unlink()
    with pytest.raises(ValueError, match=f"sharded has a rating head without {last[0]}. Download the whole folder"):
        rewards.load_tower(folder)


def test_a_model_that_is_not_tuned_to_chat_is_refused(tmp_path):
    folder = tiny_vlm.write_llava(tmp_path / "base", chat_template=None)
    with pytest.raises(ValueError, match="base has no chat template"):
        rewards.load_tower(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tower: rewards.VLMJudge(tower("llava"), " "), "the question is empty; expected one that is answered"),
        (lambda tower: rewards.VLMJudge(tower("llava"), scale="log"), "scale is 'log'; expected one of 'log-odds'"),
        (lambda tower: rewards.HPSv3(tower("qwen2_vl")), "qwen2_vl has no weights rm_head.0.weight"),
        (lambda tower: rewards.CLIPScore(tower("llava"), "a cat"), "kind CLIP.* found llava, of kind VLM"),
        (lambda tower: tower("llava").tokens(["Perhaps"]), "llava has no token for any of Perhaps; expected one"),
    ],
)
def test_wrong_settings_and_towers_are_refused_by_name(tower, make, message):
    with pytest.raises(ValueError, match=message):
        make(tower)


def test_a_clip_answers_no_questions(build):
    with pytest.raises(ValueError, match="VLM judge needs a tower of kind VLM.*of kind CLIP. Use VLM: the folder"):
        rewards.VLMJudge(build("CLIPScore L").tower)
