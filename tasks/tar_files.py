"""Images inside tar files, such as the shards of a WebDataset, read by ranges of bytes.

The key of a member is ``TAR/MEMBER``: the key of the tar file, and the member's name in it,
without ``./`` or ``/`` at its start and with ``%2E%2E`` for a part that is ``..``, so that
no key leads out of its place. Regular files count; links, folders and devices do not.
Headers are walked in steps of `_BLOCK_SIZE`, so that what lies between them is skipped
where it is larger.
"""

import bisect
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

from fsspec.utils import merge_offset_ranges

from tasks import stores
from tasks.ranges import read_ranges
from tasks.stores import Entry, StoreError

COMPRESSED_ENDINGS = (
    *(".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst"),
    *(".tar.lz4", ".tar.z"),
)

MAX_HEADER_BYTES = 1 << 20
"""Bytes of a header with a long name or attributes, above which it is not believed."""

GAP_BYTES = 128 << 10
"""Bytes between two members that are read rather than asked for past them."""

BLOCK_BYTES = 8 << 20
"""Bytes of neighbouring members that are read together."""

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def members(tar: Entry) -> Iterator[Entry]:
    """The regular files in a tar file, in its order; memory holds one header.

    Raises:
        StoreError: a compressed tar, something else than a tar, or a damaged one.
    """
    place = stores.redact(tar.url)
    if tar.url.lower().endswith(COMPRESSED_ENDINGS):
        raise _compressed(place, tar.url.rpartition(".")[2])
    with stores.open_input(tar.url) as file:
        start = file.read(8)
        if kind := next((_MAGIC[magic] for magic in _MAGIC if start.startswith(magic)), None):
            raise _compressed(place, kind)
        file.seek(0)
        try:
            with tarfile.open(fileobj=_Headers(file), mode="r:") as archive:  # type: ignore[call-overload]
                for found in _walk(archive):
                    yield _entry(tar, found)
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise StoreError(
                f"{place} is no tar file, or a damaged one: {error}; mend it, or leave it out "
                "with an exclude pattern"
            ) from error


def _walk(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while found := archive.next():
        archive.members.clear()  # type: ignore[attr-defined]  # it keeps all that it has seen
        if found.sparse is not None:
            raise tarfile.ReadError(f"{found.name} is a sparse file, which is not supported")
        if found.isreg() and not member_key(found.name):
            raise tarfile.ReadError(f"a file without a name before byte {archive.offset:,}")
        if found.isreg():
            yield found
    # tarfile takes a damaged header for the end
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"no header at byte {archive.offset:,}, where one is due")


def _entry(tar: Entry, found: tarfile.TarInfo) -> Entry:
    return Entry(
        key=f"{tar.key}/{member_key(found.name)}",
        url=f"tar://{found.name}::{tar.url}",
        size=found.size,
        etag=tar.etag,
        container=tar.url,
        offset=found.offset_data,
        length=found.size,
    )


def member_key(name: str) -> str:
    """The part of a key that stands for a member of this name."""
    names = [part for part in name.split("/") if part not in {"", "."}]
    return "/".join("%2E%2E" if part == ".." else part for part in names)


def read_members(
    fs: Any, path: str, entries: Sequence[Entry], concurrency: int
) -> list[bytes | BaseException]:
    """The bytes of members of one tar file; neighbours are read together.

    Args:
        fs: The file system of the tar file.
        path: The tar file in it.
        entries: Members, as `members` gives them.
        concurrency: Requests in flight at once.
    """
    places = [(entry.offset or 0, (entry.offset or 0) + entry.size) for entry in entries]
    wanted = [(start, end) for start, end in places if end > start]
    paths, starts, ends = merge_offset_ranges(
        [path] * len(wanted),
        [start for start, _ in wanted],
        [end for _, end in wanted],
        max_gap=GAP_BYTES,
        max_block=BLOCK_BYTES,
    )
    blocks = read_ranges(fs, paths, starts, ends, concurrency)
    found: list[bytes | BaseException] = []
    for start, end in places:
        number = bisect.bisect_right(starts, start) - 1
        if start == end:
            found.append(b"")
        elif isinstance(block := blocks[number], BaseException):
            found.append(block)
        else:
            found.append(block[start - starts[number] : end - starts[number]])
    return found


class _Headers:
    """A file of which no more is read at once than a header may have."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes at byte {self.tell():,}")
        return bytes(self._file.read(size))


def _compressed(place: str, kind: str) -> StoreError:
    return StoreError(
        f"{place} is a compressed tar ({kind}), of which no single image can be read; "
        "decompress it (JPEGs gain nothing from it), or leave it out with an exclude pattern"
    )
