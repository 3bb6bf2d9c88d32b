"""Text in pictures: a font with accents, Greek, Cyrillic and more, and a readable form of what it lacks."""

import functools
import unicodedata
from pathlib import Path

from PIL import ImageFont

SIZE = 12


@functools.cache
def font():
    """Return matplotlib's own DejaVu Sans, the same on every machine, for PIL."""
    return ImageFont.truetype(str(_file()), SIZE)


def readable(text):
    """Return `text` in characters that the font has; others become their plainer form, or their number.

    Example:
        >>> readable("\\ufb01sh")  # a ligature that the font has
        '\\ufb01sh'
        >>> readable("\\uff43at \\u732b")  # a wide c, and a Chinese character
        'cat \\\\u732b'
    """
    return "".join(_drawable(character) for character in unicodedata.normalize("NFC", str(text)))


def fitted(line, width):
    """Return a line of text, cut off with two dots where it is wider than `width` pixels.

    Example:
        >>> fitted("a black cat in a castle", 100)
        'a black cat in a..'
    """
    if font().getlength(line) <= width:
        return line
    kept = next((end for end in range(len(line) - 1, 0, -1) if font().getlength(line[:end] + "..") <= width), 0)
    return line[:kept] + ".."


def label(text):
    """Return `text` as a short line that matplotlib draws word for word: no formula where it holds dollar signs."""
    line = " ".join(readable(text).split())
    return (line if len(line) <= 60 else f"{line[:58]}..").replace("$", r"\$")


def _drawable(character):
    if character == "\n" or ord(character) in _characters():
        return character
    if character.isspace():
        return " "
    plainer = unicodedata.normalize("NFKC", character)
    if all(ord(part) in _characters() for part in plainer):
        return plainer
    return ascii(character)[1:-1]


@functools.cache
def _characters():
    """Return the code points that the font has."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(_file())).get_charmap())


def _file():
    import matplotlib

    return Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
