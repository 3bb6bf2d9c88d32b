"""The picture by which a template is found: what it makes, and in a corner what it starts from."""

import math

from comfyui_dno.core.lettering import font
from PIL import Image, ImageDraw

SIDE, INSET, FRAME = 512, 208, 6
LETTERS, MARGIN, LARGE = 26, 8, 46
CARD = "#1d3b53"


def thumbnail(before, after):
    """Return a square of what a run made, its start in the lower left corner; each a list of pictures."""
    drawn = grid(after, SIDE)
    drawn.paste("white", (0, SIDE - INSET - 2 * FRAME, INSET + 2 * FRAME, SIDE))
    drawn.paste(grid(before, INSET), (FRAME, SIDE - INSET - FRAME))
    write(drawn, "before", (FRAME, SIDE - FRAME), "ls")
    write(drawn, "after", (SIDE, SIDE), "rs")
    return drawn


def card(lines):
    """Return a square with lines of text, of a template that cannot be run where its picture is made."""
    drawn = Image.new("RGB", (SIDE, SIDE), CARD)
    pen = ImageDraw.Draw(drawn)
    for row, line in enumerate(lines):
        letters = font().font_variant(size=LARGE if row == 0 else LETTERS)
        pen.text((SIDE // 2, SIDE // 2 + LARGE * (row - 1)), line, font=letters, fill="white", anchor="ms")
    return drawn


def grid(pictures, side):
    """Return pictures as one square, row by row, as many in a row as there are rows."""
    across = math.ceil(math.sqrt(len(pictures)))
    down = math.ceil(len(pictures) / across)
    cell = side // across
    drawn = Image.new("RGB", (side, side), "black")
    for index, picture in enumerate(pictures):
        place = (index % across * cell, (side - down * cell) // 2 + index // across * cell)
        drawn.paste(picture.convert("RGB").resize((cell, cell), Image.Resampling.LANCZOS), place)
    return drawn


def write(drawn, text, corner, anchor):
    """Write a word into a lower corner, on a dark strip; the anchor is PIL's, left or right."""
    pen, letters = ImageDraw.Draw(drawn), font().font_variant(size=LETTERS)
    width, height = round(letters.getlength(text)) + 2 * MARGIN, LETTERS + 2 * MARGIN
    left = corner[0] if anchor[0] == "l" else corner[0] - width
    pen.rectangle((left, corner[1] - height, left + width, corner[1]), fill="black")
    pen.text((left + MARGIN, corner[1] - MARGIN - LETTERS // 8), text, font=letters, fill="white", anchor="ls")
