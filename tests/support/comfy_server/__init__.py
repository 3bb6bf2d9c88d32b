"""A real ComfyUI for the tests: `find_comfyui` says where, `ComfyServer` runs it, `Graph` writes its workflows.

`report_of` runs a program with ComfyUI in a process of its own.
"""

from .fetch import find_comfyui
from .graph import Graph
from .program import report_of
from .server import ComfyServer, Run

__all__ = ["ComfyServer", "Graph", "Run", "find_comfyui", "report_of"]
