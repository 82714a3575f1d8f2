"""Everything about URLs: listing, reading, and writing whole objects, anywhere fsspec opens.

A URL is a plain path (``/data/x``), or anything with a scheme (``s3://bucket/x``,
``memory://x``, ``https://…``). Storage options come from the environment or from fsspec's
configuration files, never from a URL: a URL ends up in logs and tables.

An object is written whole or not at all. ``fsspec.open(url, "wb")`` is not used for this:
an exception inside its ``with`` block commits the bytes written so far.
"""

import contextlib
import io
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from fsspec.core import get_filesystem_class, url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from tasks import durable, listing
from tasks.listing import UNKNOWN_SIZE, Entry
from tasks.store_errors import StoreError, StoreUnavailable, explained, is_transient, what_happened
from tasks.urls import (
    SCHEME,
    absolute,
    is_chain,
    join,
    local_path,
    redact,
    redact_text,
    split_glob,
)

__all__ = [
    "UNKNOWN_SIZE",
    "Entry",
    "StoreError",
    "StoreUnavailable",
    "absolute",
    "create_bytes",
    "create_file",
    "exists",
    "explained",
    "filesystem",
    "is_transient",
    "join",
    "kind_of",
    "list_entries",
    "local_path",
    "modified",
    "open_input",
    "read_bytes",
    "redact",
    "redact_text",
    "remove",
    "replace_file",
    "require_no_credentials",
    "require_writable",
    "split_glob",
    "stat",
    "write_bytes",
]

_BLOCK_SIZE = 1 << 20  # s3fs would read 50 MB ahead


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of ``url`` and the path of ``url`` in it.

    Listing caches are off, so that what others wrote is seen. Call it in the process that
    uses it: fsspec makes a new instance per process, and none survives a fork.

    Raises:
        StoreError: an unknown scheme, or one whose package is not installed.
    """
    path = local_path(url)
    if path is not None:
        return LocalFileSystem(), str(path)
    with explained(url, "open"):
        match = SCHEME.match(url)
        if not match or is_chain(url):
            fs, chained = url_to_fs(url, use_listings_cache=False)
            return fs, str(chained)
        store = get_filesystem_class(match["scheme"])
        options = store._get_kwargs_from_urls(url)
        return store(**options, use_listings_cache=False), str(store._strip_protocol(url))


def exists(url: str) -> bool:
    """Whether there is an object or a folder at ``url``.

    Raises:
        StoreError: no permission to look, or no such store.
    """
    fs, path = filesystem(url)
    with explained(url, "read"):
        try:
            fs.info(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            if is_transient(what_happened(error)):
                raise
            return False
    return True


def read_bytes(url: str) -> bytes:
    """The whole object.

    Raises:
        StoreError: nothing there, a folder, or no permission to read it.
    """
    fs, path = filesystem(url)
    with explained(url, "read"):
        return bytes(fs.cat_file(path))


def write_bytes(url: str, data: bytes) -> None:
    """Write ``data`` whole or not at all, replacing what is there.

    Raises:
        StoreError: no permission, or a store that cannot be written.
    """
    path = local_path(url)
    with explained(url, "write"):
        if path is not None:
            durable.replace(path, io.BytesIO(data))
            return
        fs, remote = filesystem(url)
        fs.pipe_file(remote, data)


def create_bytes(url: str, data: bytes) -> bool:
    """Write ``data`` whole unless something is there: ``True`` when it was written.

    Of several writers the first wins and the others get ``False``; so does the first where
    the store's answer got lost on the way and its client asked again. A store that knows no
    create-if-absent replaces the object, whole.

    Raises:
        StoreError: no permission, or a store that cannot be written.
    """
    path = local_path(url)
    if path is not None:
        return _create(url, lambda: durable.create(path, io.BytesIO(data)))
    fs, remote = filesystem(url)
    return _create(url, lambda: fs.pipe_file(remote, data, mode="create"))


def create_file(url: str, source: Path) -> bool:
    """`create_bytes` of what the local file ``source`` holds, without reading it at once.

    Raises:
        StoreError: no permission, or a store that cannot be written.
    """
    path = local_path(url)
    if path is not None:
        with source.open("rb") as file:
            return _create(url, lambda: durable.create(path, file))
    fs, remote = filesystem(url)
    return _create(url, lambda: fs.put_file(str(source), remote, mode="create"))


def _create(url: str, write: Callable[[], object]) -> bool:
    """Whether ``write`` did it; not where something is there."""
    with explained(url, "write"):
        try:
            write()
        except FileExistsError:
            return False
        except FileNotFoundError:
            # S3 no longer knows the upload of a large object: it may have put it together
            # and its answer got lost
            if not exists(url):
                raise
            return False
        except OSError as error:
            if not _is_refused_condition(error):
                raise
            return False
    return True


def _is_refused_condition(error: OSError) -> bool:
    """Whether S3 says that there is something; s3fs misses it unless the answer has a detail."""
    answer = getattr(error.__cause__, "response", None) or {}
    return bool(answer.get("Error", {}).get("Code") == "PreconditionFailed")


def replace_file(url: str, source: Path) -> None:
    """`write_bytes` of what the local file ``source`` holds, without reading it at once.

    Raises:
        StoreError: no permission, or a store that cannot be written.
    """
    path = local_path(url)
    with explained(url, "write"), source.open("rb") as file:
        if path is not None:
            durable.replace(path, file)
            return
        fs, remote = filesystem(url)
        fs.put_file(str(source), remote)


def open_input(url: str, block_size: int = _BLOCK_SIZE) -> Any:
    """A file object that reads ``url`` and seeks in it, a context manager.

    Args:
        url: What to read.
        block_size: Bytes that are asked for at once, where it is not a local file.

    Raises:
        StoreError: nothing there, a folder, or no permission to read it.
    """
    fs, path = filesystem(url)
    with explained(url, "read"):
        return fs.open(path, "rb", block_size=block_size)


def remove(url: str) -> None:
    """Remove the object at ``url``, if it is there.

    Raises:
        StoreError: no permission, or a store that cannot be written.
    """
    fs, path = filesystem(url)
    with explained(url, "remove"), contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def require_no_credentials(*urls: str) -> None:
    """Refuse URLs that are going to be written down, and hold what must not be.

    Raises:
        StoreError: a user name, a password or a query string in one of them.
    """
    for url in urls:
        if redact(url) != url:
            raise StoreError(
                f"{redact(url)} was given with a user name, password or query string, which "
                "would end up in rows, reports and summaries; give credentials through the "
                "environment or fsspec's configuration"
            )


def require_writable(url: str) -> None:
    """Prove that objects can be made below ``url``, by making one and removing it.

    A folder that is not there stays so: what is refused later leaves nothing behind.

    Raises:
        StoreError: they cannot, and why.
    """
    probe = join(url, f"_writable-{uuid.uuid4().hex}")
    path = local_path(probe)
    if path is not None:
        with explained(probe, "write"):
            durable.require_writable(path.parent)
        return
    create_bytes(probe, b"")
    remove(probe)


def list_entries(url: str) -> Iterator[Entry]:
    """Every object below a prefix, or of a glob, sorted by key and streamed.

    ``url`` is a prefix (``s3://bucket/photos``), one object, or a prefix followed by a glob
    (``s3://bucket/photos/**/left_*.jpg``; ``**`` stands for any number of folders). A prefix
    whose name holds ``*``, ``?`` or ``[`` is taken by its name when it exists. Keys are
    relative to the prefix, of a glob to the folders before its first wildcard.

    Raises:
        StoreError: nothing at this URL, no permission to list it; also while iterating.
    """
    kind = kind_of(url)
    if kind == "glob":
        prefix, pattern = split_glob(url)
        matches = re.compile(glob_translate(pattern)).match
        return (entry for entry in list_entries(f"{prefix}/") if matches(entry.key))
    fs, path = filesystem(url)
    with explained(url, "list"):
        if kind == "object":
            return iter([listing.single(fs, path, url)])
        return _explained_entries(listing.walk(fs, path, url.rstrip("/")), url)


def stat(url: str) -> Entry:
    """The one object at ``url``, its key being the last part of its name.

    Raises:
        StoreError: nothing there, or no permission to look.
    """
    fs, path = filesystem(url)
    with explained(url, "read"):
        return listing.single(fs, path, url)


def modified(url: str) -> datetime:
    """When the object at ``url`` was last written, by its store's clock, in UTC.

    Raises:
        StoreError: nothing there, no permission to look, or a store that does not tell.
    """
    fs, path = filesystem(url)
    with explained(url, "read the time of"):
        found: datetime = fs.modified(path)
        return found.astimezone(UTC)


def kind_of(url: str) -> Literal["prefix", "object", "glob"]:
    """What `list_entries` takes ``url`` for.

    Raises:
        StoreError: nothing at this URL, or no permission to look.
    """
    if url.endswith("/"):
        return "prefix"
    fs, path = filesystem(url)
    with explained(url, "list"):
        try:
            return "prefix" if fs.info(path)["type"] == "directory" else "object"
        except FileNotFoundError as error:
            if not split_glob(url)[1] or is_transient(what_happened(error)):
                raise
    return "glob"


def _explained_entries(entries: Iterator[Entry], url: str) -> Iterator[Entry]:
    with explained(url, "list"):
        yield from entries
