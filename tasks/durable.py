"""Local files that exist whole or not at all, also after a power cut."""

import contextlib
import errno
import io
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS}


def replace(path: Path, source: BinaryIO) -> None:
    """Write ``source`` to ``path``, in place of what is there."""
    with _written_beside(path, source) as temporary:
        temporary.replace(path)


def create(path: Path, source: BinaryIO) -> None:
    """Write ``source`` to ``path``, of several writers the first.

    Raises:
        FileExistsError: the name is taken.
    """
    with _written_beside(path, source) as temporary:
        try:
            path.hardlink_to(temporary)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if path.exists():  # a file system without links: the rename replaces, whole
                raise FileExistsError(path) from error
            temporary.rename(path)


def require_writable(folder: Path) -> None:
    """Write and remove a file in a folder, or in the nearest one above it that is there."""
    there = next(one for one in (folder, *folder.parents) if one.exists())
    if there != folder and not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), there)
    with _written_beside(there / "probe", io.BytesIO()):
        pass


@contextlib.contextmanager
def _written_beside(path: Path, source: BinaryIO) -> Iterator[Path]:
    """A temporary file beside ``path`` that holds ``source`` on disk; gone afterwards."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # not the name that is asked for: a file above it
        raise NotADirectoryError(errno.ENOTDIR, "a file lies in the way", path.parent) from error
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"  # short: a name has 255 bytes
    try:
        with temporary.open("xb") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        _sync_folder(path.parent)  # the new name is on disk, too
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
