"""What lies below a prefix of a store, sorted by key and streamed.

Sorted means by code point of the whole key, which is also the order in which S3 lists.
Memory holds one page (S3) or one directory (everything else), never the whole listing.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fsspec.implementations.local import LocalFileSystem

UNKNOWN_SIZE = -1
"""Size of an object whose store does not tell it, such as a web server without lengths."""

_VERSION_FIELDS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "LastModified",
    "last_modified",
    "updated",
    "mtime",
    "created",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One object of a store, or one image inside a container.

    Attributes:
        key: path below the listed prefix, with ``/`` between its parts.
        url: where it is.
        size: in bytes; `UNKNOWN_SIZE` where the store does not tell, and in a Parquet file.
        etag: the store's own version of the content, or the modification time where it keeps
            none; inside a container, that of the container.
        container: URL of the tar or Parquet file that holds the image; ``None`` for an object
            of its own.
        offset: first byte in a tar; number of the row in a Parquet file.
        length: bytes to be read for it: exact in a tar, in a Parquet file the mean of its row
            group.
        bands: the files of its bands, as `tasks.bands` writes them; ``None`` where none were
            looked for.
        column: of a Parquet file, where it is another one than that of images.
    """

    key: str
    url: str
    size: int
    etag: str
    container: str | None = None
    offset: int | None = None
    length: int | None = None
    bands: str | None = None
    column: str | None = None

    @property
    def expected_bytes(self) -> int:
        """Bytes that reading it brings into memory, about, where that is known."""
        if self.size != UNKNOWN_SIZE:
            return self.size
        return 1 << 20 if self.length is None else self.length


def walk(fs: Any, path: str, url: str) -> Iterator[Entry]:
    """Every object below ``path`` of the file system ``fs``; ``url`` is the same place as a URL."""
    if isinstance(fs, LocalFileSystem):
        return _walk_local(path, "", url, ancestors=())
    if "s3" in _protocols(fs):
        return _walk_s3(fs, path, url)
    return _walk_store(fs, path, "", url)


def single(fs: Any, path: str, url: str) -> Entry:
    """The one object at ``path``, its key being the last part of its name."""
    if isinstance(fs, LocalFileSystem):
        return _local_entry(path, path.rpartition("/")[2], url)
    return _store_entry(fs.info(path), path.rpartition("/")[2], url)


def _walk_local(folder: str, prefix: str, url: str, ancestors: tuple[str, ...]) -> Iterator[Entry]:
    """Depth first; a folder sorts as its name plus ``/``, as it does within whole keys.

    Links are followed, except into a folder that is being walked already.
    """
    real = os.path.realpath(folder)
    if real in ancestors:
        return
    with os.scandir(folder) as found:
        names = sorted(f"{item.name}/" if item.is_dir() else item.name for item in found)
    for name in names:
        path = f"{folder.rstrip('/')}/{name}"
        if name.endswith("/"):
            yield from _walk_local(path, prefix + name, url, (*ancestors, real))
        elif os.path.isfile(path) or os.path.islink(path):  # noqa: PTH113, PTH114 - per image
            try:
                entry = _local_entry(path, prefix + name, f"{url}/{prefix}{name}")
            except FileNotFoundError:  # gone since its folder was read
                continue
            yield entry


def _local_entry(path: str, key: str, url: str) -> Entry:
    try:
        found = os.stat(path)  # noqa: PTH116 - per image
    except FileNotFoundError:  # a link to nothing: it is listed, and reading it says why
        found = os.lstat(path)
    return Entry(key=key, url=url, size=found.st_size, etag=str(found.st_mtime_ns))


def _walk_s3(fs: Any, path: str, url: str) -> Iterator[Entry]:
    """A page of 1,000 keys a request, whatever the depth of the keys."""
    from tasks import s3_pages  # noqa: PLC0415 - it needs the extra `s3`

    bucket, _, prefix = path.partition("/")
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    for page in s3_pages.pages(fs, bucket, prefix):
        for found in page:
            key = found["Key"].removeprefix(prefix)
            if key and not key.endswith("/"):
                yield _store_entry(found, key, f"{url}/{key}")


def _walk_store(fs: Any, folder: str, prefix: str, url: str) -> Iterator[Entry]:
    found = {}
    for item in fs.ls(folder, detail=True):
        name = item["name"].rstrip("/").rpartition("/")[2]
        if item["name"].rstrip("/") != folder.rstrip("/"):
            found[f"{name}/" if item["type"] == "directory" else name] = item
    for name, item in sorted(found.items()):
        if name.endswith("/"):
            yield from _walk_store(fs, item["name"], prefix + name, url)
        else:
            yield _store_entry(item, prefix + name, f"{url}/{prefix}{name}")


def _store_entry(info: dict[str, Any], key: str, url: str) -> Entry:
    size = info.get("size", info.get("Size"))
    version = next((info[field] for field in _VERSION_FIELDS if info.get(field)), "")
    return Entry(
        key=key,
        url=url,
        size=UNKNOWN_SIZE if size is None else int(size),
        etag=str(version).strip('"'),
    )


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
