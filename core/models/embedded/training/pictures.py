"""Draw the training pictures: a recoloured animal on a plain or two-tone background.

Every sprite is rendered once into a map of parts: red holds the tone (0 shade, .5 colour, 1 highlight), green the
eyes, blue the accent (a beak, a tongue), alpha the silhouette. A picture places that map at a random pose and paints
the parts, so recolouring keeps the contrast between a sprite's parts and its eyes stay readable in every colour, black
included.
"""

import io
import json
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 128
SPRITE_SIZE = 192
NATURAL = "natural"

# Shade, colour and highlight of every colour word, RGB in [0, 1].
RAMPS = {
    "black": ((0.02, 0.02, 0.03), (0.12, 0.12, 0.14), (0.36, 0.36, 0.40)),
    "white": ((0.68, 0.70, 0.76), (0.93, 0.94, 0.96), (1.00, 1.00, 1.00)),
    "red": ((0.52, 0.04, 0.08), (0.87, 0.13, 0.15), (1.00, 0.56, 0.52)),
    "yellow": ((0.80, 0.52, 0.04), (0.99, 0.82, 0.14), (1.00, 0.95, 0.62)),
    "green": ((0.04, 0.36, 0.15), (0.16, 0.66, 0.27), (0.64, 0.90, 0.52)),
    "blue": ((0.05, 0.18, 0.56), (0.14, 0.44, 0.90), (0.60, 0.81, 1.00)),
    "purple": ((0.29, 0.09, 0.48), (0.55, 0.26, 0.77), (0.83, 0.65, 0.96)),
}
COLOURS = tuple(RAMPS)
DARK_EYE, LIGHT_EYE = (0.08, 0.07, 0.08), (0.98, 0.93, 0.72)


@lru_cache
def sprites():
    """Return the bundled SVG bodies: {animal: {"body", "size", "roles", "accent", "source"}}."""
    return json.loads((Path(__file__).parent / "sprites.json").read_text())


def animals():
    """Return the animal words, in the order of the scorer's classes."""
    return tuple(sprites())


def _rasterize(body, size):
    """Render an SVG body of `size` units to a straight-alpha RGBA picture of SPRITE_SIZE pixels."""
    import resvg_py

    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}">{body}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SPRITE_SIZE, height=SPRITE_SIZE)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _part_colour(role):
    """Encode a part in red, green and blue: a tone in [0, 1], "eye" or "accent"."""
    if role == "eye":
        return "#00ff00"
    if role == "accent":
        return "#0000ff"
    return f"#{round(255 * role):02x}0000"


@lru_cache
def part_map(animal):
    """Return the (SPRITE_SIZE, SPRITE_SIZE) RGBA map of a sprite's parts; see the module's docstring."""
    sprite = sprites()[animal]
    body = re.sub(r'"(#[0-9a-f]+)"', lambda m: f'"{_part_colour(sprite["roles"][m[1]])}"', sprite["body"])
    return _rasterize(body, sprite["size"])


@lru_cache
def own_colours(animal):
    """Return the (SPRITE_SIZE, SPRITE_SIZE) RGBA picture of a sprite in its own colours."""
    return _rasterize(sprites()[animal]["body"], sprites()[animal]["size"])


def _place(image, rng):
    """Turn, scale and shift a sprite at random: (SIZE, SIZE, 4) in [0, 1], straight alpha."""
    turned = image.rotate(rng.uniform(-3, 3), Image.Resampling.BICUBIC)
    side = SIZE * rng.uniform(0.76, 0.92)
    left, top = (SIZE - side) / 2 + rng.uniform(-5, 5, 2)
    scale = SPRITE_SIZE / side
    window = np.array([-left, -top, SIZE - left, SIZE - top]) * scale
    pad = SPRITE_SIZE // 4
    canvas = Image.new("RGBA", (SPRITE_SIZE + 2 * pad,) * 2)
    canvas.paste(turned, (pad, pad))
    placed = canvas.resize((SIZE, SIZE), Image.Resampling.BOX, box=tuple(window + pad), reducing_gap=None)
    return np.asarray(placed, np.float32) / 255


def _hex(colour):
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32) / 255


def _paint(parts, animal, colour, rng):
    """Paint a placed part map with a colour word's ramp, slightly jittered: (SIZE, SIZE, 3)."""
    ramp = np.clip(np.array(RAMPS[colour]) * rng.uniform(0.9, 1.08) + rng.uniform(-0.03, 0.03, 3), 0, 1)
    eye, accent = parts[..., 1:2], parts[..., 2:3]
    body = np.clip(1 - eye - accent, 0, 1)
    tone = np.clip(parts[..., 0] / np.maximum(body[..., 0], 0.02), 0, 1)
    painted = np.stack([np.interp(tone, (0, 0.5, 1), ramp[:, c]) for c in range(3)], -1)
    accent_colour = _hex(sprites()[animal]["accent"] or "#000000")
    return body * painted + eye * np.array(LIGHT_EYE if colour == "black" else DARK_EYE) + accent * accent_colour


def _hsv(h, s, v):
    """Convert hue, saturation and value in [0, 1] to RGB."""
    k = (np.array([5, 3, 1]) + 6 * h) % 6
    return v - v * s * np.clip(np.minimum(k, 4 - k), 0, 1)


def _background_colours(animal_colour, rng):
    """Draw a sky and a ground colour of similar hue, each at least .4 away from the animal's mean colour, as RGB."""
    for _ in range(200):
        hue, saturation, value = rng.uniform(), rng.uniform(0.08, 0.5), 1 - 0.6 * rng.uniform() ** 2
        sky = _hsv(hue, saturation, value)
        ground = _hsv((hue + rng.uniform(-0.15, 0.15)) % 1, min(1, saturation + 0.1), value * rng.uniform(0.7, 0.95))
        if min(np.linalg.norm(sky - animal_colour), np.linalg.norm(ground - animal_colour)) >= 0.4:
            break
    return sky, ground


def _background(animal_colour, rng):
    """Draw a (SIZE, SIZE, 3) background: 15 % nearly white, else flat or two-tone with a horizon."""
    white = rng.uniform(0.95, 1.0) * np.ones(3)
    if rng.uniform() < 0.15 and np.linalg.norm(white - animal_colour) >= 0.4:
        return np.broadcast_to(white, (SIZE, SIZE, 3)).copy()
    sky, ground = _background_colours(animal_colour, rng)
    picture = np.broadcast_to(sky, (SIZE, SIZE, 3)).copy()
    if rng.uniform() < 0.5:
        picture[round(SIZE * rng.uniform(0.6, 0.85)) :] = ground
    return picture


def draw(animal, colour, rng):
    """Draw one picture.

    Args:
        animal: an animal word.
        colour: a colour word, or NATURAL for the sprite's own colours.
        rng: a numpy Generator.

    Returns:
        (SIZE, SIZE, 3) uint8.
    """
    placed = _place(own_colours(animal) if colour == NATURAL else part_map(animal), rng)
    alpha = placed[..., 3:]
    front = placed[..., :3] if colour == NATURAL else _paint(placed, animal, colour, rng)
    mean = (front * alpha).sum((0, 1)) / alpha.sum()
    picture = alpha * front + (1 - alpha) * _background(mean, rng)
    return (255 * picture.clip(0, 1) + 0.5).astype(np.uint8)


def draw_many(count, seed, natural=0.15):
    """Draw `count` pictures with uniformly drawn words.

    Returns:
        pictures (count, SIZE, SIZE, 3) uint8, animal indices (count,), colour indices (count,); a colour of -1 means
        the own colours.
    """
    rng = np.random.default_rng(seed)
    names = animals()
    animal = rng.integers(len(names), size=count)
    colour = np.where(rng.uniform(size=count) < natural, -1, rng.integers(len(COLOURS), size=count))
    words = [(names[a], NATURAL if c < 0 else COLOURS[c]) for a, c in zip(animal, colour, strict=True)]
    return np.stack([draw(a, c, rng) for a, c in words]), animal, colour


def caption(animal, colour):
    """Return the prompt of a picture, from indices: "<colour> <animal>", or "<animal>" where colour is -1."""
    return animals()[animal] if colour < 0 else f"{COLOURS[colour]} {animals()[animal]}"
