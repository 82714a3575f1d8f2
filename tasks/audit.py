"""The audit: every sample is read, decoded and compared before a dataset is published.

Kinds of finding, besides those of `tasks.pairing`, `tasks.layouts` and `tasks.band_audit`:

::

    unreadable_image          error    no permission, not an image, damaged, cut short, too large
    unreadable_mask           error    the same of a mask, or a format that keeps no values
    size_mismatch             error    mask and image, after its EXIF orientation, differ
    unknown_class             error    values or colours that no class has
    duplicate_across_splits   error    the same pixels as a sample of another split
    empty_split               error    no sample of a split is without error
    absent_class              warning  a class that occurs in no label
"""

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fcn.errors import ImageError, LabelError
from fcn.images import MAX_PIXELS, decode_image
from fcn.masks import encode_mask
from fcn.pillow import opened
from tasks import stores
from tasks.band_audit import examine_bands, mixed_bands
from tasks.dataset import DatasetError, Finding
from tasks.labels import COLOUR, ClassTable, read_mask
from tasks.layouts import Source
from tasks.pairing import Pair
from tasks.split_writer import BandFile, FurtherLabel, Row
from tasks.staging import Staging
from tasks.stores import StoreError, StoreUnavailable

NUM_THREADS = 8
"""Files read at the same time; enough to hide an object store's latency."""

_HELD_OUT_FIRST = ("test", "val", "train")
_SHOWN_VALUES = 3

Item = TypeVar("Item")
Result = TypeVar("Result")


class Examined(NamedTuple):
    """A sample after its examination: what was found, and its row if nothing was."""

    pair: Pair
    findings: list[Finding]
    row: Row | None
    image_digest: bytes


def audit(
    source: Source,
    table: ClassTable,
    staging: Staging,
    *,
    max_pixels: int = MAX_PIXELS,
    num_threads: int = NUM_THREADS,
    advance: Callable[[], object] = lambda: None,
) -> list[Finding]:
    """Examine every sample of a source and stage the good ones.

    Splits are examined in the order test, val, train, so that of an image in two splits the
    held-out one stays. Memory holds a few samples per thread.

    Args:
        source: From `tasks.layouts.find_samples`.
        table: Its classes.
        staging: Takes the rows.
        max_pixels: Largest image or mask, height x width.
        num_threads: Files read and decoded at the same time.
        advance: Called after each sample.

    Returns:
        All findings, those of the source included.

    Raises:
        StoreUnavailable: the store does not answer; that is no fault of a file.
    """
    findings = list(source.findings)
    filled: set[str] = set()
    first: dict[bytes, Pair] = {}
    first_bands: dict[str, BandFile] = {}
    heads = {"": table, **table.further}
    totals = {head: np.zeros(len(t.classes) + 1, np.int64) for head, t in heads.items()}
    pairs = sorted(source.pairs, key=lambda pair: (_HELD_OUT_FIRST.index(pair.split), pair.key))
    for found in in_order(partial(examine, table, max_pixels), pairs, num_threads):
        twin = first.setdefault(found.image_digest, found.pair) if found.row else found.pair
        wrong = [_duplicate(found.pair, twin)] if twin.split != found.pair.split else []
        if found.row:
            wrong += mixed_bands(found.row.bands, first_bands, partial(_finding, found.pair))
        if found.row and not wrong:
            staging.add(found.pair.split, found.row)
            filled.add(found.pair.split)
            totals[""] += found.row.pixels
            for head, label in found.row.further.items():
                totals[head] += label.pixels
        findings += found.findings + wrong
        advance()
    absent = [found for head, t in heads.items() for found in _absent(t, totals[head], head)]
    return findings + _emptied(source, filled) + absent


def examine(table: ClassTable, max_pixels: int, pair: Pair) -> Examined:
    """Read and decode one sample, and compare its image and masks.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    finding = partial(_finding, pair)
    findings, image, pixels = [], b"", None
    try:
        image = stores.read_bytes(pair.image_url)
        pixels = decode_image(image, max_pixels=max_pixels).pixels
    except StoreUnavailable:
        raise
    except (ImageError, StoreError) as error:
        findings.append(finding("unreadable_image", pair.image_path, str(error)))
    size = None if pixels is None else pixels.shape[:2]
    label, wrong = _examine_mask(
        table, max_pixels, pair, (pair.mask_path, pair.mask_url), image, size
    )
    findings += wrong
    further: dict[str, NDArray[np.uint8] | None] = {}
    for head, of_head in table.further.items():
        place = pair.further.get(head)
        further[head] = None
        if place is not None:
            further[head], wrong = _examine_mask(of_head, max_pixels, pair, place, image, size)
            findings += wrong
    bands, wrong = examine_bands(pair.bands, size, max_pixels, finding)
    findings += wrong
    if findings or pixels is None or label is None:
        return Examined(pair, findings, None, b"")
    height, width = pixels.shape[:2]
    row = Row(
        key=pair.key,
        image=image,
        image_path=pair.image_path,
        label=encode_mask(label, table.classes.palette),
        height=height,
        width=width,
        pixels=_count(label, len(table.classes)),
        further={
            head: _further_label(found, table.further[head], height * width)
            for head, found in further.items()
        },
        bands=bands,
    )
    digest = hashlib.sha256(f"{height} x {width}".encode())
    digest.update(pixels.data)
    return Examined(pair, findings, row, digest.digest())


def _examine_mask(
    table: ClassTable,
    max_pixels: int,
    pair: Pair,
    place: tuple[str, str],
    image: bytes,
    size: tuple[int, ...] | None,
) -> tuple[NDArray[np.uint8] | None, list[Finding]]:
    """The label map of one mask of a sample, and what is wrong with it.

    Args:
        table: Its classes.
        max_pixels: Largest mask.
        pair: The sample.
        place: Path and URL of the mask.
        image: The bytes of the sample's image.
        size: Its height and width; None if it cannot be decoded.
    """
    path, url = place
    try:
        mask = read_mask(stores.read_bytes(url), max_pixels=max_pixels)
    except StoreUnavailable:
        raise
    except (ImageError, LabelError, StoreError) as error:
        return None, [_finding(pair, "unreadable_mask", path, str(error))]
    if size is None:
        return None, []
    findings = []
    if mask.shape != size:
        text = _mismatch_text(image, size, mask.shape)
        findings.append(_finding(pair, "size_mismatch", path, text))
    label, unknown = table.to_label(mask)
    if unknown:
        text = _unknown_text(unknown, table)
        findings.append(_finding(pair, "unknown_class", path, text, sum(unknown.values())))
    return label, findings


def _further_label(
    label: NDArray[np.uint8] | None, table: ClassTable, num_pixels: int
) -> FurtherLabel:
    if label is None:
        pixels = np.zeros(len(table.classes) + 1, np.int64)
        pixels[-1] = num_pixels
        return FurtherLabel(label=None, pixels=pixels)
    return FurtherLabel(
        label=encode_mask(label, table.classes.palette),
        pixels=_count(label, len(table.classes)),
    )


def find_values(
    source: Source,
    *,
    max_pixels: int = MAX_PIXELS,
    num_threads: int = NUM_THREADS,
    head: str = "",
) -> set[int]:
    """All values that the masks of a source hold; unreadable masks are passed over.

    Args:
        source: From `tasks.layouts.find_samples`.
        max_pixels: Largest mask.
        num_threads: Files read and decoded at the same time.
        head: Name of a further head, if its masks are meant.

    Raises:
        DatasetError: a mask holds colours.
        StoreUnavailable: the store does not answer.
    """

    def values(place: tuple[str, str]) -> set[int]:
        path, url = place
        try:
            mask = read_mask(stores.read_bytes(url), max_pixels=max_pixels)
        except StoreUnavailable:
            raise
        except (ImageError, LabelError, StoreError):
            return set()
        if mask.max() >= COLOUR:
            raise DatasetError(
                f"{path} holds colours, and nothing says what they mean; give classes "
                "as the URL of a class file with a colour for each class"
            )
        return set(np.unique(mask).tolist())

    places = (
        [pair.further[head] for pair in source.pairs if head in pair.further]
        if head
        else [(pair.mask_path, pair.mask_url) for pair in source.pairs]
    )
    found: set[int] = set()
    for some in in_order(values, places, num_threads):
        found |= some
    return found


def counts_by_kind(findings: Iterable[Finding]) -> str:
    """Findings by kind, the most frequent first: ``2 size_mismatch, 1 unknown_class``."""
    counts = Counter(finding.kind for finding in findings).most_common()
    return ", ".join(f"{count:,} {kind}" for kind, count in counts) or "none"


def require_no_errors(findings: Sequence[Finding], place: str) -> None:
    """Refuse a source with errors.

    Args:
        findings: Of the audit.
        place: The source's URL, as it may be shown.

    Raises:
        DatasetError: there are errors; their numbers, the first three, and what to do.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise DatasetError(
            f"{len(errors):,} errors in {place}, so nothing was published: "
            f"{counts_by_kind(errors)}; first: {'; '.join(f.text for f in errors[:3])}. "
            "Correct the source, or set strict=False to leave these samples out."
        )


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], num_threads: int
) -> Iterator[Result]:
    """``map`` on threads, in order, at most two items per thread ahead of the caller."""
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _finding(pair: Pair, kind: str, file: str, text: str, count: int = 1) -> Finding:
    return Finding(
        kind=kind,
        severity="error",
        text=f"{text} ({file})",
        count=count,
        file=file,
        key=pair.key,
        split=pair.split,
    )


def _duplicate(pair: Pair, twin: Pair) -> Finding:
    text = f"same image as {twin.image_path} of split {twin.split}"
    return _finding(pair, "duplicate_across_splits", pair.image_path, text)


def _mismatch_text(image: bytes, size: tuple[int, ...], mask_size: tuple[int, ...]) -> str:
    text = (
        f"mask is {mask_size[0]} x {mask_size[1]} (height x width), its image {size[0]} x {size[1]}"
    )
    with opened(image, MAX_PIXELS) as header:
        turned = (header.height, header.width) == mask_size
    return text + (" once its EXIF orientation is applied; turn the mask as well" if turned else "")


def _unknown_text(unknown: dict[int, int], table: ClassTable) -> str:
    ranked = sorted(unknown.items(), key=lambda item: -item[1])
    coloured = ranked[0][0] >= COLOUR
    shown = ", ".join(
        f"{f'colour #{value - COLOUR:06x}' if coloured else f'class {value}'} in {count:,} pixels"
        for value, count in ranked[:_SHOWN_VALUES]
    )
    more = f" and {len(ranked) - _SHOWN_VALUES:,} more" if len(ranked) > _SHOWN_VALUES else ""
    known = "which no class has" if coloured else f"classes are {table.known}"
    return f"label holds {shown}{more}{', ' if coloured else '; '}{known}"


def _count(label: NDArray[np.uint8], num_classes: int) -> NDArray[np.int64]:
    """Pixels per class, then ignored ones: C + 1."""
    counts = np.bincount(label.ravel(), minlength=256)
    return np.append(counts[:num_classes], counts[num_classes:].sum()).astype(np.int64)


def _emptied(source: Source, filled: Collection[str]) -> list[Finding]:
    """Splits of which nothing is left, and how many samples they had."""
    counts = Counter(pair.split for pair in source.pairs if pair.split not in filled)
    return [
        Finding(
            kind="empty_split",
            severity="error",
            text=f"no sample of split {split} is left: all {count:,} have errors",
            count=count,
            split=split,
        )
        for split, count in counts.items()
    ]


def _absent(table: ClassTable, total: NDArray[np.int64], head: str) -> list[Finding]:
    where = f" of head {head}" if head else ""
    return [
        Finding(
            kind="absent_class",
            severity="warning",
            text=f"class {class_id} ({name}) occurs in no label{where}",
            count=0,
        )
        for class_id, name in enumerate(table.classes.names)
        if not total[class_id]
    ]
