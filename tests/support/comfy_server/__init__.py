"""A real ComfyUI for the tests: `find_comfyui` says where, `ComfyServer` runs it, `Graph` writes its workflows."""

from .fetch import find_comfyui
from .graph import Graph
from .server import ComfyServer, Run

__all__ = ["ComfyServer", "Graph", "Run", "find_comfyui"]
