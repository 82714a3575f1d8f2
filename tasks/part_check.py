"""What is wrong with one part: its bytes, its place, its rows, and every mask in it."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fcn.classes import Classes
from fcn.errors import FcnError
from fcn.masks import MaskFormat, decode_mask
from tasks import part_file, parts, stores
from tasks.findings import Finding, Kind, Seen
from tasks.manifest import Manifest
from tasks.part_file import Part
from tasks.shards import mask_url
from tasks.stores import Entry, StoreError

_STATUSES = ("ok", "partial", "failed")


def check_rows(manifest: Manifest, number: int) -> Iterator[Finding]:
    """The findings of one part that need no mask to be decoded: bytes, place, columns, keys.

    Raises:
        StoreError: the part is not there, or its store cannot be read.
    """
    return PartCheck(manifest, number, Seen()).findings()


class PartCheck:
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
        self.classes = {
            card.run_digest: {"": card.model.label_classes()} | card.model.further_label_classes()
            for card in cards
        }

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
        formats: tuple[tuple[MaskFormat, ...], ...] = (("png",), ("rle",), ("png", "rle"))
        schemas = [part_file.schema(*found, heads=own.heads) for found in formats]
        if not any(parquet.schema_arrow.equals(schema) for schema in schemas):
            found = ", ".join(f"{column.name}: {column.type}" for column in parquet.schema_arrow)
            yield self._finding("schema", f"found columns {found}")
            return
        yield from self._rows(card, parquet)

    def _rows(self, card: Part, parquet: pq.ParquetFile) -> Iterator[Finding]:
        own = self.manifest.card
        columns = ["key", "url", "size", "etag"]
        pixels = [part_file.column("class_pixels", head) for head in ("", *own.heads)]
        counted = ["status", "error_class", *pixels, "run_digest"]
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
        if text := _inconsistency(row, list(classes)):
            return Finding(kind="row", place=place, text=text)
        if row["status"] == "failed":
            return None
        found = (
            self._mask(place, row, head, of_head, is_newest) for head, of_head in classes.items()
        )
        return next(filter(None, found), None)

    def _mask(
        self, place: str, row: Mapping[str, Any], head: str, classes: Classes, is_newest: bool
    ) -> Finding | None:
        """What is wrong with the mask of one head, if anything."""
        place = f"{place}, {head}" if head else place
        mask = row.get(part_file.column("mask", head)) or {}
        stored = row.get(part_file.column("mask_rle", head)) or mask.get("bytes")
        path = mask.get("path")
        url = mask_url(self.manifest.output_url, row["key"], head)
        # of an output that was moved, the end of the URL alone is still right
        has_object = path is not None and path.endswith(mask_url("", row["key"], head))
        kind: Kind = "mask"
        try:
            if stored:
                _check_mask(stored, row, head, classes)
            kind = "mask object"
            if has_object and is_newest:
                _check_mask(stores.read_bytes(url), row, head, classes)
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


def _inconsistency(row: Mapping[str, Any], heads: Sequence[str]) -> str:
    """What is wrong with a row, its masks apart; nothing where all is well.

    Args:
        row: Of a part.
        heads: Those that its model has, the first one as "".
    """
    if row["status"] not in _STATUSES:
        return f"status is {row['status']!r}; expected one of {', '.join(_STATUSES)}"
    if row["status"] == "failed":
        if not row["error_class"] or not row["error"]:
            return "failed without a reason"
        names = _columns(("mask", "mask_rle", "class_pixels"), heads)
        given = [name for name in names if row.get(name) is not None]
        return f"failed, but with {', '.join(given)}" if given else ""
    needed = ["height", "width", *_columns(("class_pixels", "confidence"), heads)]
    if empty := [name for name in needed if row[name] is None]:
        return f"{row['status']}, but without {', '.join(empty)}"
    for name in _columns(("confidence",), heads):
        if not 0 <= row[name] <= 1:
            return f"{name} is {row[name]}; expected 0 to 1"
    return ""


def _columns(names: Sequence[str], heads: Sequence[str]) -> list[str]:
    """The columns of these names, of each head."""
    return [part_file.column(name, head) for head in heads for name in names]


def _check_mask(data: bytes, row: Mapping[str, Any], head: str, classes: Classes) -> None:
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
    expected = row[part_file.column("class_pixels", head)]
    if counts.tolist() != expected:
        raise ValueError(f"mask has {counts.tolist()} pixels by class, its row says {expected}")
