"""Direct Noise Optimization: search the sampling noise for a picture that a reward likes and the model believes in."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the pack's `ComfyExtension` (ComfyUI's V3 entry point); nothing is imported before ComfyUI asks for it."""
    import logging

    try:
        from .nodes import Extension
    except Exception:
        # ComfyUI logs a single line for an exception raised here; the traceback is what a bug report needs.
        logging.getLogger(__name__).exception("Direct Noise Optimization could not be loaded")
        raise
    return Extension()
