"""What to do about memory that runs out."""

import torch


def is_out_of_memory(error):
    """Return whether `error` says that a device has no memory left, in the words of any of PyTorch's backends."""
    if isinstance(error, torch.cuda.OutOfMemoryError):  # since PyTorch 2.5 every backend's, but for MPS
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error).lower()
