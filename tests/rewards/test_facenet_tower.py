"""FaceNetTower against its layers written out, and against facenet-pytorch's own class."""

from importlib.util import find_spec

import facenet_reference
import pytest
import tiny_faces
import torch
from comfyui_dno.rewards import weights
from comfyui_dno.rewards.facenet_tower import FaceNetTower
from fetched_files import FACENET_GRAPH
from frozen_graph import facenet_state
from torch.nn import functional as F


def faces(count=2, dtype=torch.float32):
    """Return smooth random pictures of 160 x 160."""
    coarse = torch.rand((count, 3, 10, 10), generator=torch.Generator().manual_seed(0), dtype=dtype)
    return F.interpolate(coarse, 160, mode="bilinear")


def unit(tower, pictures):
    return F.normalize(tower.embed(pictures), dim=1)


def assert_alike(found, expected):
    """The same direction: a tenth of a thousandth of how far apart two pictures are."""
    apart = (expected[0] - expected[1]).norm()
    assert (found - expected).norm(dim=1).max() < 1e-4 * apart


def test_embeddings_are_those_of_the_layers_written_out():
    state, pictures = tiny_faces.facenet_state(), faces()
    expected = facenet_reference.embeddings(state, (pictures * 255 - 127.5) / 128)
    assert_alike(unit(FaceNetTower(state), pictures), expected)


def test_the_gradient_is_that_of_the_layers_written_out():
    state, pictures = tiny_faces.facenet_state(), faces().requires_grad_()
    toward = torch.randn(512 // tiny_faces.NARROW, generator=torch.Generator().manual_seed(1))
    expected, found = (
        torch.autograd.grad((embeds @ toward).sum(), pictures)[0]
        for embeds in (
            facenet_reference.embeddings(state, (pictures * 255 - 127.5) / 128),
            unit(FaceNetTower(state), pictures),
        )
    )
    assert (found - expected).norm() < 1e-3 * expected.norm()


def test_a_checkpoint_without_the_people_of_its_training_serves_too():
    state, pictures = tiny_faces.facenet_state(), faces()
    without = {name: value for name, value in state.items() if "logits" not in name and "tracked" not in name}
    assert torch.equal(FaceNetTower(state).embed(pictures), FaceNetTower(without).embed(pictures))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 0.003), (torch.bfloat16, 0.025)])
def test_half_precision_gives_float32_and_nearly_the_same(dtype, error):
    """Two pictures are 0.093 apart; errors of 0.0008 and 0.0063 were measured."""
    state, pictures = tiny_faces.facenet_state(), faces()
    expected, found = unit(FaceNetTower(state), pictures), unit(FaceNetTower(state, dtype=dtype), pictures)
    assert found.dtype == torch.float32
    assert (found - expected).norm(dim=1).max() < error


@pytest.mark.parametrize("lost", ["repeat_2.4.branch1.1.conv.weight", "conv2d_1a.bn.running_mean", "last_bn.bias"])
def test_what_is_no_whole_facenet_is_refused(lost):
    state = tiny_faces.facenet_state()
    del state[lost]
    with pytest.raises(ValueError, match="facenet.pt is not a whole FaceNet"):
        FaceNetTower(state, "facenet.pt")
    with pytest.raises(ValueError, match="is of the kind 'MTCNN'; expected 'FaceNet'"):
        FaceNetTower(tiny_faces.mtcnn_state("onet"), "onet.pt")


@pytest.mark.slow  # its file may have to be fetched
def test_published_weights_give_what_the_layers_written_out_give():
    state, pictures = facenet_state(FACENET_GRAPH.path()), faces()
    assert weights.kind_of(state) == "FaceNet"
    with torch.no_grad():
        expected = facenet_reference.embeddings(state, (pictures * 255 - 127.5) / 128)
        found = unit(FaceNetTower(state), pictures)
    assert found.shape == (2, 512)
    assert_alike(found, expected)


@pytest.mark.oracles
@pytest.mark.skipif(not find_spec("facenet_pytorch"), reason="needs the package facenet-pytorch")
def test_embeddings_are_those_of_facenet_pytorch():
    from facenet_pytorch import InceptionResnetV1

    state, pictures = tiny_faces.facenet_state(narrow=1), faces()
    network = InceptionResnetV1(num_classes=7, classify=True).eval()
    network.load_state_dict(state)
    network.classify = False
    with torch.no_grad():
        expected = network((pictures * 255 - 127.5) / 128)
        assert_alike(unit(FaceNetTower(state), pictures), expected)
