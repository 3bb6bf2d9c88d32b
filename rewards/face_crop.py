"""Faces as the networks that know them want to see them: a square around each, cut out of its picture differentiably.

    face --five_points_frame--> Frame   turned, shifted and scaled so that eyes, nose and mouth are at fixed places
         --box_frame---------->         its box, stretched to a square
    picture, Frame --cropped--> (3, size, size)

The frame is found without gradient and then held fixed: the gradient by the picture says how to change the face where
it stands, not how to move it.
"""

from dataclasses import dataclass
from math import ceil

import torch
from torch.nn import functional as F

FIVE_POINTS = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
"""x and y of the eyes, the nose and the corners of the mouth in the 112 x 112 pixels that ArcFace's networks see."""

FIVE_POINTS_SIZE = 112


@dataclass(frozen=True)
class Frame:
    """A square in a picture.

    Attributes:
        matrix: (2, 3): of a pixel (x, y, 1) of the square, where it is in the picture. (0, 0) is the middle of the
            first pixel of either.
        size: pixels along the square's side.
    """

    matrix: torch.Tensor
    size: int

    @property
    def pixels(self):
        """Pixels of the picture along one of the square's, where the frame is coarsest; below 1 where it enlarges."""
        return self.matrix[:, :2].norm(dim=0).amax().item()


def five_points_frame(face, size=FIVE_POINTS_SIZE):
    """Return the frame in which a face's points are nearest to ArcFace's, in the mean of the squares, by a similarity.

    With points p and places q as complex numbers from their means, q = m p + t is best with

        m = sum conj(p) q / sum |p|^2

    whose length is the scale and whose angle is the turn; the frame is the inverse, from q to p.
    """
    places = torch.tensor(FIVE_POINTS, dtype=torch.float64, device="cpu") * (size / FIVE_POINTS_SIZE)
    p, q = (torch.view_as_complex(each.double().contiguous()) for each in (face.points, places))
    from_middle = p - p.mean()
    m = (from_middle.conj() * (q - q.mean())).sum() / from_middle.abs().square().sum()
    scale = 1 / m
    shift = p.mean() - scale * q.mean()
    turn = torch.stack([scale.real, -scale.imag, scale.imag, scale.real]).view(2, 2)
    return Frame(torch.cat([turn, torch.view_as_real(shift)[:, None]], dim=1), size)


def box_frame(face, picture, size):
    """Return the frame of a face's box, as far as it is inside of the picture (3, H, W)."""
    height, width = picture.shape[-2:]
    corners = face.box.double().view(2, 2).clamp(min=0)
    start, end = torch.minimum(corners, corners.new_tensor([width, height]))
    step = (end - start) / size
    return Frame(torch.cat([step.diag(), (start + step / 2 - 0.5)[:, None]], dim=1), size)


def cropped(picture, frame):
    """Return what is in a frame of a picture (3, H, W): (3, size, size), differentiable by the picture.

    Interpolated bilinearly, black outside of the picture. Where the frame shrinks the picture, each pixel is the mean
    of so many that none is left out.
    """
    each = max(ceil(frame.pixels), 1)
    places = (torch.arange(frame.size * each, dtype=torch.float64, device="cpu") + 0.5) / each - 0.5
    y, x = torch.meshgrid(places, places, indexing="ij")
    there = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ frame.matrix.T
    height, width = picture.shape[-2:]
    grid = (2 * there + 1) / there.new_tensor([width, height]) - 1  # the picture's edges are at -1 and 1
    found = F.grid_sample(picture[None], grid[None].to(picture.dtype).to(picture.device), align_corners=False)
    return F.avg_pool2d(found, each)[0]
