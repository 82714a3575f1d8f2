"""Many byte ranges of one store at once."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tasks import s3_ranges


def read_ranges(
    fs: Any,
    paths: Sequence[str],
    starts: Sequence[int | None],
    ends: Sequence[int | None],
    concurrency: int,
) -> list[bytes | BaseException]:
    """One attempt at each range, ``None`` and ``None`` being the whole object, in order.

    Args:
        fs: An fsspec file system.
        paths: Objects in it.
        starts: First byte of each range.
        ends: The byte after the last one; an object that is shorter gives what it has.
        concurrency: Requests in flight at once.

    Returns:
        The bytes, or what the store said instead.
    """
    found = s3_ranges.read_ranges(fs, paths, starts, ends, concurrency)
    left = [index for index, data in enumerate(found) if data is None]
    read = iter(
        _read_ranges(
            fs,
            [paths[index] for index in left],
            [starts[index] for index in left],
            [ends[index] for index in left],
            concurrency,
        )
    )
    return [next(read) if data is None else data for data in found]


def _read_ranges(
    fs: Any,
    paths: Sequence[str],
    starts: Sequence[int | None],
    ends: Sequence[int | None],
    concurrency: int,
) -> list[bytes | BaseException]:
    """`read_ranges` by the file system itself."""
    if not paths:
        return []
    if fs.async_impl:
        return list(
            fs.cat_ranges(
                list(paths), list(starts), list(ends), batch_size=concurrency, on_error="return"
            )
        )
    with ThreadPoolExecutor(concurrency) as threads:
        return list(threads.map(lambda *place: _read_one(fs, *place), paths, starts, ends))


def _read_one(fs: Any, path: str, start: int | None, end: int | None) -> bytes | BaseException:
    try:
        return bytes(fs.cat_file(path, start, end))
    except Exception as error:  # noqa: BLE001 - becomes the reason in the image's row
        return error
