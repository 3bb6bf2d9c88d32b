"""The processes that share one batch, as `accelerate launch`, `torchrun` or nobody started them."""

from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

# Shares take differently long, and whoever is done first waits for the rest.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Processes:
    """This process's place among them.

    Attributes:
        index: 0 .. count - 1.
        count: number of processes on all machines.
        local_index: among those of this machine.
    """

    index: int = 0
    count: int = 1
    local_index: int = 0

    @classmethod
    def join(cls):
        """Meet the others; a process that was started alone is the only one.

        They exchange nothing but "I am done", over gloo even where they compute on GPUs: NCCL would refuse two
        processes on one GPU, and keep it busy while it waits.
        """
        try:
            from accelerate import PartialState
        except ImportError:
            if not distributed.is_torchelastic_launched():
                return cls()
            distributed.init_process_group("gloo", timeout=PATIENCE)
            return cls(distributed.get_rank(), distributed.get_world_size(), distributed.get_node_local_rank())
        state = PartialState(cpu=True, timeout=PATIENCE)
        return cls(state.process_index, state.num_processes, state.local_process_index)

    def device(self, name):
        """Return this process's own device for `name`: "cuda" becomes one of the machine's GPUs, by turns."""
        if name != "cuda" or not torch.cuda.is_available():
            return name
        return f"cuda:{self.local_index % torch.cuda.device_count()}"

    def wait(self):
        """Return when every process has come here."""
        if self.count > 1:
            distributed.barrier()

    def leave(self):
        """Part from the others."""
        if distributed.is_initialized():
            distributed.destroy_process_group()
