"""Bytes of many images at once: what could be read, and for the rest the reason.

An image is an object of its own, or inside a container: a tar file (`tasks.tar_files`) or a
Parquet file (`tasks.parquet_images`).
"""

import random
import time
from collections.abc import Sequence
from typing import Any

from tasks import listing, parquet_images, stores, tar_files
from tasks.ranges import read_ranges
from tasks.read_errors import (
    READ_ERRORS,
    ObjectChanged,
    ObjectTooLarge,
    ObjectVanished,
    ReadError,
    ReadFailed,
    too_large,
)
from tasks.stores import UNKNOWN_SIZE, Entry

__all__ = [
    "ATTEMPTS",
    "FIRST_DELAY",
    "MAX_BYTES",
    "READ_ERRORS",
    "ObjectChanged",
    "ObjectTooLarge",
    "ObjectVanished",
    "ReadError",
    "ReadFailed",
    "read_objects",
]

MAX_BYTES = 512 << 20
ATTEMPTS = 4
FIRST_DELAY = 0.5
"""Seconds before the second attempt; doubled each time, times a random 0.5..1.5."""


def read_objects(
    entries: Sequence[Entry],
    *,
    concurrency: int = 32,
    last_attempt: bool = False,
    max_bytes: int = MAX_BYTES,
) -> list[bytes | ReadError]:
    """The bytes of each object, or why they could not be had, in the same order.

    What may be cured by trying again is tried `ATTEMPTS` times, with growing pauses. When
    nothing at all could be read for such a reason, it seems to be the store that is out, not
    the objects: then that is raised, for the shard to be tried again later.
    At the last attempt the store is asked for something else; if it answers, though it be
    that there is no such thing, it is the objects after all.

    Args:
        entries: What to read, with the sizes they were listed with.
        concurrency: Objects in flight at once.
        last_attempt: Whether the shard will not be tried again.
        max_bytes: Larger objects are not read; of one of unknown size, a byte more than that.

    Raises:
        StoreUnavailable: the store is out.
    """
    small = [entry for entry in entries if entry.size <= max_bytes]
    read = iter(_read_small(small, concurrency, last_attempt, max_bytes))
    return [
        next(read) if entry.size <= max_bytes else too_large(f"{entry.size:,}", max_bytes)
        for entry in entries
    ]


def _read_small(
    entries: Sequence[Entry], concurrency: int, last_attempt: bool, max_bytes: int
) -> list[bytes | ReadError]:
    """`read_objects` of those that are not too large by the sizes they were listed with."""
    found = _read_once(entries, concurrency, max_bytes)
    for attempt in range(ATTEMPTS - 1):
        again = [index for index, data in enumerate(found) if _may_be_cured(data)]
        if not again:
            break
        time.sleep(FIRST_DELAY * 2**attempt * random.uniform(0.5, 1.5))  # noqa: S311
        once_more = _read_once([entries[index] for index in again], concurrency, max_bytes)
        for index, data in zip(again, once_more, strict=True):
            found[index] = data
    is_out = bool(found) and all(_may_be_cured(data) for data in found)
    if is_out and not (last_attempt and _store_answers(entries[0])):
        with stores.explained(entries[0].url, "read"):
            raise found[0]  # type: ignore[misc]
    return [_checked(entry, data, max_bytes) for entry, data in zip(entries, found, strict=True)]


def _may_be_cured(data: bytes | BaseException) -> bool:
    return isinstance(data, BaseException) and stores.is_transient(data)


def _store_answers(entry: Entry) -> bool:
    """Whether the store says anything about a neighbour of an object that it would not give."""
    place = entry.container or entry.url
    url = f"{place.rpartition('/')[0]}/fcn-is-the-store-there"
    [answer] = _read_once([Entry(key="", url=url, size=1, etag="")], 1, max_bytes=1)
    return not _may_be_cured(answer)


def _read_once(
    entries: Sequence[Entry], concurrency: int, max_bytes: int
) -> list[bytes | BaseException]:
    """One attempt at each object: all of a store together, all of a container together."""
    found: list[bytes | BaseException] = [b""] * len(entries)
    by_store: dict[Any, dict[int, str]] = {}
    by_container: dict[tuple[str, str | None], list[int]] = {}
    for index, entry in enumerate(entries):
        if entry.container is not None:
            by_container.setdefault((entry.container, entry.column), []).append(index)
        else:
            fs, path = stores.filesystem(entry.url)
            by_store.setdefault(fs, {})[index] = path
    for fs, paths in by_store.items():
        group = [entries[index] for index in paths]
        read = _read_own_objects(fs, list(paths.values()), group, concurrency, max_bytes)
        for index, data in zip(paths, read, strict=True):
            found[index] = data
    for (url, _), indices in by_container.items():
        group = [entries[index] for index in indices]
        inside = _read_container(url, group, concurrency, max_bytes)
        for index, data in zip(indices, inside, strict=True):
            found[index] = data
    return found


def _read_own_objects(
    fs: Any, paths: Sequence[str], entries: Sequence[Entry], concurrency: int, max_bytes: int
) -> list[bytes | BaseException]:
    """One attempt at objects of one store."""
    # A range saves s3fs a HEAD; a byte more than was listed shows that an object grew. Of
    # nothing there is no range.
    sizes = [max_bytes if entry.size == UNKNOWN_SIZE else entry.size for entry in entries]
    ends = [size + 1 if size > 0 else None for size in sizes]
    starts = [None if end is None else 0 for end in ends]
    return read_ranges(fs, paths, starts, ends, concurrency)


def _read_container(
    url: str, entries: Sequence[Entry], concurrency: int, max_bytes: int
) -> Sequence[bytes | BaseException]:
    """One attempt at images in one tar or Parquet file, if it is still what was listed."""
    try:
        fs, path = stores.filesystem(url)
        etag = listing.single(fs, path, url).etag
        if entries[0].etag and etag != entries[0].etag:
            return [ObjectChanged(f"{stores.redact(url)} changed since it was listed")] * len(
                entries
            )
        if url.lower().endswith(".parquet"):
            return parquet_images.read_rows(url, entries, max_bytes)
        return tar_files.read_members(fs, path, entries, concurrency)
    except Exception as error:  # noqa: BLE001 - becomes the reason in each image's row
        return [error] * len(entries)


def _checked(entry: Entry, data: bytes | BaseException, max_bytes: int) -> bytes | ReadError:
    if isinstance(data, ReadError):
        return data
    if isinstance(data, FileNotFoundError):
        return ObjectVanished("nothing there: gone since it was listed, or listed in vain")
    if isinstance(data, BaseException):
        # the URL in a client's error may be that of a redirect, signed
        return ReadFailed(f"{type(data).__name__}: {stores.redact_text(str(data))}")
    if entry.size == UNKNOWN_SIZE and len(data) > max_bytes:
        return too_large(f"more than {max_bytes:,}", max_bytes)
    if entry.size not in (UNKNOWN_SIZE, len(data)):
        more = "more than " if len(data) > entry.size else ""
        size = min(len(data), entry.size) if more else len(data)
        return ObjectChanged(
            f"{more}{size:,} bytes where {entry.size:,} were listed: changed since"
        )
    return data
