"""What stands in the way of autograd inside ComfyUI's models, and does not hinder a search."""

import pytest
import torch
from workflows import NoiseWorkflow, Workflow, error, notes_of, stock_picture


class Network(Workflow):
    """A workflow whose model is a tiny network of another family than the UNet's."""

    def __init__(self, family, seed=0):
        super().__init__()
        tiny = self.node("DNOTestNetwork", family=family, seed=seed)
        self.model, self.positive, self.negative, self.vae = (tiny[i] for i in range(4))
        self.channels = {"HunyuanImage21": 64, "ErnieImage": 128}.get(family, 16)

    def latent(self, **settings):
        return super().latent(**{"channels": self.channels, "scale": 0.0, **settings})


def network(comfy, family, seed=0):
    if family == "ErnieImage" and comfy.version <= (0, 3, 75):
        pytest.skip("this family is newer than this ComfyUI")
    return Network(family, seed)


def assert_right_gradient(comfy, graph, record_property, **settings):
    """Against differences, whose own rounding is some 5e-4."""
    graph.witnessed("extrapolated_gradient", cfg=3.0, **settings)
    errors = notes_of(comfy.run(graph))["gradient_error"]
    record_property("gradient_error", errors)
    assert max(errors) < 2e-3, errors


FAMILIES = ["Flux", "Chroma", "HunyuanImage21", "ErnieImage"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_of_a_network_that_changes_in_place_or_has_fused_kernels(comfy, record_property, family):
    graph = network(comfy, family)
    assert_right_gradient(comfy, graph, record_property)


@pytest.mark.parametrize("family", FAMILIES)
def test_such_a_network_gives_the_stock_samplers_latent_at_0_iterations(comfy, family):
    graph = network(comfy, family)
    graph.keep("ours", graph.dno(eta=0.0)[0])
    graph.keep("stock", graph.node("KSampler", **graph.sampling(), sampler_name="euler")[0])
    kept = comfy.run(graph).kept
    assert error(kept["ours"]["samples"], kept["stock"]["samples"]) < 1e-5


def controlled(kind):
    graph = Workflow()
    picture = graph.node("EmptyImage", width=64, height=64, batch_size=1, color=0x4080C0)[0]
    control = graph.node("DNOTestControl", kind=kind, seed=1)[0]
    applied = graph.node(
        "ControlNetApplyAdvanced", positive=graph.positive, negative=graph.negative, control_net=control,
        image=picture, strength=0.5, start_percent=0.0, end_percent=1.0,
    )  # fmt: skip
    graph.positive, graph.negative = applied[0], applied[1]
    return graph


@pytest.mark.parametrize("kind", ["ControlNet", "T2I adapter"])
def test_the_gradient_is_right_with_a_control(comfy, record_property, kind):
    graph = controlled(kind)
    assert_right_gradient(comfy, graph, record_property)


def test_the_memory_of_a_search_counts_the_control_that_runs_in_each_call(comfy):
    asked = {}
    for name, graph in {"alone": Workflow(model_seed=31), "controlled": controlled("ControlNet")}.items():
        graph.witnessed("asked")
        asked[name] = notes_of(comfy.run(graph))["asked"]
    # The tiny ControlNet has more weights than its model, and the decoder is counted in both.
    assert asked["controlled"] > 1.2 * asked["alone"], asked


def test_the_memory_of_a_guided_run_counts_a_step_and_all_that_is_decoded_beside_it(comfy):
    asked = {}
    for guesses in (0, 1, 3):
        graph = Workflow(model_seed=32)
        graph.witnessed("asked", guesses=guesses)
        asked[guesses] = notes_of(comfy.run(graph))["asked"]
    decode = (asked[3] - asked[1]) / 2
    step = asked[1] - decode
    assert min(step, decode) > 0 and asked[0] == pytest.approx(max(step, decode)), asked


@pytest.mark.parametrize("obstacle", ["playground", "mask", "bypass lora"])
def test_the_gradient_is_right_where_tensors_of_inference_mode_hang(comfy, record_property, obstacle):
    """In a latent format's statistics, in a patch's closure, in the hooks of a LoRA that is not merged."""
    if obstacle == "bypass lora" and comfy.version <= (0, 3, 75):
        pytest.skip("this kind of LoRA is newer than this ComfyUI")
    before = stock_picture(comfy, 11)
    graph = Workflow(obstacle=obstacle if obstacle != "playground" else None)
    if obstacle == "playground":
        settings = {"sampling": "edm_playground_v2.5", "sigma_max": 80.0, "sigma_min": 0.002}
        graph.model = graph.node("ModelSamplingContinuousEDM", model=graph.model, **settings)[0]
    log = comfy.log()
    assert_right_gradient(comfy, graph, record_property)
    assert ("form that autograd accepts" in comfy.log()[len(log) :]) == (obstacle != "playground")
    assert torch.equal(stock_picture(comfy, 12), before)


def test_a_patch_that_changes_a_tensor_of_inference_mode_is_refused(comfy):
    """Its gradient would go into a tensor that nobody reads."""
    graph = Workflow(obstacle="changing mask")
    graph.keep("latent", graph.dno(iterations=1)[0])
    assert "Remove nodes that patch the model" in comfy.fail(graph)


def test_the_stock_sampler_runs_as_before_on_a_network_that_was_searched(comfy):
    found = []
    for iterations in (0, 2):
        graph = network(comfy, "Flux", seed=5)
        if iterations:
            graph.keep("searched", graph.dno(iterations=iterations)[0])
        stock = graph.node("KSampler", **graph.sampling(cfg=8.0 + iterations * 1e-12), sampler_name="euler")
        graph.keep("stock", stock[0])
        found.append(comfy.run(graph).kept["stock"]["samples"])
    assert torch.equal(*found)


class TestNoiseScale:
    """A model whose noise has another variance, as HiDream O1; ComfyUI 0.3.75 has none."""

    def graph(self, comfy):
        if comfy.version <= (0, 3, 75):
            pytest.skip("models of this kind are newer than this ComfyUI")
        graph = NoiseWorkflow("flow")
        graph.model = graph.node("DNOTestObstacle", model=graph.model, kind="noise scale")[0]
        return graph

    @pytest.mark.parametrize("eta, sampler", [(0.0, "euler"), (1.0, "euler_ancestral")])
    def test_zero_iterations_equal_the_stock_sampler(self, comfy, eta, sampler):
        graph = self.graph(comfy)
        graph.keep("ours", graph.dno(eta=eta)[0])
        graph.keep("stock", graph.node("KSampler", **graph.sampling(), sampler_name=sampler)[0])
        kept = comfy.run(graph).kept
        assert error(kept["ours"]["samples"], kept["stock"]["samples"]) < 1e-5

    def test_the_gradient_is_right_and_the_noise_replays(self, comfy, record_property):
        graph = self.graph(comfy)
        assert_right_gradient(comfy, graph, record_property)
        graph = self.graph(comfy)
        latent = graph.latent()
        ours = graph.dno(iterations=2, latent=latent)
        graph.keep("ours", ours[0])
        graph.keep("replayed", graph.replay(ours[2], latent)[0])
        kept = comfy.run(graph).kept
        assert error(kept["replayed"]["samples"], kept["ours"]["samples"]) < 1e-5


def quantised(comfy, kind, rounds_input=False):
    """A workflow whose model has quantised weights; its seed is another's, so that no test gets another's layers."""
    older = comfy.version <= (0, 3, 75)
    if older != (kind == "scaled") and kind != "float8_e4m3fn":
        pytest.skip("this ComfyUI has no weights of this kind")
    graph = Workflow()
    seed = 20 + rounds_input
    graph.model = graph.node("DNOTestQuantised", kind=kind, seed=seed, rounds_input=rounds_input)[0]
    return graph


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "scaled"])
def test_the_gradient_is_right_with_quantised_weights(comfy, record_property, kind):
    assert_right_gradient(comfy, quantised(comfy, kind), record_property)


def test_the_gradient_is_right_where_layers_would_round_their_input_and_lose_it(comfy, record_property):
    if comfy.version > (0, 3, 75):
        pytest.skip("this ComfyUI rounds with a gradient of its own, which no difference shows")
    assert_right_gradient(comfy, quantised(comfy, "float8_e4m3fn", rounds_input=True), record_property)


def test_the_gradient_is_right_where_two_loaded_models_share_quantised_layers(comfy, record_property):
    graph = quantised(comfy, "float8_e4m3fn")
    graph.model = graph.node("DNOTestObstacle", model=graph.model, kind="loaded twice")[0]
    assert_right_gradient(comfy, graph, record_property)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "int8_tensorwise", "scaled"])
def test_a_search_climbs_with_quantised_weights_and_the_stock_sampler_runs_as_before(comfy, kind):
    stock = []
    for iterations in (0, 3):
        graph = quantised(comfy, kind)
        if iterations:
            history = graph.node("DNOTestHistory", history=graph.dno(iterations=iterations, cfg=3.0)[3])
        inputs = graph.sampling(cfg=8.0 + iterations * 1e-12)
        graph.keep("stock", graph.node("KSampler", **inputs, sampler_name="euler")[0])
        run = comfy.run(graph)
        stock.append(run.kept["stock"]["samples"])
    scores = torch.tensor([row["score"] for row in run.outputs[history.id]["history"][0]["rows"]])
    assert (scores.amax(dim=0) > scores[0]).all(), scores
    assert torch.equal(*stock)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "int8_tensorwise", "scaled"])
def test_comfyui_can_move_a_quantised_model_that_was_searched(comfy, kind):
    """To free its memory, which is done in inference mode, where a quantised weight made for autograd cannot move."""
    stock = []
    for turn in range(2):
        graph = quantised(comfy, kind)
        if turn:
            graph.model = graph.node("DNOTestObstacle", model=graph.model, kind="loaded twice")[0]
        inputs = graph.sampling(cfg=8.0 + turn * 1e-12)
        graph.keep("stock", graph.node("KSampler", **inputs, sampler_name="euler")[0])
        stock.append(comfy.run(graph).kept["stock"]["samples"])
        if not turn:
            graph = quantised(comfy, kind)
            graph.keep("searched", graph.dno(iterations=1)[0])
            comfy.run(graph)
    assert torch.equal(*stock)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "scaled"])
def test_a_graph_holds_quantised_weights_as_they_are_stored(comfy, kind):
    """The cast ones of the attention are four times as many bytes."""
    graph = quantised(comfy, kind)
    graph.witnessed("cast_weights")
    assert notes_of(comfy.run(graph))["cast_weights"] == []
