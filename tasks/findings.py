"""What is wrong with a prediction's output: its files against each other, and every mask.

What each file says about the others is compared: manifests fix keys and shards, a part's card
holds the digest of its bytes, the index repeats the cards, and a row tells the size and the
histogram of its mask. Everything is streamed: memory holds the keys of one shard, one row
group, and a page of the manifest of every run.
"""

import heapq
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fcn.classes import Classes
from fcn.errors import FcnError
from fcn.masks import decode_mask
from tasks import manifest as manifests
from tasks import part_file, parts, stores
from tasks.manifest import Manifest
from tasks.part_file import Part
from tasks.shards import mask_url
from tasks.stores import Entry, StoreError

Kind = Literal[
    "manifest", "foreign file", "missing part", "missing row", "cut off", "unreadable part",
    "checksum", "misplaced part", "schema", "rows", "card", "row", "mask", "mask object", "index",
]  # fmt: skip

_REDO = "remove the part and run predict again: its images are segmented anew"

NEXT_STEPS: Mapping[Kind, str] = {
    "manifest": "restore the manifest from a copy, or predict into a new place",
    "foreign file": "move it elsewhere: readers of parts/**/*.parquet may take it for a part",
    "missing part": "run predict again: it segments what is missing",
    "missing row": "run predict again; images that are gone from the collection have no row: "
    "compact then drops the run that was cut off",
    "cut off": "run compact again: it goes on where it was cut off",
    "unreadable part": _REDO,
    "checksum": _REDO,
    "misplaced part": _REDO,
    "schema": _REDO,
    "rows": _REDO,
    "card": _REDO,
    "row": _REDO,
    "mask": _REDO,
    "mask object": "remove the row's part and run predict again: its masks are written anew",
    "index": "remove _index.json and run predict again: it is written anew from the parts",
}
"""What to do about a finding, by its kind."""

_THREADS = 4
_LEFT_BY_A_KILLED_WRITER = re.compile(r"(.*/)?\.[0-9a-f]{32}\.tmp")
_STATUSES = ("ok", "partial", "failed")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it was written.

    Attributes:
        kind: what sort of thing, a key of `NEXT_STEPS`.
        place: file below the output, and row where it is about one.
        text: what was found and what was expected.
    """

    kind: Kind
    place: str
    text: str


@dataclass(kw_only=True)
class Seen:
    """What a check has gone through."""

    rows: int = 0
    masks: int = 0
    cards: list[Part] = field(default_factory=list)


def check_output(output_url: str, seen: Seen) -> Iterator[Finding]:
    """Every finding of an output.

    Args:
        output_url: Where predict wrote.
        seen: Counts what was checked; up to date whenever a finding comes.

    Raises:
        StoreError: no output of predict is there, or its store cannot be read.
    """
    there = parts.listed(output_url)
    numbers = manifests.runs(output_url)
    if not numbers and not there:
        raise StoreError(f"no manifest and no parts at {stores.redact(output_url)}: no output")
    runs: dict[int, Manifest] = {}
    for run in numbers:
        try:
            runs[run] = manifests.read(output_url, run)
        except StoreError as error:
            yield Finding(kind="manifest", place=manifests.manifest_name(run), text=str(error))
    yield from _foreign_files(output_url, runs)
    yield from _missing(runs, there)
    with ThreadPoolExecutor(_THREADS) as threads:
        for run, manifest in runs.items():
            newer = _keys([runs[other] for other in runs if other > run], there)
            numbers = [number for number in there.get(run, ()) if number < manifest.num_shards]
            marked = _marked(_keys_of(manifest, numbers), newer)
            for number in numbers:
                images = manifest.num_images(number)
                is_newest = [not is_newer for _, is_newer in islice(marked, images)]
                yield from _PartCheck(manifest, number, seen, threads, is_newest).findings()
    if runs:
        yield from _check_index(output_url, runs[max(runs)], there, seen.cards)


def check_rows(manifest: Manifest, number: int) -> Iterator[Finding]:
    """The findings of one part that need no mask to be decoded: bytes, place, columns, keys.

    Raises:
        StoreError: the part is not there, or its store cannot be read.
    """
    return _PartCheck(manifest, number, Seen()).findings()


def _foreign_files(output_url: str, runs: Mapping[int, Manifest]) -> Iterator[Finding]:
    """Files among the parts that no manifest knows."""
    folder = stores.join(output_url, "parts")
    if not stores.exists(folder):
        return
    for entry in stores.list_entries(f"{folder}/"):
        place = parts.place_of(entry.key)
        if place is None and _LEFT_BY_A_KILLED_WRITER.fullmatch(entry.key):
            continue
        if place is None:
            text = "no name of a part"
        elif place[0] not in runs:
            text = f"a part of run {place[0]}, of which there is no readable manifest"
        elif place[1] >= runs[place[0]].num_shards:
            text = f"part {place[1]} of a run of {runs[place[0]].num_shards} shards"
        else:
            continue
        yield Finding(kind="foreign file", place=f"parts/{entry.key}", text=text)


def _missing(runs: Mapping[int, Manifest], there: Mapping[int, list[int]]) -> Iterator[Finding]:
    """Parts of the newest run, and rows of older ones that no other run has done instead."""
    for run, manifest in runs.items():
        done = set(there.get(run, ()))
        missing = [number for number in range(manifest.num_shards) if number not in done]
        older = [other for other in {*runs, *there} if other < run]
        place = f"run {run:05d}"
        if run == max(runs) and manifest.card.merged and older:
            yield Finding(
                kind="cut off",
                place=place,
                text=f"compact has not finished: {len(missing):,} of {manifest.num_shards:,} parts "
                f"are to be written, and {len(older):,} older runs are still there",
            )
        elif run == max(runs):
            for number in missing:
                yield Finding(
                    kind="missing part",
                    place=parts.part_name(run, number),
                    text=f"not there; {manifest.num_images(number):,} images have no row",
                )
        elif missing:
            elsewhere = _keys([other for other in runs.values() if other is not manifest], there)
            wanted = _keys_of(manifest, missing)
            lost, first = 0, ""
            for key, is_done in _marked(wanted, elsewhere):
                lost, first = lost + (not is_done), first or ("" if is_done else key)
            if lost:
                yield Finding(
                    kind="missing row",
                    place=place,
                    text=f"{len(missing):,} of {manifest.num_shards:,} parts are not there, and "
                    f"{lost:,} of their images have no row in any run; first: {first}",
                )


def _keys_of(manifest: Manifest, numbers: Iterable[int]) -> Iterator[str]:
    """The keys of some shards, in order: one pass over the manifest."""
    wanted = set(numbers)
    for index, entry in enumerate(manifest.entries() if wanted else ()):
        if index // manifest.card.images_per_shard in wanted:
            yield entry.key


def _keys(runs: Sequence[Manifest], there: Mapping[int, list[int]]) -> Iterator[str]:
    """The keys that have a part in any of the runs, sorted."""
    return heapq.merge(*(_keys_of(run, there.get(run.card.run, ())) for run in runs))


def _marked(keys: Iterable[str], others: Iterator[str]) -> Iterator[tuple[str, bool]]:
    """Each key, and whether it is among the others: both sorted, one of each in memory."""
    other = next(others, None)
    for key in keys:
        while other is not None and other < key:
            other = next(others, None)
        yield key, other == key


class _PartCheck:
    """The check of one part.

    Without ``threads`` masks are not decoded. ``is_newest`` tells of each row whether no newer
    run has done its image again: only then is the object of its mask its own.
    """

    def __init__(
        self,
        manifest: Manifest,
        number: int,
        seen: Seen,
        threads: ThreadPoolExecutor | None = None,
        is_newest: Sequence[bool] = (),
    ) -> None:
        self.manifest = manifest
        self.number = number
        self.seen = seen
        self.threads = threads
        self.is_newest = is_newest
        self.place = parts.part_name(manifest.card.run, number)
        cards = (*manifest.card.merged, manifest.card)
        self.classes = {card.run_digest: card.model.label_classes() for card in cards}

    def findings(self) -> Iterator[Finding]:
        """What is wrong; of a part whose bytes are not its own, no row is looked at."""
        run, output_url = self.manifest.card.run, self.manifest.output_url
        with stores.open_input(parts.part_url(output_url, run, self.number)) as file:
            try:
                card = part_file.read_card(file)
                if not part_file.is_intact(file, card):
                    text = "its bytes are not those it was written with (SHA-256)"
                    yield self._finding("checksum", text)
                    return
                yield from self._content(card, pq.ParquetFile(file))
            except (ValueError, pa.ArrowException) as error:
                yield self._finding("unreadable part", f"no part of ours, or cut short: {error}")

    def _content(self, card: Part, parquet: pq.ParquetFile) -> Iterator[Finding]:
        own = self.manifest.card
        if (card.run, card.number, card.run_digest) != (own.run, self.number, own.run_digest):
            yield self._finding(
                "misplaced part",
                f"its card is that of {parts.part_name(card.run, card.number)} with run digest "
                f"{card.run_digest[:12]}…; expected {own.run_digest[:12]}…",
            )
            return
        self.seen.cards.append(card)
        schemas = [part_file.schema(*f) for f in (("png",), ("rle",), ("png", "rle"))]
        if not any(parquet.schema_arrow.equals(schema) for schema in schemas):
            found = ", ".join(f"{column.name}: {column.type}" for column in parquet.schema_arrow)
            yield self._finding("schema", f"found columns {found}")
            return
        yield from self._rows(card, parquet)

    def _rows(self, card: Part, parquet: pq.ParquetFile) -> Iterator[Finding]:
        columns = ["key", "url", "size", "etag"]
        counted = ["status", "error_class", "class_pixels", "run_digest"]
        small = parquet.read(columns=[*columns, *counted])
        entries = [_cells(entry) for entry in self.manifest.shard(self.number)]
        if difference := _difference(small.select(columns).to_pylist(), entries):
            yield self._finding("rows", difference)
            return
        run, digest = card.run, card.run_digest
        found = part_file.summarise_table(small, run=run, number=self.number, run_digest=digest)
        if found.model_copy(update={"sha256": card.sha256}) != card:
            yield self._finding("card", f"its rows come to {found!r}, its card says {card!r}")
        if self.threads is None:
            return
        first = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.read_row_group(group).to_pylist()
            newest = self.is_newest[first : first + len(rows)]
            first += len(rows)
            for row, finding in zip(rows, self.threads.map(self._row, rows, newest), strict=True):
                self.seen.rows += 1
                self.seen.masks += row["status"] != "failed"
                if finding:
                    yield finding

    def _row(self, row: Mapping[str, Any], is_newest: bool) -> Finding | None:
        """What is wrong with a row, if anything."""
        place = f"{self.place}, {row['key']}"
        classes = self.classes.get(row["run_digest"])
        if classes is None:
            text = f"run digest {row['run_digest']}, which is that of no run of the manifest"
            return Finding(kind="row", place=place, text=text)
        if text := _inconsistency(row):
            return Finding(kind="row", place=place, text=text)
        if row["status"] == "failed":
            return None
        stored = row.get("mask_rle") or (row.get("mask") or {}).get("bytes")
        path = (row.get("mask") or {}).get("path")
        url = mask_url(self.manifest.output_url, row["key"])
        # of an output that was moved, the end of the URL alone is still right
        has_object = path is not None and path.endswith(mask_url("", row["key"]))
        kind: Kind = "mask"
        try:
            if stored:
                _check_mask(stored, row, classes)
            kind = "mask object"
            if has_object and is_newest:
                _check_mask(stores.read_bytes(url), row, classes)
        except (FcnError, ValueError, StoreError) as error:
            return Finding(kind=kind, place=place, text=f"{type(error).__name__}: {error}")
        if not stored and not has_object:
            return Finding(kind="mask", place=place, text="neither a mask nor the object of one")
        return None

    def _finding(self, kind: Kind, text: str) -> Finding:
        return Finding(kind=kind, place=self.place, text=text)


def _cells(entry: Entry) -> dict[str, Any]:
    """An image as a row names it."""
    size = None if entry.size == stores.UNKNOWN_SIZE else entry.size
    return {"key": entry.key, "url": entry.url, "size": size, "etag": entry.etag}


def _difference(found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> str:
    """How the rows of a part differ from the manifest's; nothing where they do not."""
    if found == expected:
        return ""
    keys, wanted = [row["key"] for row in found], [row["key"] for row in expected]
    missing, foreign = sorted(set(wanted) - set(keys)), sorted(set(keys) - set(wanted))
    twice = len(keys) - len(set(keys))
    reasons = [
        f"{len(missing):,} keys of the manifest are missing: {missing[0]}, …" if missing else "",
        f"{len(foreign):,} keys are not in the manifest: {foreign[0]}, …" if foreign else "",
        f"{twice:,} keys stand there more than once" if twice else "",
    ]
    if not any(reasons) and keys != wanted:
        reasons = ["the rows are not in the order of the manifest"]
    if not any(reasons):
        row, entry = next((r, e) for r, e in zip(found, expected, strict=True) if r != e)
        reasons = [f"{row} where the manifest has {entry}"]
    return "; ".join(filter(None, reasons))


def _inconsistency(row: Mapping[str, Any]) -> str:
    """What is wrong with a row, its mask apart; nothing where all is well."""
    if row["status"] not in _STATUSES:
        return f"status is {row['status']!r}; expected one of {', '.join(_STATUSES)}"
    if row["status"] == "failed":
        if not row["error_class"] or not row["error"]:
            return "failed without a reason"
        given = [name for name in ("mask", "mask_rle", "class_pixels") if row.get(name) is not None]
        return f"failed, but with {', '.join(given)}" if given else ""
    empty = [name for name in ("height", "width", "class_pixels", "confidence") if not row[name]]
    if empty and row["confidence"] != 0:
        return f"{row['status']}, but without {', '.join(empty)}"
    if not 0 <= row["confidence"] <= 1:
        return f"confidence is {row['confidence']}; expected 0 to 1"
    return ""


def _check_mask(data: bytes, row: Mapping[str, Any], classes: Classes) -> None:
    """Decode a mask and compare it with its row.

    Raises:
        FcnError: bytes that are no mask.
        ValueError: a mask that is not the row's.
    """
    label = decode_mask(data)
    if label.shape != (row["height"], row["width"]):
        raise ValueError(
            f"mask is {label.shape[0]} x {label.shape[1]}, its row says {row['height']} x "
            f"{row['width']}"
        )
    counts = np.bincount(label.ravel(), minlength=len(classes))
    if len(counts) > len(classes):
        raise ValueError(f"mask holds class {len(counts) - 1}; classes are 0..{len(classes) - 1}")
    if counts.tolist() != row["class_pixels"]:
        raise ValueError(
            f"mask has {counts.tolist()} pixels by class, its row {row['class_pixels']}"
        )


def _check_index(
    output_url: str, newest: Manifest, there: Mapping[int, list[int]], cards: Sequence[Part]
) -> Iterator[Finding]:
    """How the index differs from what it would be if it were written now."""
    url = stores.join(output_url, parts.INDEX_NAME)
    if not stores.exists(url):
        yield Finding(kind="index", place=parts.INDEX_NAME, text="not there")
        return
    try:
        found = json.loads(stores.read_bytes(url))
        named = {row["path"]: row for row in found["parts"]}
    except (ValueError, KeyError, TypeError) as error:
        yield Finding(kind="index", place=parts.INDEX_NAME, text=f"no index of ours: {error!r}")
        return
    files = {parts.part_name(run, number) for run, numbers in there.items() for number in numbers}
    texts = [f"names {path}, which is not there" for path in sorted(named.keys() - files)]
    texts += [f"does not name {path}" for path in sorted(files - named.keys())]
    expected = parts.index_of(cards, newest.card.model.label_classes())
    for row in expected.pop("parts"):
        if row["path"] in named and named[row["path"]] != row:
            texts.append(f"says of {row['path']} what its card does not say")
    if not texts and len(cards) == len(files):  # else the sums cannot be known
        texts = [
            f"{name} is {found.get(name)!r}; expected {value!r}"
            for name, value in expected.items()
            if found.get(name) != value
        ]
    for text in texts:
        yield Finding(kind="index", place=parts.INDEX_NAME, text=text)
