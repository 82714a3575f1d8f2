"""The page that shows a prediction: overlays in one HTML file that needs nothing beside it.

Which images are shown follows from the rows and a seed alone, not from how the rows lie in
parts. Rows are streamed; memory holds the chosen ones. Names and error texts come from outside:
the page escapes them, and forbids itself to load anything.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fcn.classes import Classes, Colour
from fcn.draw import colourise, overlay
from fcn.errors import FcnError
from fcn.images import decode_image
from fcn.masks import decode_mask
from tasks import manifest as manifests
from tasks import parts, stores
from tasks.markdown import image_url
from tasks.part_file import column
from tasks.reading import read_objects
from tasks.stores import StoreError

PICTURE_WIDTH = 320
"""Pixels above which a picture is made smaller; an image is shown with and without its mask."""

MAX_PAGE_BYTES = 8_000_000
"""What the pictures of a page come to, about; images beyond are left out, and the page says so."""

MAX_PIXELS = 20_000_000
"""Larger images are passed over: one would take longer to decode than all others together."""

MAX_CLASSES = 40
NUM_FAILURES = 40

_AT_ONCE = 8  # images in memory
_SPARE = 4  # candidates of a section for each image: some are shown in an earlier one
_COLUMNS = ["key", "status", "height", "width", "confidence", "class_pixels"]
_REASON = ["key", "error_class", "error"]
_SHOWN = ["key", "run", "status", "confidence", "class_pixels"]


@dataclass(frozen=True, kw_only=True)
class Section:
    """Images that are shown for one reason.

    Attributes:
        heading: The reason.
        class_index: The class that they have most of, if that is it.
        keys: Of the images; no image is in two sections.
    """

    heading: str
    class_index: int | None
    keys: list[str]


@dataclass(kw_only=True)
class Choice:
    """What a page is about to show.

    Attributes:
        sections: In the order of the page; those without an image are left out.
        failures: Key, error class and reason of some failed images.
        reasons: Failed images by error class.
        statuses: Images by status.
        pixels: Pixels by class.
    """

    sections: list[Section]
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    pixels: np.ndarray

    @property
    def keys(self) -> list[str]:
        """The images of all sections."""
        return [key for section in self.sections for key in section.keys]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image of the page: ``data:`` URLs, and what is said below them.

    ``shares`` are those of the classes, by id, from 0 to 1; ``further`` are the overlays of
    further heads, by name.
    """

    key: str
    text: str
    shares: Sequence[float]
    image: str | None
    overlay: str
    further: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """What it adds to the page."""
        return sum(map(len, (self.image or "", self.overlay, *self.further.values())))


def choose(output_url: str, classes: Classes, *, count: int, seed: int) -> Choice:
    """Images at random, the least confident, those with most of each class, and failed ones.

    Args:
        output_url: Where predict wrote.
        classes: Of the newest run; masks with other ones are not shown.
        count: Images of a section.
        seed: Of chance.

    Raises:
        StoreError: no parts there, or they cannot be read.
    """
    indices = [None, None, *range(min(len(classes), MAX_CLASSES))]
    best: list[list[tuple[float, int, str]]] = [[] for _ in indices]
    failed: list[tuple[int, str, str, str]] = []
    choice = Choice(sections=[], pixels=np.zeros(len(classes), np.int64))
    for batch in parts.read(output_url).to_batches(columns=[*_COLUMNS, *_REASON[1:]]):
        choice.statuses.update(map(str, batch["status"].to_pylist()))
        bad = batch.filter(pc.equal(batch["status"], pa.scalar("failed")))
        choice.reasons.update(map(str, bad["error_class"].to_pylist()))
        reasons = zip(*(bad[name].to_pylist() for name in _REASON), strict=True)
        failed = sorted([*failed, *((_chance(row[0], seed), *row) for row in reasons)])
        failed = failed[:NUM_FAILURES]
        num_classes = pc.fill_null(pc.list_value_length(batch["class_pixels"]), 0)
        good = batch.filter(pc.equal(num_classes, pa.scalar(len(classes), pa.int32())))
        if not good.num_rows:
            continue
        pixels = np.asarray(pc.list_flatten(good["class_pixels"])).reshape(-1, len(classes))
        choice.pixels += pixels.sum(axis=0)
        keys = list(map(str, good["key"].to_pylist()))
        chance = np.array([_chance(key, seed) for key in keys], np.uint64)
        small = pixels.sum(axis=1) <= MAX_PIXELS
        shares = pixels / pixels.sum(axis=1, keepdims=True)
        ranks = [chance.astype(float), np.asarray(good["confidence"]), *(-shares.T[:MAX_CLASSES])]
        for place, (index, rank) in enumerate(zip(indices, ranks, strict=True)):
            allowed = np.flatnonzero(small & (rank < 0) if index is not None else small)
            order = allowed[np.lexsort((chance[allowed], rank[allowed]))][: _SPARE * count]
            found = [(float(rank[row]), int(chance[row]), keys[row]) for row in order]
            best[place] = sorted([*best[place], *found])[: _SPARE * count]
    headings = ["Random", "Least confident", *(f"Most {name}" for name in classes.names)]
    seen: set[str] = set()
    for heading, index, candidates in zip(headings, indices, best, strict=False):
        unseen = [key for *_, key in candidates if key not in seen][:count]
        seen.update(unseen)
        if unseen:
            choice.sections.append(Section(heading=heading, class_index=index, keys=unseen))
    choice.failures = [(key, name, text) for _, key, name, text in failed]
    return choice


def pictures(
    output_url: str,
    keys: Sequence[str],
    classes: Classes,
    further_classes: Mapping[str, Classes] | None = None,
) -> Iterator[Picture]:
    """Pictures of these images, a few at a time, in the order of their rows.

    Raises:
        StoreError: parts or masks cannot be read.
    """
    rows = parts.read(output_url)
    further = further_classes or {}
    names = [column(name, head) for head in ("", *further) for name in ("mask", "mask_rle")]
    masks = [name for name in names if name in rows.schema.names]
    wanted = pc.field("key").isin(pa.array(sorted(set(keys)), pa.string()))
    chosen = rows.filter(wanted).to_table(columns=[*_SHOWN, *masks]).to_pylist()
    entries = {
        run: manifests.read(output_url, run).find({row["key"] for row in chosen})
        for run in {row["run"] for row in chosen}
    }
    for start in range(0, len(chosen), _AT_ONCE):
        some = chosen[start : start + _AT_ONCE]
        found = read_objects([entries[row["run"]][row["key"]] for row in some], last_attempt=True)
        for row, data in zip(some, found, strict=True):
            yield _picture(row, data, classes, further)


def render(
    output_url: str,
    choice: Choice,
    found: Iterator[Picture],
    classes: Classes,
    seed: int,
    further_classes: Mapping[str, Classes] | None = None,
) -> bytes:
    """The page's HTML.

    Args:
        output_url: Named in the heading.
        choice: What to show.
        found: Pictures of the chosen images; taken until the page is full.
        classes: Names and colours.
        seed: Named below the heading.
        further_classes: Names and colours of further heads, by name.
    """
    by_key: dict[str, Picture] = {}
    size = 0
    for picture in found:
        if size + picture.num_bytes > MAX_PAGE_BYTES:
            break
        size += picture.num_bytes
        by_key[picture.key] = picture
    sections = [
        (section.heading, [_captioned(by_key[key], section, classes) for key in there])
        for section in choice.sections
        if (there := [key for key in section.keys if key in by_key])
    ]
    total = max(1, int(choice.pixels.sum()))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    html = environment.get_template("browse.html.j2").render(
        place=stores.redact(output_url),
        seed=seed,
        statuses=[(name, choice.statuses[name]) for name in ("ok", "partial", "failed")],
        num_images=choice.statuses.total(),
        sections=sections,
        left_out=len(choice.keys) - len(by_key),
        failures=choice.failures,
        reasons=choice.reasons.most_common(),
        further=[
            (head, [(name, _css(colour)) for name, colour in zip(c.names, c.palette, strict=True)])
            for head, c in (further_classes or {}).items()
        ],
        classes=[
            (name, _css(colour), 100 * int(pixels) / total)
            for name, colour, pixels in zip(
                classes.names, classes.palette, choice.pixels, strict=True
            )
        ],
    )
    return html.encode("utf-8", "replace")


def _css(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _chance(key: str, seed: int) -> int:
    """A number below 2**53 that depends on key and seed alone."""
    digest = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 11


def _picture(
    row: Mapping[str, Any], data: object, classes: Classes, further_classes: Mapping[str, Classes]
) -> Picture:
    """An image and its overlays; its masks alone where the image cannot be had any more."""
    label = _label(row)
    further = {  # rows of an older run may lack a head
        head: (_label(row, head), of_head)
        for head, of_head in further_classes.items()
        if row.get(column("mask", head)) or row.get(column("mask_rle", head))
    }
    pixels, text = None, f"confidence {row['confidence']:.2f}"
    try:
        if isinstance(data, bytes):
            pixels = decode_image(data, lenient=row["status"] == "partial").pixels
            picture = overlay(pixels, label, classes)
            others = {head: overlay(pixels, *found) for head, found in further.items()}
        else:
            text += f" · no image: {data}"
    except FcnError as error:
        pixels, text = None, f"{text} · no image: {error}"
    if pixels is None:
        picture = colourise(label, classes)
        others = {head: colourise(*found) for head, found in further.items()}
    return Picture(
        key=row["key"],
        text=text,
        shares=[count / label.size for count in row["class_pixels"]],
        image=None if pixels is None else image_url(pixels, max_width=PICTURE_WIDTH),
        overlay=image_url(picture, max_width=PICTURE_WIDTH),
        further={name: image_url(p, max_width=PICTURE_WIDTH) for name, p in others.items()},
    )


def _label(row: Mapping[str, Any], head: str = "") -> np.ndarray:
    try:
        return decode_mask(parts.stored_mask(row, head))
    except FcnError as error:
        raise StoreError(
            f"the mask of {row['key']} cannot be decoded: {error}; run verify"
        ) from error


def _captioned(picture: Picture, section: Section, classes: Classes) -> tuple[Picture, str]:
    """A picture and what is said below it: its share of the section's class, or the largest."""
    order = sorted(range(len(classes)), key=picture.shares.__getitem__, reverse=True)[:2]
    shown = order if section.class_index is None else [section.class_index]
    shares = [f"{classes.names[index]} {100 * picture.shares[index]:.1f} %" for index in shown]
    return picture, f"{', '.join(shares)} · {picture.text}"
