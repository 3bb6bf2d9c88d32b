"""ComfyUI V3 nodes; the only package here that imports comfy."""
