"""A real ComfyUI for the tests: `find_comfyui` says where it is, `ComfyServer` runs it, `Graph` writes API-format workflows."""

from .fetch import find_comfyui
from .graph import Graph
from .server import ComfyServer, Run

__all__ = ["ComfyServer", "Graph", "Run", "find_comfyui"]
