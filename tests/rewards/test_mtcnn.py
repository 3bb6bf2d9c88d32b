"""MTCNN: its arithmetic against torchvision's and plain loops, its results against facenet-pytorch's own."""

from importlib.util import find_spec

import numpy as np
import pytest
import tiny_faces
import torch
from comfyui_dno import rewards
from comfyui_dno.rewards import mtcnn
from fetched_files import ASTRONAUT, MTCNN_FILES
from PIL import Image
from torch.nn import functional as F
from torchvision import ops

FOUND = {
    "box": [181.0514, 62.1561, 267.7473, 172.0501], "probability": 0.9999977,
    "points": [
        [205.0109, 101.7274], [246.7626, 103.7141], [224.6714, 128.9650], [201.7161, 139.2462], [245.2655, 141.8570],
    ],
}  # fmt: skip
"""What facenet-pytorch 2.6.0 finds in the astronaut's portrait."""


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return rewards.load_tower(tiny_faces.write_mtcnn(tmp_path_factory.mktemp("mtcnn")))


def bright(*squares, height=120, width=160):
    """Return a dark picture with bright squares: left, top and side of each."""
    picture = torch.full((1, 3, height, width), 0.2)
    for left, top, side in squares:
        picture[..., top : top + side, left : left + side] = 0.9
    return picture


def random_boxes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    start = 60 * torch.rand(count, 2, generator=generator)
    end = start + 5 + 30 * torch.rand(count, 2, generator=generator)
    return torch.cat([start, end, torch.rand(count, 1, generator=generator)], dim=1)


def test_a_face_is_found_where_it_is(detector):
    (faces,) = detector.faces(bright((90, 30, 50)))
    assert faces
    for face in faces:
        left, top, right, bottom = face.box.tolist()
        assert 80 < (left + right) / 2 < 150 and 20 < (top + bottom) / 2 < 90
        shares = (face.points + 1 - face.box[:2]) / (face.box[2:] - face.box[:2] + 1)
        torch.testing.assert_close(shares, torch.tensor(tiny_faces.FIVE_POINTS) / 112)


def test_the_largest_face_is_the_first(detector):
    (faces,) = detector.faces(bright((10, 10, 22), (60, 10, 80)))
    areas = [face.area for face in faces]
    assert areas == sorted(areas, reverse=True) and areas[0] > areas[-1]


def test_where_there_is_none_no_face_is_found(detector):
    assert detector.faces(torch.zeros(2, 3, 50, 40)) == [[], []]
    assert detector.faces(torch.ones(1, 3, 11, 11)) == [[]]  # smaller than any face


def test_small_faces_are_left_out_where_they_are_not_wanted(detector):
    found = {least: detector.faces(bright((40, 20, 90)), least)[0] for least in (20, 60)}
    widths = {least: min((face.box[2] - face.box[0]).item() for face in faces) for least, faces in found.items()}
    assert widths[20] < 25 and widths[60] > 50


def test_pictures_of_a_batch_are_judged_apart(detector):
    pictures = torch.cat([bright((90, 30, 50)), bright(), bright((5, 5, 40))])
    found = detector.faces(pictures)
    for picture, faces in zip(pictures.split(1), found, strict=True):
        (alone,) = detector.faces(picture)
        assert len(alone) == len(faces)
        assert all(torch.equal(a.points, b.points) for a, b in zip(alone, faces, strict=True))
    assert found[1] == []


def test_of_overlapping_boxes_those_of_torchvision_are_kept():
    boxes = random_boxes(200)
    expected = ops.nms(boxes[:, :4], boxes[:, 4], 0.5)
    assert 10 < len(expected) < 190
    assert torch.equal(mtcnn._kept(boxes, 0.5), expected)


def test_a_box_in_a_larger_more_probable_one_is_the_same_face():
    inside, apart, whole = [20, 20, 40, 40, 0.8], [70, 0, 90, 20, 0.7], [0, 0, 60, 60, 0.9]
    boxes = torch.tensor([inside, apart, whole])
    assert mtcnn._kept(boxes, 0.7, of_smaller=True).tolist() == [2, 1]
    assert mtcnn._kept(boxes, 0.7).tolist() == [2, 0, 1]
    assert mtcnn._kept(boxes[:0], 0.7).tolist() == []


def test_a_patch_is_what_is_in_the_box_and_in_the_picture():
    x = torch.arange(30.0 * 20).view(1, 1, 20, 30).expand(1, 3, 20, 30)
    boxes = torch.tensor([[3.0, 5.0, 8.9, 9.2], [-4.0, -7.0, 6.0, 5.0]])  # counted from 1
    found = mtcnn._patches(x, boxes, 1)[:, 0, 0, 0]
    expected = torch.stack([x[0, 0, 4:9, 2:8].mean(), x[0, 0, 0:5, 0:6].mean()])
    torch.testing.assert_close(found, expected)
    outside = torch.tensor([[40.0, 2.0, 50.0, 9.0], [3.0, -9.0, 8.0, -2.0], [1.0, 1.0, 2.0, 2.0]])
    assert mtcnn._is_inside(outside, x).tolist() == [False, False, True]


def layers_of(state, name, x):
    """Run one of the networks by PyTorch's functions, as its paper's figure lists the layers."""

    def layer(kind, number, x):
        x = kind(x, state[f"{number}.weight"], state[f"{number}.bias"])
        return F.prelu(x, state[f"prelu{number[-1]}.weight"])

    pools = {"pnet": [2, 0, 0], "rnet": [3, 3, 0], "onet": [3, 3, 2, 0]}[name]
    for number, pool in enumerate(pools, 1):
        x = layer(F.conv2d, f"conv{number}", x)
        x = F.max_pool2d(x, pool, 2, ceil_mode=True) if pool else x
    kind, number = F.conv2d, f"conv{len(pools) + 1}"
    if name != "pnet":
        x = torch.stack([row.T.flatten() for row in x.flatten(1).view(len(x), x.shape[1], -1)])
        side = {"rnet": 3, "onet": 3}[name]
        x = x.view(len(x), side, side, -1).transpose(1, 2).flatten(1)  # columns first, as in Caffe
        x, kind, number = layer(F.linear, f"dense{len(pools) + 1}", x), F.linear, f"dense{len(pools) + 2}"
    heads = [kind(x, state[f"{number}_{k}.weight"], state[f"{number}_{k}.bias"]) for k in (1, 2)]
    if name == "onet":
        heads.append(F.linear(x, state["dense6_3.weight"], state["dense6_3.bias"]))
    return heads[0].softmax(dim=1)[:, 1], *heads[1:]


@pytest.mark.parametrize(("name", "side"), [("pnet", 21), ("rnet", 24), ("onet", 48)])
def test_a_network_is_the_layers_of_the_paper(name, side):
    network = mtcnn.NETWORKS[name]({}).requires_grad_(False)
    torch.manual_seed(0)
    for value in network.state_dict().values():
        value.copy_(torch.randn(value.shape) * 0.1)
    x = torch.randn(3, 3, side, side)
    for found, expected in zip(network(x), layers_of(network.state_dict(), name, x), strict=True):
        torch.testing.assert_close(found, expected)


def test_files_that_lie_beside_onets_are_asked_for(tmp_path):
    path = tiny_faces.write_mtcnn(tmp_path)
    (tmp_path / "rnet.pt").unlink()
    with pytest.raises(
        FileNotFoundError, match="no rnet.pt beside onet.pt.*pnet.pt, rnet.pt, onet.pt.*facenet-pytorch"
    ):
        rewards.load_tower(path)
    (tmp_path / "pnet.pt").rename(tmp_path / "rnet.pt")
    torch.save(tiny_faces.mtcnn_state("pnet"), tmp_path / "pnet.pt")
    with pytest.raises(ValueError, match="rnet.pt is not a whole rnet"):
        rewards.load_tower(path)


def portrait():
    return torch.tensor(np.array(Image.open(ASTRONAUT.path()).convert("RGB"))).movedim(-1, 0)[None] / 255


def real_detector(folder):
    for file in MTCNN_FILES:
        (folder / file.path().name).write_bytes(file.path().read_bytes())
    return rewards.load_tower(folder / "onet.pt")


@pytest.mark.slow  # its files may have to be fetched
def test_the_published_weights_find_the_astronauts_face_where_facenet_pytorch_does(tmp_path):
    ((face,),) = real_detector(tmp_path).faces(portrait())
    assert face.box.tolist() == pytest.approx(FOUND["box"], abs=0.01)
    assert face.probability == pytest.approx(FOUND["probability"], abs=1e-5)
    torch.testing.assert_close(face.points, torch.tensor(FOUND["points"]), rtol=0, atol=0.01)


@pytest.mark.oracles
@pytest.mark.parametrize("size", [(512, 512), (300, 217), (900, 1100)])
@pytest.mark.skipif(not find_spec("facenet_pytorch"), reason="needs the package facenet-pytorch")
def test_faces_are_those_of_facenet_pytorch(tmp_path, size):
    from facenet_pytorch import MTCNN

    picture = Image.open(ASTRONAUT.path()).convert("RGB").resize(size)
    boxes, probabilities, points = MTCNN(keep_all=True).detect(picture, landmarks=True)
    (faces,) = real_detector(tmp_path).faces(torch.tensor(np.array(picture)).movedim(-1, 0)[None] / 255)
    assert len(faces) == len(boxes)
    for face, *expected in zip(faces, boxes, points, probabilities, strict=True):
        box, places, probability = (torch.tensor(np.float32(value)) for value in expected)
        # Pixels are scaled before and not after they are averaged; 1e-4 pixels were measured.
        torch.testing.assert_close(face.box, box, rtol=0, atol=1e-3)
        torch.testing.assert_close(face.points, places, rtol=0, atol=1e-3)
        assert face.probability == pytest.approx(probability.item(), abs=1e-5)
