"""Bytes of many objects at once: what could be read, and for the rest the reason."""

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tasks import stores
from tasks.stores import UNKNOWN_SIZE, Entry

MAX_BYTES = 512 << 20
ATTEMPTS = 4
FIRST_DELAY = 0.5
"""Seconds before the second attempt; doubled each time, times a random 0.5..1.5."""


class ReadError(Exception):
    """An object whose bytes could not be had; another run tries again, unless it is too large."""


class ObjectTooLarge(ReadError):
    """An object of more bytes than allowed."""


class ObjectVanished(ReadError):
    """An object that was listed and is gone."""


class ObjectChanged(ReadError):
    """An object of another size than was listed."""


class ReadFailed(ReadError):
    """An object that its store would not give."""


READ_ERRORS = tuple(error.__name__ for error in (ObjectVanished, ObjectChanged, ReadFailed))


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
    the objects: then the store's own error is raised, for the shard to be tried again later.
    At the last attempt the store is asked for something else; if it answers, though it be
    that there is no such thing, it is the objects after all.

    Args:
        entries: What to read, all in one store, with the sizes they were listed with.
        concurrency: Objects in flight at once.
        last_attempt: Whether the shard will not be tried again.
        max_bytes: Larger objects are not read; of one of unknown size, a byte more than that.

    Raises:
        OSError: or an error of the store's client: the store is out.
    """
    small = [entry for entry in entries if entry.size <= max_bytes]
    read = iter(_read_small(small, concurrency, last_attempt, max_bytes))
    return [
        next(read) if entry.size <= max_bytes else _too_large(f"{entry.size:,}", max_bytes)
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
        raise found[0]  # type: ignore[misc]
    return [_checked(entry, data, max_bytes) for entry, data in zip(entries, found, strict=True)]


def _may_be_cured(data: bytes | BaseException) -> bool:
    return isinstance(data, BaseException) and stores.is_transient(data)


def _store_answers(entry: Entry) -> bool:
    """Whether the store says anything about a neighbour of an object that it would not give."""
    url = f"{entry.url.rpartition('/')[0]}/fcn-is-the-store-there"
    [answer] = _read_once([Entry(key="", url=url, size=1, etag="")], 1, max_bytes=1)
    return not _may_be_cured(answer)


def _read_once(
    entries: Sequence[Entry], concurrency: int, max_bytes: int
) -> list[bytes | BaseException]:
    """One attempt at each object."""
    if not entries:
        return []
    fs, _ = stores.filesystem(entries[0].url)
    paths = [stores.filesystem(entry.url)[1] for entry in entries]
    # A range saves s3fs a HEAD; a byte more than was listed shows that an object grew. Of
    # nothing there is no range.
    sizes = [max_bytes if entry.size == UNKNOWN_SIZE else entry.size for entry in entries]
    ends = [size + 1 if size > 0 else None for size in sizes]
    starts = [None if end is None else 0 for end in ends]
    if fs.async_impl:
        return list(fs.cat_ranges(paths, starts, ends, batch_size=concurrency, on_error="return"))
    with ThreadPoolExecutor(concurrency) as threads:
        return list(threads.map(lambda *place: _read_one(fs, *place), paths, starts, ends))


def _read_one(fs: Any, path: str, start: int | None, end: int | None) -> bytes | BaseException:
    try:
        return bytes(fs.cat_file(path, start, end))
    except Exception as error:  # noqa: BLE001 - becomes the reason in the image's row
        return error


def _too_large(found: str, max_bytes: int) -> ObjectTooLarge:
    return ObjectTooLarge(f"{found} bytes; at most {max_bytes:,} are read: raise max_image_bytes")


def _checked(entry: Entry, data: bytes | BaseException, max_bytes: int) -> bytes | ReadError:
    if isinstance(data, FileNotFoundError):
        return ObjectVanished("gone since it was listed")
    if isinstance(data, BaseException):
        return ReadFailed(f"{type(data).__name__}: {data}")
    if entry.size == UNKNOWN_SIZE and len(data) > max_bytes:
        return _too_large(f"more than {max_bytes:,}", max_bytes)
    if entry.size not in (UNKNOWN_SIZE, len(data)):
        more = "more than " if len(data) > entry.size else ""
        size = min(len(data), entry.size) if more else len(data)
        return ObjectChanged(
            f"{more}{size:,} bytes where {entry.size:,} were listed: changed since"
        )
    return data
