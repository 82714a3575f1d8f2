"""Parts: what a run has written, one Parquet file per shard, one row per image.

::

    parts/run=00000/part-00042.parquet      the rows of shard 42, in manifest order
    _index.json                             what there is; written last

A part is made in memory and put as one object under a name fixed by the manifest, unless
the name is taken: it exists whole or not at all, and the first writer wins. Nothing else
says that a shard is done.
"""

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.fs import FSSpecHandler, PyFileSystem

from fcn.classes import Classes
from tasks import stores
from tasks.part_file import Part, column, read_card
from tasks.reading import READ_ERRORS
from tasks.stores import StoreError

INDEX_NAME = "_index.json"
INDEX_FORMAT = 1

_PART = re.compile(r"run=(\d{5,})/part-(\d{5,})\.parquet")
_READERS = 16


def part_name(run: int, number: int) -> str:
    """Where the part of a shard is, below the output."""
    return f"parts/run={run:05d}/part-{number:05d}.parquet"


def part_url(output_url: str, run: int, number: int) -> str:
    """Where the part of a shard is."""
    return stores.join(output_url, part_name(run, number))


def place_of(key: str) -> tuple[int, int] | None:
    """Run and number of the part with this name below ``parts/``; ``None`` for other names."""
    match = _PART.fullmatch(key)
    return (int(match[1]), int(match[2])) if match else None


def listed(output_url: str) -> dict[int, list[int]]:
    """Numbers of the parts there are, by run, in order: one listing.

    Raises:
        StoreError: the output cannot be listed.
    """
    found: dict[int, list[int]] = {}
    folder = stores.join(output_url, "parts")
    if stores.exists(folder):
        for entry in stores.list_entries(folder):
            if place := place_of(entry.key):
                found.setdefault(place[0], []).append(place[1])
    return {run: sorted(numbers) for run, numbers in sorted(found.items())}


def numbers(output_url: str, run: int) -> list[int]:
    """Numbers of the parts there are of one run, in order: one listing.

    Raises:
        StoreError: the output cannot be listed.
    """
    folder = stores.join(output_url, f"parts/run={run:05d}")
    if not stores.exists(folder):
        return []
    places = (place_of(f"run={run:05d}/{entry.key}") for entry in stores.list_entries(folder))
    return [place[1] for place in places if place]


def committed(output_url: str) -> list[Part]:
    """The card of every part there is, from the index where it has it, else from its footer.

    Raises:
        StoreError: the output cannot be listed, or a part is none of ours.
    """
    known = {(part.run, part.number): part for part in _indexed(output_url)}
    there = [(run, number) for run, numbers in listed(output_url).items() for number in numbers]
    with ThreadPoolExecutor(_READERS) as threads:
        return list(threads.map(lambda at: known.get(at) or _card(output_url, *at), there))


def write_index(
    output_url: str, classes: Classes, further_classes: Mapping[str, Classes] | None = None
) -> list[Part]:
    """Write ``_index.json`` off the parts there are, and return their cards.

    Args:
        output_url: Where predict wrote.
        classes: Of the newest run's masks.
        further_classes: Of the masks of further heads, by name.

    Raises:
        StoreError: the output cannot be listed or written.
    """
    parts = committed(output_url)
    content = index_of(parts, classes, further_classes)
    data = json.dumps(content, ensure_ascii=False, indent=1).encode()
    stores.write_bytes(stores.join(output_url, INDEX_NAME), data)
    return parts


def index_of(
    parts: Sequence[Part], classes: Classes, further_classes: Mapping[str, Classes] | None = None
) -> dict[str, Any]:
    """What ``_index.json`` holds when these are the parts there are."""
    further = {name: further.to_json() for name, further in (further_classes or {}).items()}
    return {
        "format": INDEX_FORMAT,
        "run": parts[-1].run if parts else None,
        "run_digest": parts[-1].run_digest if parts else None,
        "rows": sum(part.rows for part in parts),
        "counts": {
            status: sum(getattr(part, status) for part in parts)
            for status in ("ok", "partial", "failed")
        },
        "classes": classes.to_json(),
        "palette": [list(colour) for colour in classes.palette],
        "ignore_index": classes.ignore_index,
        **({"further_classes": further} if further else {}),
        "parts": [
            {"path": part_name(part.run, part.number), **part.model_dump(mode="json")}
            for part in parts
        ],
    }


def is_indexed(output_url: str) -> bool:
    """Whether the index names every part there is."""
    there = {(run, number) for run, numbers in listed(output_url).items() for number in numbers}
    return there == {(part.run, part.number) for part in _indexed(output_url)}


def read(output_url: str) -> ds.Dataset:
    """The newest committed row of every key, read lazily: a part's columns, and ``run``.

    A plain reader of ``parts/**/*.parquet`` sees the rows of all runs; this one leaves out
    those that a newer run has done again. Where there are several runs, memory holds the
    keys of all of them.

    Raises:
        StoreError: there are no parts, or they cannot be read.
    """
    there = listed(output_url)
    if not there:
        raise StoreError(f"no parts at {stores.redact(output_url)}: no output of predict")
    newer: set[str] = set()
    places: list[tuple[int, str]] = []
    current: pc.Expression = pc.scalar(True)
    for run in sorted(there, reverse=True):
        urls = [part_url(output_url, run, number) for number in there[run]]
        keys = _keys(urls) if len(there) > 1 else [set() for _ in urls]
        if replaced := newer.intersection(*[set().union(*keys)]):
            # a part whose rows were all done again is not even opened
            urls = [url for url, part in zip(urls, keys, strict=True) if not part <= newer]
            old = pc.field("key").isin(pa.array(sorted(replaced), pa.string()))
            current &= ~((pc.field("run") == run) & old)
        places += [(run, url) for url in urls]
        newer.update(*keys)
    return _dataset(sorted(places)).filter(current)


def stored_mask(row: Mapping[str, Any], head: str = "") -> bytes:
    """The encoded mask of a row of a part, from the row or from the object that it names.

    Args:
        row: With its mask columns.
        head: Name of a further head; empty for the first.

    Raises:
        StoreError: the object cannot be read.
    """
    mask = row.get(column("mask", head)) or {}
    stored = row.get(column("mask_rle", head)) or mask.get("bytes")
    return stored or stores.read_bytes(mask["path"])


def failures(output_url: str, run: int, limit: int) -> list[dict[str, Any]]:
    """The first failed rows of a run: key, error_class, error."""
    places = [
        (run, part_url(output_url, run, part.number))
        for part in committed(output_url)
        if part.run == run and part.failed
    ]
    if not places:
        return []
    failed = _dataset(places).filter(pc.field("status") == "failed")
    return failed.head(limit, columns=["key", "error_class", "error"]).to_pylist()


def other_digests(output_url: str, part: Part) -> dict[str, str]:
    """Run digest, by key, of the rows of a part that have not the part's own.

    Inherited rows have that of their run; those whose bytes could not be had count as done by
    no run at all and have an empty one.
    """
    if not part.unread + part.inherited:
        return {}
    with stores.open_input(part_url(output_url, part.run, part.number)) as file:
        table = pq.read_table(file, columns=["key", "error_class", "run_digest"])
    unread = pc.is_in(table["error_class"], pa.array(READ_ERRORS))
    digests = pc.if_else(unread, "", table["run_digest"]).to_pylist()
    by_key = zip(table["key"].to_pylist(), digests, strict=True)
    return {str(key): str(digest) for key, digest in by_key if digest != part.run_digest}


def _dataset(places: Sequence[tuple[int, str]]) -> ds.Dataset:
    """The rows of parts, each given as its run and URL."""
    columns: dict[str, pa.Field[Any]] = {}
    for url in dict(places).values():  # one of each run: their mask columns may differ
        with stores.open_input(url) as file:
            columns |= {column.name: column for column in pq.read_schema(file)}
    fs, _ = stores.filesystem(places[0][1])
    return ds.FileSystemDataset.from_paths(
        [stores.filesystem(url)[1] for _, url in places],
        schema=pa.schema([*columns.values(), pa.field("run", pa.int32())]),
        format=ds.ParquetFileFormat(),
        filesystem=PyFileSystem(FSSpecHandler(fs)),  # type: ignore[abstract]
        partitions=[pc.field("run") == run for run, _ in places],
    )


def _keys(urls: Sequence[str]) -> list[set[str]]:
    """The keys of each part."""

    def keys(url: str) -> set[str]:
        with stores.open_input(url) as file:
            return _texts(pq.read_table(file, columns=["key"])["key"])

    with ThreadPoolExecutor(_READERS) as threads:
        return list(threads.map(keys, urls))


def _texts(column: "pa.ChunkedArray[Any]") -> set[str]:
    return {str(value) for value in column.to_pylist()}


def _indexed(output_url: str) -> list[Part]:
    """What the index says; nothing where there is none."""
    url = stores.join(output_url, INDEX_NAME)
    if not stores.exists(url):
        return []
    try:
        rows = json.loads(stores.read_bytes(url))["parts"]
        names = [name for name in Part.model_fields if name != "further_class_pixels"]
        further = [row.get("further_class_pixels", {}) for row in rows]
        return [
            Part(**{name: row[name] for name in names}, further_class_pixels=pixels)
            for row, pixels in zip(rows, further, strict=True)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{stores.redact(url)} is no index of ours ({error!r}); remove it to have it "
            "written anew"
        ) from error


def _card(output_url: str, run: int, number: int) -> Part:
    url = part_url(output_url, run, number)
    with stores.open_input(url) as file:
        try:
            return read_card(file)
        except (ValueError, TypeError) as error:
            raise StoreError(f"{stores.redact(url)} is no part of ours: {error}") from error
