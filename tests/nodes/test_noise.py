"""Noise in and out of a real ComfyUI: saved, resumed, replayed by the stock sampler, judged, taken apart."""

import re
import time
from dataclasses import replace

import pytest
import torch
from comfyui_dno import core
from workflows import NoiseWorkflow, error, file_of, history_of, rose


def path_of(comfy, file):
    """Return the path of a noise file by its name for DNO Load Noise."""
    return comfy.folder / "output" / file.removesuffix(" [output]")


@pytest.mark.parametrize("family", ["eps", "v", "flow"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_stock_sampler_replays_the_searched_latent(comfy, record_property, family, eta):
    graph = NoiseWorkflow(family)
    latent = graph.latent()
    ours = graph.dno(eta=eta, iterations=1, solver=graph.gradient(), latent=latent)
    graph.keep("ours", ours[0])
    graph.keep("first", graph.dno(eta=eta, latent=latent)[0])
    graph.keep("replayed", graph.replay(ours[2], latent)[0])
    kept = comfy.run(graph).kept
    found, expected = kept["replayed"]["samples"], kept["ours"]["samples"]
    record_property("replay", error(found, expected))
    assert error(found, expected) < 1e-5 < error(kept["first"]["samples"], expected)


@pytest.mark.parametrize("mask", ["half", "soft"])
def test_image_to_image_and_masks_are_replayed_too(comfy, mask):
    graph = NoiseWorkflow()
    latent = graph.latent(batch=2, mask=mask)
    ours = graph.dno(iterations=2, solver=graph.gradient(0.1), latent=latent, denoise=0.6)
    graph.keep("ours", ours[0])
    graph.keep("replayed", graph.replay(ours[2], latent)[0])
    kept = comfy.run(graph).kept
    assert error(kept["replayed"]["samples"], kept["ours"]["samples"]) < 1e-5


def test_one_picture_of_a_batch_is_replayed_alone_out_of_a_file(comfy):
    graph = NoiseWorkflow()
    ours = graph.dno(iterations=2, solver=graph.gradient())
    graph.keep("ours", ours[0])
    save = graph.save(ours[2], "batch")
    run = comfy.run(graph)
    expected = run.kept["ours"]["samples"][1:]
    graph = NoiseWorkflow()
    one = graph.node("DNONoiseFromBatch", noise=graph.load(file_of(run, save)), picture=1)
    alone = graph.node("EmptyLatentImage", width=64, height=64, batch_size=1)[0]
    graph.keep("replayed", graph.replay(one[0], alone)[0])
    assert error(comfy.run(graph).kept["replayed"]["samples"], expected) < 1e-5


def test_a_search_goes_on_from_its_file_as_if_it_had_never_stopped(comfy):
    whole, first, rest = NoiseWorkflow(), NoiseWorkflow(), NoiseWorkflow()
    whole.keep("latent", whole.dno(iterations=3, solver=whole.gradient())[0])
    expected = comfy.run(whole).kept["latent"]["samples"]
    file = first.saved(comfy, first.dno(iterations=2, solver=first.gradient())[2], "stopped")
    ours = rest.dno(iterations=1, solver=rest.gradient(), start_noise=rest.load(file), seed=99)
    rest.keep("latent", ours[0])
    rest.node("DNOTestHistory", history=ours[3])
    run = comfy.run(rest)
    assert torch.equal(run.kept["latent"]["samples"], expected)
    history = history_of(run)
    assert [row["iteration"] for row in history["rows"]] == [2, 3] and history["settings"]["seed"] == 3


def test_without_resume_a_search_starts_at_the_best(comfy):
    graph = NoiseWorkflow()
    file = graph.saved(comfy, graph.dno(iterations=2, solver=graph.gradient())[2], "best")
    graph = NoiseWorkflow()
    ours = graph.dno(iterations=1, solver=graph.gradient(), start_noise=graph.load(file, resume=False))
    graph.node("DNOTestHistory", history=ours[3])
    assert [row["iteration"] for row in history_of(comfy.run(graph))["rows"]] == [0, 1]


def test_a_saved_noise_says_all_that_replays_it(comfy):
    graph = NoiseWorkflow()
    file = graph.saved(comfy, graph.dno(iterations=1, solver=graph.gradient())[2], "settings")
    noise = core.Noise.load(path_of(comfy, file))
    names = {"seed", "steps", "cfg", "scheduler", "denoise", "eta", "sigmas", "family", "s_noise", "model"}
    assert set(noise.settings) == names
    assert len(noise.settings["sigmas"]) == 7 and noise.settings["seed"] == 3
    assert noise.checkpoint.iteration == 1 and set(noise.checkpoint.memory) == {"exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("change, message", [
    ({"steps": 5}, "expected \\(2, 4, 8, 8\\) with 4 \\(2 pictures, 5 steps"),
    ({"scheduler": "karras"}, "made with sigmas"),
    ({"eta": 0.5}, "made with eta 1.0, but here it is 0.5"),
    ({"latent": {"batch": 1, "scale": 0.0}}, "the noise is of 2 pictures; expected 1"),
    ({"latent": {"batch": 2, "size": 4, "scale": 0.0}}, "expected \\(2, 4, 4, 4\\)"),
    ({"model": True}, "made with model"),
])
def test_a_noise_of_other_settings_is_refused_by_the_sampler(comfy, change, message):
    graph = NoiseWorkflow()
    noise = graph.dno()[2]
    if change.pop("model", None):
        other = {"family": "eps", "seed": 7, "dtype": "float32", "vae_channels": 4}
        graph.model = graph.node("DNOTestModel", **other)[0]
    if "latent" in change:
        change = {"latent": graph.latent(**change["latent"])}
    graph.keep("latent", graph.dno(start_noise=noise, **change)[0])
    assert re.search(message, comfy.fail(graph))


def test_the_check_can_be_switched_off(comfy):
    graph = NoiseWorkflow()
    file = graph.saved(comfy, graph.dno()[2], "free")
    graph = NoiseWorkflow()
    graph.keep("latent", graph.dno(start_noise=graph.load(file, check=False), scheduler="karras")[0])
    comfy.run(graph)


def test_replay_refuses_other_sigmas_and_sizes(comfy):
    graph = NoiseWorkflow()
    noise = graph.dno()[2]
    graph.keep("latent", graph.replay(noise, graph.latent(), sigmas=graph.sigmas(scheduler="karras"))[0])
    assert "the noise was made with sigmas" in comfy.fail(graph)
    graph = NoiseWorkflow()
    small = graph.node("EmptyLatentImage", width=32, height=64, batch_size=2)[0]
    graph.keep("latent", graph.replay(graph.dno()[2], small)[0])
    assert "the noise is (2, 4, 8, 8) but the latent is (2, 4, 8, 4)" in comfy.fail(graph)


def test_a_missing_file_is_refused_before_anything_runs(comfy):
    graph = NoiseWorkflow()
    graph.keep("latent", graph.dno(start_noise=graph.load("dno/never.safetensors [output]"))[0])
    with pytest.raises(ValueError, match="there is no noise file dno/never.safetensors"):
        comfy.run(graph)


@pytest.mark.parametrize("file", [
    "../../../../../../etc/hostname", "../../../../../../etc/hostname [output]", "/etc/hostname", "/dev/zero",
    "..\\..\\secret.safetensors", "dno/../../secret.safetensors [output]", "secret.safetensors [temp]", "",
])
def test_files_that_the_list_does_not_offer_are_not_read(comfy, file):
    for place in (comfy.folder, comfy.folder / "temp"):
        place.mkdir(exist_ok=True)
        (place / "secret.safetensors").write_bytes(b"not for a workflow")
    graph = NoiseWorkflow()
    graph.keep("latent", graph.dno(start_noise=graph.load(file))[0])
    with pytest.raises(ValueError, match="there is no noise file"):
        comfy.run(graph)


def test_a_file_that_is_named_by_a_link_is_read_anew_each_time(comfy):
    graph = NoiseWorkflow()
    graph.keep("saved", graph.dno(seed=3)[2])
    save = graph.save(graph.dno(seed=3)[2], "linked")
    run = comfy.run(graph)
    saved, file, before = run.kept["saved"]["initial"], file_of(run, save), len(comfy.log())
    path = path_of(comfy, file)
    found = []
    for scale in (1, 2):
        noise = core.Noise.load(path)
        replace(noise, initial=scale * saved).save(path)
        graph = NoiseWorkflow()
        name = graph.node("DNOTestText", text=file)[0]
        graph.keep("noise", graph.load(name))
        found.append(comfy.run(graph).kept["noise"]["initial"])
    assert torch.equal(found[0], saved) and torch.equal(found[1], 2 * saved)
    assert "WARNING" not in comfy.log()[before:], comfy.log()[before:]


def test_a_workflow_from_windows_finds_its_noise(comfy):
    graph = NoiseWorkflow()
    file = graph.saved(comfy, graph.dno(seed=3)[2], "cats\\windows")
    graph = NoiseWorkflow()
    noise = graph.load(file.replace("/", "\\"))
    graph.keep("noise", graph.node("DNONoiseProbability", noise=noise, picture=0)[2])
    comfy.run(graph)
    assert re.fullmatch(r"dno/cats/windows_\d{5}_\.safetensors \[output\]", file) and path_of(comfy, file).is_file()


def test_a_noise_is_saved_inside_the_output_folder_alone(comfy):
    before = {path for path in comfy.folder.rglob("*noise*.safetensors")}
    for prefix, words in (("../noise", "inside the output folder"), ("a\0b", "printable"), ("x" * 300, "300 bytes")):
        graph = NoiseWorkflow()
        graph.node("DNOSaveNoise", noise=graph.dno()[2], filename_prefix=prefix)
        found = comfy.fail(graph)
        assert words in found and "\n" not in found.strip(), found
    graph = NoiseWorkflow()
    graph.node("DNOSaveNoise", noise=graph.dno()[2], filename_prefix="")
    comfy.run(graph)
    (made,) = {path for path in comfy.folder.rglob("*noise*.safetensors")} - before
    assert re.fullmatch(r"noise_\d{5}_\.safetensors", made.name) and made.parent == comfy.folder / "output" / "dno"


def test_saved_noises_are_listed_for_loading(comfy):
    graph = NoiseWorkflow()
    file = graph.saved(comfy, graph.dno()[2], "listed")
    kind, *rest = comfy.get("/object_info/DNOLoadNoise")["DNOLoadNoise"]["input"]["required"]["file"]
    assert file in (kind if isinstance(kind, list) else rest[0]["options"])


def test_probability_tells_true_noise_from_a_runaway(comfy):
    graph = NoiseWorkflow()
    for key, lr, iterations in (("true", 0.1, 0), ("runaway", 0.5, 4)):
        noise = graph.dno(iterations=iterations, solver=graph.gradient(lr))[2]
        judged = graph.node("DNONoiseProbability", noise=noise, picture=1)
        graph.keep(key, judged[2])
        graph.node("PreviewAny", source=judged[0])
    run = comfy.run(graph)
    true, runaway = [float(o["text"][0]) for o in run.outputs.values() if "text" in o and o["text"][0][0].isdigit()]
    assert true > 0.01
    assert run.kept["true"]["tensor"].shape == run.kept["runaway"]["tensor"].shape
    assert not torch.equal(run.kept["true"]["tensor"], run.kept["runaway"]["tensor"])
    assert 0 <= runaway <= 1


@pytest.mark.parametrize("family", ["eps", "flow"])
def test_the_advanced_sampler_gives_what_the_sampler_gives(comfy, family):
    graph = NoiseWorkflow(family)
    latent = graph.latent()
    graph.keep("plain", graph.dno(iterations=2, latent=latent)[0])
    advanced = graph.node(
        "DNOSamplerAdvanced", noise=graph.node("RandomNoise", noise_seed=3)[0], guider=graph.guider(),
        sigmas=graph.sigmas(), latent_image=latent, vae=graph.vae, reward=graph.reward, eta=1.0, iterations=2,
    )  # fmt: skip
    graph.keep("advanced", advanced[0])
    graph.keep("image", advanced[1])
    kept = comfy.run(graph).kept
    assert torch.equal(kept["advanced"]["samples"], kept["plain"]["samples"])
    assert kept["image"]["tensor"].shape == (2, 64, 64, 3)


def test_the_later_part_of_a_split_schedule_is_searched_though_its_first_noise_is_none(comfy):
    graph = NoiseWorkflow()
    split, latent = graph.node("SplitSigmas", sigmas=graph.sigmas(), step=3), graph.latent()
    begun = graph.node(
        "SamplerCustomAdvanced", noise=graph.node("RandomNoise", noise_seed=3)[0], guider=graph.guider(),
        sampler=graph.node("KSamplerSelect", sampler_name="euler_ancestral")[0], sigmas=split[0], latent_image=latent,
    )  # fmt: skip
    ours = graph.node(
        "DNOSamplerAdvanced", noise=graph.node("DisableNoise")[0], guider=graph.guider(), sigmas=split[1],
        latent_image=begun[0], vae=graph.vae, reward=graph.reward, solver=graph.gradient(), eta=1.0, iterations=4,
    )  # fmt: skip
    graph.keep("noise", ours[2])
    graph.node("DNOTestHistory", history=ours[3])
    run = comfy.run(graph)
    history = history_of(run)
    assert rose(history)
    assert not run.kept["noise"]["initial"].any() and run.kept["noise"]["injected"].any()
    (text,) = run.outputs[ours.id]["text"]
    warning = text.splitlines()[-1]
    assert "the injected noises alone are searched" in warning and warning in comfy.log()


def test_the_advanced_sampler_refuses_an_empty_schedule(comfy):
    graph = NoiseWorkflow()
    sigmas = graph.node("SplitSigmas", sigmas=graph.sigmas(), step=6)[1]
    advanced = graph.node(
        "DNOSamplerAdvanced", noise=graph.node("RandomNoise", noise_seed=3)[0], guider=graph.guider(), sigmas=sigmas,
        latent_image=graph.latent(), vae=graph.vae, reward=graph.reward, eta=1.0, iterations=2,
    )  # fmt: skip
    graph.keep("latent", advanced[0])
    assert "there are 1 sigmas, so no step; expected two or more" in comfy.fail(graph)


def test_a_replay_is_interrupted_within_one_call_and_shows_previews(comfy):
    graph = NoiseWorkflow(obstacle="slow")
    graph.model = graph.node("DNOTestPreviewer", model=graph.model)[0]
    graph.keep("latent", graph.replay(graph.dno(steps=20)[2], graph.latent())[0])
    interrupted = []

    def interrupt(run, kind, data):
        replaying = kind == "progress" and data["max"] == 20
        if replaying and data["value"] >= 3 and not interrupted:
            interrupted.append(time.monotonic())
            comfy.interrupt()

    run = comfy.run(graph, on_message=interrupt)
    assert run.ended == "execution_interrupted" and interrupted
    assert run.messages[-1][2] - interrupted[0] < 2


def test_what_is_picked_is_the_first_of_the_next_round_and_stays_probable(comfy):
    """Pick, vary, pick, in three workflows, as somebody does who looks at the pictures between them."""
    picked, picture, file = None, 0, ""
    for round_ in range(3):
        graph = NoiseWorkflow()
        start = graph.load(file) if file else graph.dno(latent=graph.latent(batch=1, scale=0.0))[2]
        some = graph.node("DNOVariations", noise=start, picture=picture, count=3, strength=0.4, seed=round_)[0]
        ours = graph.dno(latent=graph.latent(batch=3, scale=0.0), start_noise=some)
        graph.keep("latents", ours[0])
        told = graph.node("DNONoiseProbability", noise=ours[2], picture=2)
        graph.keep("image", told[2])
        save = graph.save(ours[2], f"round{round_}")
        run = comfy.run(graph)
        latents = run.kept["latents"]["samples"]
        if picked is not None:
            assert error(latents[:1], picked) < 1e-5
        assert min(error(latents[[a]], latents[[b]]) for a, b in ((0, 1), (0, 2), (1, 2))) > 0.05
        assert float(re.match(r"P\(z\) (\S+),", run.outputs[told.id]["text"][0])[1]) > 0.01
        file, picture, picked = file_of(run, save), 2, latents[2:]
