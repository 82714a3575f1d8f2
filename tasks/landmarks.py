"""What stands on the land of a scene: houses, trees, cars, each with its shadow."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

from tasks.painting import Array, Canvas, Point, Rgb, mix, noise, rgb
from tasks.scenery import CAR, HOUSE, TREE, Land

WALLS: tuple[Rgb, ...] = (
    (238, 226, 200), (214, 120, 92), (196, 210, 222), (244, 240, 232), (226, 184, 104),
)  # fmt: skip
ROOFS: tuple[Rgb, ...] = ((150, 62, 46), (92, 76, 84), (120, 58, 58), (74, 84, 100))
PAINTS: tuple[Rgb, ...] = (
    (200, 34, 40), (28, 84, 190), (240, 190, 30), (232, 232, 236), (24, 140, 120), (240, 120, 30),
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a thing stands and how large it looks, in spots.

    Attributes:
        x: of the middle of a tree or car, of the left corner of a house.
        y: of the ground it stands on.
        size: height of a tree, width of a car, width of the gable of a house.
    """

    x: float
    y: float
    size: float

    def points(self, points: Iterable[Point]) -> list[Point]:
        """Points of the canvas, of points given as parts of ``size`` right of and above here."""
        return [(self.x + across * self.size, self.y - high * self.size) for across, high in points]


def paint_shadow(canvas: Canvas, land: Land, place: Place, middle: float, reach: Point) -> None:
    """A soft dark patch on the ground, drawn away from the sun; classes stay."""
    radius_x, radius_y = reach[0] * place.size, reach[1] * place.size
    x, y = place.x + middle * place.size, place.y
    canvas = canvas.window(x - 2 * radius_x, y - 2 * radius_y, x + 2 * radius_x, y + 2 * radius_y)
    away = land.sunny_side * radius_x * 0.45
    far = np.hypot((canvas.x - x + away) / radius_x, (canvas.y - y) / radius_y)
    canvas.tint(far < 1.2, (18, 26, 34), 0.5 * np.clip(1.2 - far, 0, 0.8))


def paint_house(rng: np.random.Generator, canvas: Canvas, land: Land, place: Place) -> None:
    """A house seen at its corner: gable with door and windows, long side, tiled roof."""
    high, rise = rng.uniform(0.72, 0.86), rng.uniform(0.44, 0.58)
    long, back = rng.uniform(0.85, 1.2), rng.uniform(0.08, 0.16)
    wall = rgb(WALLS[rng.integers(len(WALLS))])
    roof = rgb(ROOFS[rng.integers(len(ROOFS))])
    paint_shadow(canvas, land, place, (1 + long) / 2, (1.15, 0.16))
    x, y, size = place.x, place.y, place.size
    canvas = canvas.window(x - size * 0.2, y - size * 2, x + size * 2.5, y)

    def fill(points: Iterable[Point], colour: Array | Rgb) -> None:
        canvas.paint(canvas.polygon(place.points(points)), colour, HOUSE)

    ridge = high + rise
    chimney = _box(0.5 + long * 0.55, ridge + back - 0.2, 0.13, 0.32)
    fill(chimney, wall * 0.62)
    front = _boards(rng, canvas, place, wall)
    fill([(0, 0), (1, 0), (1, high), (0.5, ridge), (0, high)], front)
    fill([(1, 0), (1 + long, back), (1 + long, high + back), (1, high)], front * 0.76)
    top, end = ridge + 0.056, (1.07 + long, high + back - 0.07)
    plane = [(0.48, top), (0.57 + long, top + back), end, (1.07, high - 0.07)]
    fill(plane, _tiles(rng, canvas, place, roof))
    for eave, shade in ((-0.07, 0.7), (1.07, 0.6)):
        rake = [(eave, high - 0.07), (0.5, ridge + 0.07), (0.5, ridge), (eave, high - 0.154)]
        fill(rake, roof * shade)
    fill(_box(0.58, 0, 0.24, 0.5), (96, 62, 44))
    glass: Rgb = (255, 214, 120) if land.light.lamps else (116, 160, 190)
    windows = [(0.14, 0.34, 0.24, 0.26, 0.0), (0.4, 0.86, 0.2, 0.2, 0.0)]
    windows += [
        (1 + step * long, 0.32 + step * back, 0.24 * long, 0.28, back / long)
        for step in (0.16, 0.58)
    ]
    for window in windows:
        _glaze(canvas, place, window, glass)


def _box(left: float, low: float, broad: float, tall: float, slant: float = 0) -> list[Point]:
    """The corners of a box whose lower and upper edge climb to the right by ``slant``."""
    right, climb = left + broad, broad * slant
    return [(left, low), (right, low + climb), (right, low + tall + climb), (left, low + tall)]


def _boards(rng: np.random.Generator, canvas: Canvas, place: Place, wall: Array) -> Array:
    """Walls of uneven boards."""
    seams = ((place.y - canvas.y) / (place.size * 0.07)) % 1 < 0.25
    weather = 0.95 + 0.08 * noise(rng, canvas, 6 * canvas.unit, octaves=3)
    return np.asarray(wall * (weather * (1 - 0.07 * seams))[..., None])


def _tiles(rng: np.random.Generator, canvas: Canvas, place: Place, roof: Array) -> Array:
    """Rows of roof tiles, a little uneven."""
    row = (place.y - canvas.y) / (place.size * 0.075)
    tile = (canvas.x - place.x) / (place.size * 0.09) + 0.5 * (row.astype(int) % 2)
    seams = 1 - 0.2 * (row % 1 < 0.28) - 0.1 * (tile % 1 < 0.22)
    weather = 0.9 + 0.24 * noise(rng, canvas, 10 * canvas.unit, octaves=3)
    return np.asarray(roof * (seams * weather)[..., None])


def _glaze(
    canvas: Canvas, place: Place, window: tuple[float, float, float, float, float], glass: Rgb
) -> None:
    """A window in a white frame with two panes, brighter towards the top.

    Args:
        canvas: Painted on.
        place: Of the house.
        window: Left, low, broad, tall in parts of the size, and the slant of its wall.
        glass: Colour of the panes.
    """
    left, low, broad, tall, slant = window
    frame = canvas.polygon(place.points(_box(left, low, broad, tall, slant)))
    canvas.paint(frame, (246, 244, 238), HOUSE)
    height = (place.y - canvas.y) / place.size
    panes = mix(glass, (250, 250, 250), 0.4 * np.clip((height - low) / tall, 0, 1))
    pane, inset = 0.37 * broad, 0.12 * tall
    for start in (0.1, 0.53):
        lift = low + inset + start * broad * slant
        corners = _box(left + start * broad, lift, pane, tall - 2 * inset, slant)
        canvas.paint(canvas.polygon(place.points(corners)), panes, HOUSE)


def paint_tree(rng: np.random.Generator, canvas: Canvas, land: Land, place: Place) -> None:
    """A tree, leafy or a conifer, brighter on the side of the sun."""
    paint_shadow(canvas, land, place, 0, (0.42, 0.09))
    x, y, size = place.x, place.y, place.size
    canvas = canvas.window(x - size * 0.45, y - size * 1.1, x + size * 0.45, y)
    trunk = [(-0.055, 0.0), (0.055, 0.0), (0.033, 0.5), (-0.033, 0.5)]
    canvas.paint(canvas.polygon(place.points(trunk)), (86, 62, 46), TREE)
    leaf = rgb(land.light.leaf) * rng.uniform(0.86, 1.16)
    if rng.random() < 0.62:
        crown = _leafy_crown(rng, canvas, place)
    else:
        crown = _conifer_crown(rng, canvas, place)
        leaf = mix(leaf, (22, 70, 62), 0.72)
    leaves = noise(rng, canvas, max(2.5, size * 0.075), octaves=2)
    clumps = noise(rng, canvas, size * 0.22, octaves=2)
    ball = land.sunny_side * (canvas.x - x) / 0.4 - (canvas.y - (y - size * 0.6)) / 0.42
    bright = 0.62 + 0.26 * ball / size + 0.5 * (clumps - 0.4) + 0.62 * (leaves - 0.45)
    bright = np.clip(bright, 0.3, 1.75)
    sunny = mix(leaf * bright[..., None], land.light.sun, 0.16 * np.clip(bright - 0.9, 0, 1))
    canvas.paint(crown, sunny.clip(0, 255), TREE)


def _leafy_crown(rng: np.random.Generator, canvas: Canvas, place: Place) -> Array:
    """Many round clumps around the top of the trunk."""
    size, middle = place.size, place.y - place.size * 0.62
    discs = [(place.x, middle, size * 0.27)]
    for _ in range(22):
        turn, reach = rng.uniform(0, 2 * np.pi), size * rng.uniform(0.14, 0.26)
        clump = size * rng.uniform(0.08, 0.15)
        discs.append((place.x + np.cos(turn) * reach, middle + np.sin(turn) * reach, clump))
    return canvas.discs(discs)


def _conifer_crown(rng: np.random.Generator, canvas: Canvas, place: Place) -> Array:
    """Five skirts of branches, each narrower than the one below."""
    crown = np.zeros(canvas.shape, bool)
    for tier in range(5):
        low, broad = 0.1 + 0.155 * tier, 0.34 - 0.062 * tier
        hem = [
            (tooth * broad, low + 0.035 * (index % 2) + 0.03 * rng.random())
            for index, tooth in enumerate(np.linspace(-1, 1, 11))
        ]
        top = (0.0, low + 0.34 - 0.012 * tier)
        crown |= canvas.polygon(place.points([*hem, top]))
    return crown


def paint_car(rng: np.random.Generator, canvas: Canvas, land: Land, place: Place) -> None:
    """A car on the road: from behind in the right lane, from before in the left one."""
    behind = place.x > land.road_centre(place.y)
    body = rgb(PAINTS[rng.integers(len(PAINTS))])
    paint_shadow(canvas, land, place, 0, (0.62, 0.13))
    x, y, size = place.x, place.y, place.size
    canvas = canvas.window(x - size * 0.6, y - size, x + size * 0.6, y + 1)
    high = (y - canvas.y) / size
    coat = np.clip(body * (0.62 + 0.56 * high)[..., None] + 18, 0, 255)
    shape, pair = partial(_mirrored, canvas, place), partial(_paired, canvas, place)
    pair((0.285, 0.0, 0.17, 0.2), (26, 26, 30))
    shape([(0.3, 0.89), (0.36, 0.86), (0.42, 0.5)], coat * 0.94)
    shape([(0.31, 0.81), (0.37, 0.54)], (44, 58, 74) if behind else (70, 92, 112))
    shape([(0.02, 0.81), (0.16, 0.54)], (92, 112, 130))
    shape([(0.46, 0.54), (0.5, 0.46), (0.5, 0.2), (0.47, 0.14)], coat)
    shape([(0.5, 0.25), (0.5, 0.14), (0.46, 0.12)], body * 0.45)
    pair((0.325, 0.37, 0.15, 0.1), (226, 30, 34) if behind else (255, 250, 214))
    shape([(0.13, 0.36), (0.13, 0.27)], (240, 240, 232) if behind else (36, 38, 44))


def _mirrored(canvas: Canvas, place: Place, half: list[Point], colour: Array | Rgb) -> None:
    """Paint a part of a car that is its own mirror image, given by its right half."""
    whole = half + [(-across, up) for across, up in reversed(half)]
    canvas.paint(canvas.polygon(place.points(whole)), colour, CAR)


def _paired(
    canvas: Canvas, place: Place, box: tuple[float, float, float, float], colour: Rgb
) -> None:
    """Paint a box ``(left, low, broad, tall)`` on the right of a car and its mirror image."""
    left, low, broad, tall = box
    for start in (left, -left - broad):
        canvas.paint(canvas.polygon(place.points(_box(start, low, broad, tall))), colour, CAR)
