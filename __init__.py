"""Direct Noise Optimization: search the sampling noise for a picture that a reward likes and the model believes in."""

WEB_DIRECTORY = "./web"
COMFYUI = "0.3.75"
"""The oldest ComfyUI that the pack is tested on. Those that know no `comfy_entrypoint` find no nodes here."""


def warn_of_an_old_comfyui():
    """Log which ComfyUI is needed where an older one imports the pack: that itself only says that it finds no nodes."""
    import logging
    import sys

    if "folder_paths" not in sys.modules:  # no ComfyUI, but a program that uses core
        return
    found = getattr(sys.modules.get("comfyui_version"), "__version__", "one that does not tell its version")
    numbers = [[int(n) for n in version.split(".") if n.isdigit()] for version in (found, COMFYUI)]
    if numbers[0] < numbers[1]:
        logging.getLogger(__name__).warning(
            "Direct Noise Optimization needs ComfyUI %s or later; found %s. Update ComfyUI", COMFYUI, found
        )


warn_of_an_old_comfyui()


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
