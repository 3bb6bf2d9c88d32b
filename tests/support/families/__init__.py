"""Tiny random-weight versions of every model family that ComfyUI supports, and what is measured of them."""

from . import pictures, unets, videos

FAMILIES = [*unets.FAMILIES, *pictures.FAMILIES, *videos.FAMILIES]
