"""A small data set that is worth looking at: painted landscapes with exact label maps.

Sky, mountains, meadows, lakes, roads, houses, trees and cars in five lights. The files are
as varied as files are: odd sizes, JPEG and PNG, EXIF orientation, gray, transparency, and
in the unlabelled collection one JPEG that ends too early. Everything follows from the seed,
byte for byte, with the same versions of numpy and Pillow.
"""

import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fcn.classes import Classes
from fcn.cores import num_cores
from fcn.masks import encode_mask
from tasks import stores
from tasks.landmarks import Place, paint_car, paint_house, paint_tree
from tasks.painting import Array, Canvas
from tasks.scenery import (
    Land,
    paint_lake,
    paint_meadow,
    paint_mountains,
    paint_road,
    paint_sky,
    survey,
)

SCENE_CLASSES = Classes(
    ("sky", "mountain", "meadow", "water", "road", "house", "tree", "car"),
    (
        (112, 176, 236), (148, 124, 150), (150, 196, 84), (30, 98, 170),
        (92, 92, 100), (226, 106, 76), (24, 104, 62), (250, 200, 44),
    ),
)  # fmt: skip
"""Class ids are those of `tasks.scenery`."""

SIDES = (160, 241)
"""Least side of a picture in pixels, and the side that none reaches."""

DAMAGED = 5
"""Number of the image of the collection that is cut in half."""

# EXIF orientation -> the turn that takes the upright picture to how it is stored.
_STORED = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Where `make_scenes` put things.

    Attributes:
        source_url: Labelled, layout ``folders``: images/SPLIT/, masks/SPLIT/, classes.json.
        collection_url: Unlabelled images in two folders; from `DAMAGED` on with a damaged one.
    """

    source_url: str
    collection_url: str


def make_scenes(
    url: str,
    *,
    num_train: int,
    num_val: int,
    num_unlabelled: int,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Scenes:
    """Write a labelled data set and an unlabelled collection below ``url``.

    Files that are there with the same bytes are left alone.

    Args:
        url: Folder to write to.
        num_train: Labelled images of the train split.
        num_val: Labelled images of the val split.
        num_unlabelled: Images of the collection, the damaged one included.
        seed: The same seed gives the same files; larger numbers only add files.
        advance: Called after every scene, from several threads.

    Raises:
        StoreError: ``url`` cannot be written.
    """
    stores.require_writable(url)
    classes = json.dumps(SCENE_CLASSES.to_json(), indent=1).encode()
    _put(stores.join(url, "labelled", "classes.json"), classes)
    numbers = {"train": num_train, "val": num_val, "unlabelled": num_unlabelled}

    def write(group: int, name: str, number: int) -> None:
        scene = _make_scene(np.random.default_rng([seed, group, number]), number)
        files = _unlabelled(scene) if name == "unlabelled" else _labelled(scene, name)
        for path, data in files.items():
            _put(stores.join(url, path), data)
        advance()

    with ThreadPoolExecutor(num_cores()) as painters:
        written = [
            painters.submit(write, group, name, number)
            for group, (name, count) in enumerate(numbers.items())
            for number in range(count)
        ]
        for done in written:
            done.result()
    return Scenes(
        source_url=stores.join(url, "labelled"), collection_url=stores.join(url, "unlabelled")
    )


def _put(url: str, data: bytes) -> None:
    if not stores.exists(url) or stores.read_bytes(url) != data:
        stores.write_bytes(url, data)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scene:
    number: int
    name: str
    extension: str
    image: bytes
    label: Array


def _labelled(scene: _Scene, split: str) -> dict[str, bytes]:
    """Image and mask of a scene, by path."""
    return {
        f"labelled/images/{split}/{scene.name}{scene.extension}": scene.image,
        f"labelled/masks/{split}/{scene.name}.png": encode_mask(scene.label, SCENE_CLASSES.palette),
    }


def _unlabelled(scene: _Scene) -> dict[str, bytes]:
    """The image of a scene, by path; number `DAMAGED` ends too early."""
    folder = "east" if scene.number % 2 else "west"
    if scene.number != DAMAGED:
        return {f"unlabelled/{folder}/{scene.name}{scene.extension}": scene.image}
    return {
        f"unlabelled/{folder}/damaged-{scene.number:03}.jpg": scene.image[: len(scene.image) // 2]
    }


def paint_scene(rng: np.random.Generator, height: int, width: int) -> tuple[Array, Array]:
    """Image uint8 ``H x W x 3`` RGB and label map uint8 ``H x W`` of a new scene."""
    canvas = Canvas.blank(height, width)
    land = survey(rng, canvas)
    lake_side = 1 if rng.random() < 0.5 else -1
    paint_sky(rng, canvas, land)
    paint_mountains(rng, canvas, land)
    paint_meadow(rng, canvas, land)
    if rng.random() < 0.75:
        paint_lake(rng, canvas, land, lake_side)
    paint_road(rng, canvas, land)
    _furnish(rng, canvas, land, -lake_side)
    grain = rng.standard_normal(canvas.pixels.shape, np.float32)
    canvas.pixels[:] = canvas.pixels * land.light.shade + 3 * grain
    return canvas.picture()


def _furnish(rng: np.random.Generator, canvas: Canvas, land: Land, house_side: int) -> None:
    """A house on the side without a lake, trees off the road, a car on it; far things first."""
    things: list[tuple[Callable[..., None], Place]] = []
    if rng.random() < 0.85:
        things.append((paint_house, _house_place(rng, canvas, land, house_side)))
    things += [(paint_tree, _tree_place(rng, canvas, land)) for _ in range(rng.integers(2, 5))]
    if rng.random() < 0.9:
        y = _ground(rng, land, 0.58, 0.97)
        half = float(land.road_half(y))
        lane = 0.47 if rng.random() < 0.65 else -0.47
        x = float(land.road_centre(y)) + lane * half
        things.append((paint_car, Place(x, y, half * 0.92)))
    for paint, place in sorted(things, key=lambda thing: thing[1].y):
        paint(rng, canvas, land, place)


def _ground(rng: np.random.Generator, land: Land, far: float, near: float) -> float:
    """A height of the picture between two depths."""
    return land.horizon + (land.bottom - land.horizon) * rng.uniform(far, near)


def _house_place(rng: np.random.Generator, canvas: Canvas, land: Land, side: int) -> Place:
    y = _ground(rng, land, 0.16, 0.4)
    size = canvas.unit * (27 + 31 * float(land.depth(y)))
    kerb = float(land.road_centre(y)) + side * float(land.road_half(y)) * 1.2
    x = kerb + 4 * canvas.unit if side > 0 else kerb - size * 2.25
    return Place(float(np.clip(x, -size, land.width - size)), y, size)


def _tree_place(rng: np.random.Generator, canvas: Canvas, land: Land) -> Place:
    y = _ground(rng, land, 0.1, 0.62)
    size = canvas.unit * rng.uniform(50, 70) * (0.6 + float(land.depth(y)))
    side = 1 if rng.random() < 0.5 else -1
    clear = float(land.road_half(y)) * 1.1 + 0.24 * size + land.width * rng.uniform(0, 0.4)
    x = float(land.road_centre(y)) + side * clear
    return Place(float(np.clip(x, 0, land.width - 1)), y, size)


def _make_scene(rng: np.random.Generator, number: int) -> _Scene:
    """A new scene in one of five kinds of files, by its number."""
    height, width = (int(side) for side in rng.integers(*SIDES, 2))
    image, label = paint_scene(rng, height, width)
    name, extension, data = "scene", ".jpg", b""
    match number % 16:
        case 2 | 10:
            name, data = "turned", _turned_jpeg(image, (6, 8, 3)[number // 8 % 3])
        case 4:
            name, data = "gray", _jpeg(np.asarray(Image.fromarray(image).convert("L")))
        case 6 | 14:
            name, extension, data = "clear", ".png", _alpha_png(image)
        case _:
            data = _jpeg(image)
    return _Scene(
        number=number, name=f"{name}-{number:03}", extension=extension, image=data, label=label
    )


def _jpeg(image: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _turned_jpeg(image: Array, orientation: int) -> bytes:
    """A JPEG as a turned camera stores it: turned pixels, and a tag that turns them back."""
    exif = Image.Exif()
    exif[_ORIENTATION_TAG] = orientation
    buffer = io.BytesIO()
    stored = Image.fromarray(image).transpose(_STORED[orientation])
    stored.save(buffer, "JPEG", quality=92, exif=exif)
    return buffer.getvalue()


def _alpha_png(image: Array) -> bytes:
    """A PNG that fades out towards its corners."""
    y, x = (np.linspace(-1, 1, side) for side in image.shape[:2])
    alpha = np.clip(2.2 - np.hypot(*np.meshgrid(y, x, indexing="ij")) * 1.4, 0, 1) * 255
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([image, alpha.astype(np.uint8)])).save(buffer, "PNG")
    return buffer.getvalue()
