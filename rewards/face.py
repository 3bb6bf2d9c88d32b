"""Likeness of faces: is it the same person as in a reference picture?

    picture --FaceDetector--> its largest face --Frame--> a square --FaceNet or an ArcFace--> an embedding --> a cosine

    0.5 to 1       as a rule one person in two pictures
    -0.2 to 0.5    two people, about 0 as a rule
    -1             no face was found

Where the face is is found anew in each picture, without gradient; the gradient says how to change the face that is
there. A picture without a face has the gradient 0, so that a search by gradients does not make one.
"""

import itertools
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .face_crop import FIVE_POINTS_SIZE, box_frame, cropped, five_points_frame
from .facenet_tower import FaceNetTower
from .mtcnn import LEAST, FaceDetector
from .networks import check_tower
from .onnx import ONNX, OnnxPixels
from .onnx_tower import OnnxTower
from .pictures import rgb
from .preprocess import clamp_through

NO_FACE = -1.0
"""The score of a picture in which no face is found: as unlike as two faces can be."""

LEAST_SHARE = 1 / 16
"""Faces narrower than that, in the picture's shorter side, do not count: of 512 pixels 32."""

HALVES = OnnxPixels(FIVE_POINTS_SIZE, mean=(0.5,), std=(0.5,))
LEVELS = OnnxPixels(FIVE_POINTS_SIZE, mean=(0,), std=(1,), scale=255)
"""How an ArcFace sees pixels: from -1 to 1, or from 0 to 255 where the file's own first layers bring them there."""

NORMALISE = {"Sub", "BatchNormalization"}
"""Operations that, ahead of the first convolution, show that a file does so."""


@dataclass(eq=False)
class FaceSimilarity:
    """How like the face of a reference a picture's largest face is: the cosine of their embeddings, -1 without a face.

    Example:
        >>> tower, detector = rewards.load_tower("arcface.onnx"), rewards.load_tower("onet.pt")
        >>> portraits = 1 - torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0)) / 4
        >>> scores = rewards.FaceSimilarity(tower, detector, portraits[:1])(portraits)
        >>> bool(scores[0] > scores[1])
        True

    Attributes:
        tower: a FaceNetTower, or the OnnxTower of a network like ArcFace's, which takes 112 x 112 pixels.
        detector: a FaceDetector.
        reference: (R, 3, H, W) or, if gray, (R, 1, H, W), in [0, 1]: pictures of one person. The mean of the cosines
            counts.
    """

    tower: FaceNetTower | OnnxTower
    detector: FaceDetector
    reference: torch.Tensor
    differentiable = True
    name = "face"

    def __post_init__(self):
        check_tower(self.tower, self.name, ["FaceNet", "ONNX"], ["Face"])
        check_tower(self.detector, self.name, ["MTCNN"], ["MTCNN"])
        self._embedder = (_FaceNet if self.tower.kind == "FaceNet" else _ArcFace)(self.tower)
        with torch.inference_mode(False), torch.no_grad():
            reference = rgb(self.reference, "reference").clone()
            if not reference.isfinite().all():
                raise ValueError("reference holds NaN or infinity; expected finite pictures")
            faces = self._faces(reference)
            missing = [str(index) for index, face in enumerate(faces) if face is None]
            if missing:
                which = f" (picture {', '.join(missing)})" if len(faces) > 1 else ""
                raise ValueError(
                    f"no face was found in the reference{which}; expected a picture that shows one, from the front and"
                    f" large: at least {LEAST} pixels and a sixteenth of the picture"
                )
            self._reference = self._embeds(reference, faces).mean(dim=0)

    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), nominally [0, 1]."""
        images = rgb(images)
        faces = self._faces(images)
        # So that a picture without a face has a gradient, of 0, and one that is not finite no finite score.
        scores = NO_FACE + 0 * images.flatten(1).sum(dim=1)
        shown = [index for index, face in enumerate(faces) if face is not None]
        if not shown:
            return scores
        embeds = self._embeds(images[shown], [faces[index] for index in shown])
        cosines = (embeds * self._reference.to(embeds)).sum(dim=1)
        return scores.index_put((torch.tensor(shown, device=scores.device),), cosines.to(scores))

    def remarks(self, images):
        """Return what is to be said of pictures: in which of them there is no face."""
        without = [index for index, face in enumerate(self._faces(rgb(images))) if face is None]
        return [
            f"picture {index}: no face was found, so its score is {NO_FACE:g}, and it has no gradient. Start from a"
            " seed that shows one, ask for one in the prompt, or search by Search or ZeNO"
            for index in without
        ]

    def _faces(self, images):
        """Return each picture's largest face, or None."""
        least = max(LEAST, LEAST_SHARE * min(images.shape[-2:]))
        return [next(iter(faces), None) for faces in self.detector.faces(images.detach(), least)]

    def _embeds(self, images, faces):
        """Return the faces' embeddings at unit length, (B, width)."""
        images = clamp_through(images)
        pairs = zip(images, faces, strict=True)
        squares = torch.stack([cropped(image, self._embedder.frame(face, image)) for image, face in pairs])
        return F.normalize(self._embedder.embed(squares), dim=1)


class _FaceNet:
    """FaceNet sees the box that the detector finds, stretched to a square."""

    def __init__(self, tower):
        self.embed, self.size = tower.embed, tower.image_size

    def frame(self, face, picture):
        return box_frame(face, picture, self.size)


class _ArcFace:
    """ArcFace's networks see eyes, nose and mouth where they always are."""

    def __init__(self, tower):
        shapes = [one.shape[1:] for one in tower.inputs]
        side = (FIVE_POINTS_SIZE, None)
        if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][0] != 3 or not all(x in side for x in shapes[0][1:]):
            raise ValueError(
                f"{tower.name} takes {', '.join(str(one.shape) for one in tower.inputs)}; expected a network that knows"
                f" faces as ArcFace does, of pictures (B, 3, {FIVE_POINTS_SIZE}, {FIVE_POINTS_SIZE})"
            )
        before = itertools.takewhile(lambda operation: operation != "Conv", tower.operations)
        self._network = ONNX(tower, LEVELS if NORMALISE.intersection(before) else HALVES)

    def frame(self, face, picture):
        return five_points_frame(face)

    def embed(self, faces):
        return self._network.found(faces).flatten(1)
