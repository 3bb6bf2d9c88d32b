"""Tiny twins of the files that know faces: MTCNN's, a FaceNet's as facenet-pytorch has it, an ArcFace's as ONNX.

The twin of MTCNN sees a face where a picture is bright, with eyes, nose and mouth where ArcFace wants them.
"""

from functools import partial

import tiny_onnx
import tiny_rewards
import torch
from comfyui_dno.rewards.face_crop import FIVE_POINTS, FIVE_POINTS_SIZE
from comfyui_dno.rewards.mtcnn import FILES, NETWORKS

FACENET = "20180402-114759-vggface2.pt"
ARCFACES = {"ArcFace": "arcface.onnx", "ArcFace that normalises": "arcface_of_levels.onnx"}
NARROW = 16
"""A tiny FaceNet has so many times fewer channels."""

STEM = {
    "conv2d_1a": (32, 3, 3, 3), "conv2d_2a": (32, 32, 3, 3), "conv2d_2b": (64, 32, 3, 3), "conv2d_3b": (80, 64, 1, 1),
    "conv2d_4a": (192, 80, 3, 3), "conv2d_4b": (256, 192, 3, 3),
}  # fmt: skip
LINE = [(128, 1, 1), (128, 1, 7), (128, 7, 1)]
BLOCK35 = (256, [[(32, 1, 1)], [(32, 1, 1), (32, 3, 3)], [(32, 1, 1), (32, 3, 3), (32, 3, 3)]])
BLOCK17 = (896, [[(128, 1, 1)], LINE])
BLOCK8 = (1792, [[(192, 1, 1)], [(192, 1, 1), (192, 1, 3), (192, 3, 1)]])
MIXED_6A = (256, [[(384, 3, 3)], [(192, 1, 1), (192, 3, 3), (256, 3, 3)]])
MIXED_7A = (
    896,
    [[(256, 1, 1), (384, 3, 3)], [(256, 1, 1), (256, 3, 3)], [(256, 1, 1), (256, 3, 3), (256, 3, 3)]],
)


def facenet_shapes():
    """Return the layers of FaceNet in facenet-pytorch's order: name -> shape of the weight."""
    found = dict(STEM)
    for number in range(5):
        found |= _block(f"repeat_1.{number}", *BLOCK35)
    found |= _block("mixed_6a", *MIXED_6A, residual=False)
    for number in range(10):
        found |= _block(f"repeat_2.{number}", *BLOCK17)
    found |= _block("mixed_7a", *MIXED_7A, residual=False)
    for number in range(5):
        found |= _block(f"repeat_3.{number}", *BLOCK8)
    return found | _block("block8", *BLOCK8) | {"last_linear": (512, 1792)}


def _block(name, width, branches, residual=True):
    found = {}
    for number, layers in enumerate(branches):
        into = width
        for place, (out, *sides) in enumerate(layers):
            layer = f"branch{number}.{place}" if len(layers) > 1 else f"branch{number}"
            found[f"{name}.{layer}"] = (out, into, *sides)
            into = out
    if residual:
        found[f"{name}.conv2d"] = (width, sum(layers[-1][0] for layers in branches), 1, 1)
    return found


def facenet_state(seed=0, narrow=NARROW):
    """Return the weights of a random FaceNet, `narrow` times fewer channels wide, as facenet-pytorch saves them."""
    generator = torch.Generator().manual_seed(seed)
    normal, uniform = (partial(draw, generator=generator) for draw in (torch.randn, torch.rand))
    state = {}
    for layer, (out, into, *sides) in facenet_shapes().items():
        shape = (out // narrow, 3 if into == 3 else into // narrow, *sides)
        weight = normal(shape) * (2 / torch.Size(shape[1:]).numel()) ** 0.5
        if layer.endswith("conv2d"):
            state |= {f"{layer}.weight": weight, f"{layer}.bias": 0.1 * normal(shape[0])}
            continue
        own, norm = (f"{layer}.conv", f"{layer}.bn") if sides else (layer, "last_bn")
        state |= {f"{own}.weight": weight, f"{norm}.weight": 0.8 + 0.4 * uniform(shape[0])}
        state |= {f"{norm}.{part}": 0.1 * normal(shape[0]) for part in ("bias", "running_mean")}
        state |= {f"{norm}.running_var": 0.8 + 0.4 * uniform(shape[0])}
        state |= {f"{norm}.num_batches_tracked": torch.tensor(1)}
    classes = normal(7, 512 // narrow)
    return state | {"logits.weight": classes, "logits.bias": normal(7)}


def mtcnn_state(name):
    """Return the weights of one of MTCNN's networks that finds a face where pixels are brighter than 0.35.

    The first channel of each layer is the mean of what it sees; the head turns it into a probability.
    """
    state = {key: torch.zeros_like(value) for key, value in NETWORKS[name]({}).state_dict().items()}
    layers = [key.removesuffix(".weight") for key in state if key.startswith(("conv", "dense")) and "weight" in key]
    heads, channels = [layer for layer in layers if "_" in layer], 3
    for layer in (layer for layer in layers if layer not in heads):
        weight = state[f"{layer}.weight"]
        if weight.ndim == 2:  # behind the convolutions, of whose channels the first comes first at each place
            seen = weight[0].view(-1, channels)[:, 0]
        else:
            seen, channels = weight[0] if layer == "conv1" else weight[0, 0], len(weight)
        seen.fill_(1 / seen.numel())
        state[f"prelu{layer[-1]}.weight"].fill_(1)  # no bend
    state[f"{heads[0]}.weight"][1, 0], state[f"{heads[0]}.bias"][1] = 6.0, 2.65
    if name == "onet":
        state[f"{heads[2]}.bias"].copy_((torch.tensor(FIVE_POINTS) / FIVE_POINTS_SIZE).T.flatten())
    return state


def write_mtcnn(folder):
    """Write the three files, and return onet's."""
    for name, file in FILES.items():
        torch.save(mtcnn_state(name), folder / file)
    return folder / FILES["onet"]


def write_arcface(path, normalises=False, seed=0):
    """Write a network like ArcFace's, random and small; or one that brings levels to its own range itself."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "first": torch.randn((8, 3, 7, 7), generator=generator) / 12, "slope": torch.full((8, 1, 1), 0.25),
        "last": torch.randn((32, 8 * 16 * 16), generator=generator) / 45, "mean": torch.tensor(127.5),
        "share": torch.tensor(1 / 127.5),
    }  # fmt: skip
    before = [tiny_onnx.node("Sub", ["face", "mean"], ["level"]), tiny_onnx.node("Mul", ["level", "share"], ["pixels"])]
    nodes = [
        *(before if normalises else []),
        tiny_onnx.node("Conv", ["pixels" if normalises else "face", "first"], ["found"], strides=[7, 7]),
        tiny_onnx.node("PRelu", ["found", "slope"], ["bent"]),
        tiny_onnx.node("Flatten", ["bent"], ["flat"]),
        tiny_onnx.node("Gemm", ["flat", "last"], ["embedding"], transB=1),
    ]
    faces = tiny_onnx.value("face", "batch", 3, FIVE_POINTS_SIZE, FIVE_POINTS_SIZE)
    return tiny_onnx.save(path, nodes, weights, [faces], [tiny_onnx.value("embedding", "batch", 32)])


def write_facenet(path):
    """Write a FaceNet, random and narrow."""
    torch.save(facenet_state(), path)
    return path


def write_all(folder):
    """Write each kind of file that knows faces, and return the folder."""
    write_mtcnn(folder)
    write_facenet(folder / FACENET)
    for name, file in ARCFACES.items():
        write_arcface(folder / file, normalises=name != "ArcFace")
    return folder


def portraits(count=2, seed=0, dtype=torch.float32):
    """Return pictures with one bright place each, in which the twin of MTCNN finds faces."""
    pictures = 0.1 + 0.1 * tiny_rewards.pictures(count, 44, 52, seed=seed, dtype=dtype)
    pictures[..., 7:37, 11:41] = 0.7 + 0.2 * tiny_rewards.pictures(count, 30, 30, seed=seed + 1, dtype=dtype)
    return pictures
