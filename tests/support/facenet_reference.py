"""FaceNet once more, by PyTorch's functions on facenet-pytorch's own weights, normalisations and all."""

import torch
from torch.nn import functional as F


def embeddings(state, pixels):
    """Return the embeddings (B, width) at unit length of pixels (B, 3, 160, 160) as the network takes them."""

    def conv(name, x, stride=1, padding=0):
        return F.relu(_norm(state, f"{name}.bn", F.conv2d(x, state[f"{name}.conv.weight"], None, stride, padding)))

    def chain(name, x, shrinks):
        names = [key for key in (f"{name}.{number}" for number in range(3)) if f"{key}.conv.weight" in state] or [name]
        for key in names:
            height, width = state[f"{key}.conv.weight"].shape[2:]
            last = shrinks and key == names[-1]
            x = conv(key, x, 2 if last else 1, 0 if last else (height // 2, width // 2))
        return x

    def branches(name, x, count, shrinks=False):
        found = [chain(f"{name}.branch{number}", x, shrinks) for number in range(count)]
        return torch.cat([*found, F.max_pool2d(x, 3, 2)] if shrinks else found, dim=1)

    def block(name, x, count, scale):
        found = branches(name, x, count)
        return x + scale * F.conv2d(found, state[f"{name}.conv2d.weight"], state[f"{name}.conv2d.bias"])

    x = conv("conv2d_2b", conv("conv2d_2a", conv("conv2d_1a", pixels, stride=2)), padding=1)
    x = conv("conv2d_4a", conv("conv2d_3b", F.max_pool2d(x, 3, 2)))
    x = conv("conv2d_4b", x, stride=2)
    for number in range(5):
        x = F.relu(block(f"repeat_1.{number}", x, 3, 0.17))
    x = branches("mixed_6a", x, 2, shrinks=True)
    for number in range(10):
        x = F.relu(block(f"repeat_2.{number}", x, 2, 0.10))
    x = branches("mixed_7a", x, 3, shrinks=True)
    for number in range(5):
        x = F.relu(block(f"repeat_3.{number}", x, 2, 0.20))
    x = block("block8", x, 2, 1.0).mean(dim=(2, 3))
    return F.normalize(_norm(state, "last_bn", x @ state["last_linear.weight"].T), dim=1)


def _norm(state, name, x):
    mean, variance, weight, bias = (
        state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x, mean, variance, weight, bias, eps=0.001)
