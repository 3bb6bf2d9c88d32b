"""Where a face's square is, and what is cut out of the picture, by closed forms and by PyTorch's own resizing."""

import math

import pytest
import tiny_rewards
import torch
from comfyui_dno.rewards.face_crop import FIVE_POINTS, Frame, box_frame, cropped, five_points_frame
from comfyui_dno.rewards.mtcnn import Face
from torch.nn import functional as F

PLACES = torch.tensor(FIVE_POINTS, dtype=torch.float64)


def face(points=PLACES, box=(0, 0, 112, 112)):
    return Face(torch.tensor(box, dtype=torch.float32), points, 0.9)


def turned(degrees, scale, shift):
    """Return the matrix (2, 3) that turns, scales and shifts."""
    angle = math.radians(degrees)
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    return torch.tensor([[c, -s, shift[0]], [s, c, shift[1]]], dtype=torch.float64)


def moved(points, matrix):
    return points @ matrix[:, :2].T + matrix[:, 2]


def whole(size):
    """Return the frame of the first pixels of a picture, as they are."""
    return Frame(torch.eye(2, 3, dtype=torch.float64), size)


@pytest.mark.parametrize(("degrees", "scale", "shift"), [(0, 1.0, (0, 0)), (30, 2.5, (40, -7)), (-100, 0.4, (9, 90))])
def test_a_face_that_is_arcfaces_own_turned_scaled_and_shifted_is_found_back(degrees, scale, shift):
    matrix = turned(degrees, scale, shift)
    frame = five_points_frame(face(moved(PLACES, matrix)))
    torch.testing.assert_close(frame.matrix, matrix, rtol=0, atol=1e-9)
    assert frame.pixels == pytest.approx(scale)


def test_the_frame_is_the_similarity_with_the_least_squares():
    """Of a face that fits none, against least squares of the two numbers of the turn and the two of the shift."""
    points = PLACES + 6 * torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, y = points.unbind(1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    rows = torch.cat([torch.stack([x, -y, one, zero], 1), torch.stack([y, x, zero, one], 1)])
    a, b, *shift = torch.linalg.lstsq(rows, PLACES.T.reshape(-1, 1)).solution[:, 0]
    to_places = torch.stack([torch.stack([a, -b, shift[0]]), torch.stack([b, a, shift[1]])])
    there_and_back = moved(moved(PLACES, five_points_frame(face(points)).matrix), to_places)
    torch.testing.assert_close(there_and_back, PLACES, rtol=0, atol=1e-9)


def test_pixels_that_are_only_cut_out_stay_as_they_are():
    picture = tiny_rewards.pictures(1)[0]
    torch.testing.assert_close(cropped(picture, whole(32)), picture[:, :32, :32], rtol=0, atol=1e-5)


def test_a_picture_that_is_turned_by_a_right_angle_is_turned_back():
    picture = tiny_rewards.pictures(1, 40, 40)[0]
    frame = Frame(turned(90, 1.0, (39, 0)), 40)  # (x, y) of the square is at (39 - y, x)
    torch.testing.assert_close(cropped(picture, frame), picture.rot90(dims=(1, 2)), rtol=0, atol=1e-5)


def test_a_box_that_shrinks_by_a_whole_number_is_the_mean_of_its_pixels():
    picture = torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(0))
    found = cropped(picture, box_frame(face(box=(6, 2, 70, 66)), picture, 16))
    torch.testing.assert_close(found, F.avg_pool2d(picture[:, 2:66, 6:70], 4), rtol=0, atol=1e-5)


def test_a_box_that_is_no_square_is_stretched():
    rows = torch.arange(60.0).view(1, 60, 1).expand(3, 60, 90) / 60
    found = cropped(rows, box_frame(face(box=(6, 10, 70, 42)), rows, 16))  # 4 x 2 pixels become one
    torch.testing.assert_close(found, F.avg_pool2d(rows[:, 10:42, 6:70], (2, 4)), rtol=0, atol=1e-5)


def test_fine_stripes_become_gray_and_not_coarser_stripes():
    picture = torch.zeros(3, 224, 224)
    picture[:, :, ::2] = 1
    frame = five_points_frame(face(PLACES * 2 + 0.5))
    assert frame.pixels == pytest.approx(2)
    found = cropped(picture, frame)[:, 2:-2, 2:-2]
    torch.testing.assert_close(found, torch.full_like(found, 0.5), rtol=0, atol=0.01)


def test_outside_of_the_picture_it_is_black_and_a_box_ends_at_its_edge():
    picture = torch.ones(3, 40, 40)
    shifted = Frame(torch.tensor([[1.0, 0, 20], [0, 1, 0]], dtype=torch.float64), 40)
    found = cropped(picture, shifted)
    expected = torch.cat([torch.ones(3, 40, 20), torch.zeros(3, 40, 20)], dim=2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    ends = box_frame(face(box=(-10, -5, 60, 20)), picture, 8)
    inside = moved(torch.tensor([[-0.5, -0.5], [7.5, 7.5]], dtype=torch.float64), ends.matrix)
    torch.testing.assert_close(inside, torch.tensor([[-0.5, -0.5], [39.5, 19.5]], dtype=torch.float64))


@pytest.mark.parametrize("box", [(50, 5, 60, 20), (5, 45, 20, 60), (-20, 5, -10, 20)])
def test_a_box_outside_of_the_picture_has_no_width_and_turns_nothing_round(box):
    steps = box_frame(face(box=box), torch.ones(3, 40, 40), 8).matrix[:, :2].diag()
    assert (steps >= 0).all() and steps.min() == 0


def test_the_gradient_is_that_of_differences():
    picture = torch.rand(3, 12, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    frames = [Frame(turned(25, scale, (3, 1)), 4) for scale in (0.8, 2.6)]
    assert torch.autograd.gradcheck(lambda x: [cropped(x, frame) for frame in frames], picture)
