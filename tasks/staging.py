"""Writing a dataset: first to local files, then to its URL when everything is well.

Rows are staged as Parquet files in a local folder, so that a source is read once and
nothing stands at the ``dataset_url`` before its audit is done. Publishing puts the files
there and ``dataset.json`` last; until then a file ``.incomplete`` stands beside them.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np

from fcn.bands import Band
from fcn.classes import Classes
from tasks import stores
from tasks.band_audit import make_band
from tasks.dataset import (
    INFO_NAME,
    DatasetError,
    DatasetInfo,
    Finding,
    Split,
    read_info,
)
from tasks.split_writer import Row, SplitWriter

__all__ = ["MAX_FILE_BYTES", "Row", "Staging", "require_free"]

MAX_FILE_BYTES = 256 * 1024 * 1024
"""Size at which a Parquet file ends: a convenient object, and minutes of one reader."""

_INCOMPLETE = ".incomplete"
_DATA_FILE = re.compile(r"[^/]+-\d{5}-of-\d{5}\.parquet")


class Staging:
    """A dataset in the making, in a temporary folder of its own, which ends with the context.

    ::

        with Staging(classes) as staging:
            staging.add("train", row)                # any split, in any order
            staging.publish(dataset_url, source="…")

    The folder lies where ``TMPDIR`` says and needs as much room as the dataset.

    Args:
        classes: Of the labels; of several heads, of the first one's.
        max_file_bytes: Size at which a Parquet file ends.
        further_classes: Of the labels of further heads, by name.
        bands: Names of the bands that every row has.
    """

    def __init__(
        self,
        classes: Classes,
        *,
        max_file_bytes: int = MAX_FILE_BYTES,
        further_classes: Mapping[str, Classes] | None = None,
        bands: Sequence[str] = (),
    ) -> None:
        self.classes = classes
        self.bands = tuple(bands)
        self.further_classes = further_classes or {}
        self._folder = TemporaryDirectory(prefix="fcn-flows-ingest-")
        self._max_file_bytes = max_file_bytes
        self._splits: dict[str, SplitWriter] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for split in self._splits.values():
            split.close()
        self._folder.cleanup()

    def add(self, split: str, row: Row) -> None:
        """Write one row."""
        if split not in self._splits:
            folder = Path(self._folder.name)
            heads = tuple(self.further_classes)
            self._splits[split] = SplitWriter(
                folder, split, self._max_file_bytes, heads, self.bands
            )
        self._splits[split].add(row)

    @property
    def num_rows(self) -> int:
        """Rows of all splits so far."""
        return sum(split.rows for split in self._splits.values())

    def publish(
        self,
        dataset_url: str,
        *,
        source: str,
        audit: Sequence[Finding] = (),
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> tuple[DatasetInfo, bool]:
        """Put the dataset at ``dataset_url``; ``dataset.json`` last.

        A dataset of the same content that is there already is left as it is. Files of an
        ingest that was interrupted are removed first.

        Returns:
            What ``dataset.json`` holds, and whether it was written now.

        Raises:
            DatasetError: no row was staged; or another dataset is there, and ``overwrite``
                is not set.
            StoreError: the store cannot be written.
        """
        if not self.num_rows:
            raise DatasetError("no sample is left to publish; the audit says why")
        for split in self._splits.values():
            split.close()
        info = DatasetInfo(
            url=dataset_url,
            classes=self.classes,
            splits={
                name: _split(self._splits[name], audit)
                for name in sorted(self._splits, key=_split_order)
            },
            source=source,
            audit=list(audit),
            digest=self._digest(),
            settings=dict(settings or {}),
            further_classes=self.further_classes,
            bands=self._described_bands(),
        )
        there = _published(dataset_url, overwrite)
        if there is not None and there.digest == info.digest:
            return there, False
        if there is not None and not overwrite:
            raise DatasetError(
                f"{stores.redact(dataset_url)} holds another dataset (digest {there.digest[:12]}, "
                f"this one {info.digest[:12]}). Choose another dataset_url, or set "
                "overwrite=True to replace it."
            )
        self._put(info)
        return info, True

    def _described_bands(self) -> tuple[Band, ...]:
        """Bands as the training images have them; without any, all images."""
        train = self._splits.get("train")
        splits = list(self._splits.values()) if train is None else [train]
        return tuple(
            make_band(name, splits[0].band_dtypes[name], (s.band_moments[name] for s in splits))
            for name in self.bands
        )

    def _digest(self) -> str:
        digest = hashlib.sha256(json.dumps(self.classes.to_json()).encode())
        digest.update(str(self.classes.ignore_index).encode())
        for head, classes in self.further_classes.items():
            digest.update(f"{head} {json.dumps(classes.to_json())}".encode())
        for band in self.bands:
            digest.update(f"band {band}".encode())
        for name, split in sorted(self._splits.items()):
            digest.update(f"{name} {split.digest.hexdigest()}".encode())
        return digest.hexdigest()

    def _put(self, info: DatasetInfo) -> None:
        """Put every file; whatever breaks this off leaves ``.incomplete`` behind."""
        marker, listing = (stores.join(info.url, name) for name in (_INCOMPLETE, INFO_NAME))
        stores.write_bytes(marker, b"An ingest is writing here, or was interrupted.\n")
        for url in (listing, *_data_files(info.url)):
            stores.remove(url)
        for name, split in info.splits.items():
            for path, file_name in zip(self._splits[name].paths, split.files, strict=True):
                url = stores.join(info.url, file_name)
                if not stores.create_file(url, path) and not _holds(url, path):
                    raise DatasetError(f"another ingest is writing to {stores.redact(info.url)}")
        stores.write_bytes(listing, json.dumps(info.to_json(), indent=1).encode())
        stores.remove(marker)


def require_free(dataset_url: str, *, overwrite: bool) -> None:
    """Prove, before work starts, that a dataset can be put at ``dataset_url``.

    Raises:
        DatasetError: Parquet files of another origin are there, and ``overwrite`` is not set.
        StoreError: ``dataset_url`` holds credentials, or cannot be written.
    """
    stores.require_no_credentials(dataset_url)
    stores.require_writable(dataset_url)
    ours = any(stores.exists(stores.join(dataset_url, name)) for name in (INFO_NAME, _INCOMPLETE))
    found = [] if ours or overwrite else _data_files(dataset_url)
    if found:
        raise DatasetError(
            f"{stores.redact(dataset_url)}/data holds {len(found):,} Parquet files but no "
            f"{INFO_NAME} says what they are. Choose another dataset_url, or set overwrite=True "
            "to replace them."
        )


def _published(dataset_url: str, overwrite: bool) -> DatasetInfo | None:
    """The dataset that is there; none either if it is unreadable and to be overwritten."""
    if not stores.exists(stores.join(dataset_url, INFO_NAME)):
        return None
    try:
        return read_info(dataset_url)
    except DatasetError:
        if overwrite:
            return None
        raise


def _data_files(dataset_url: str) -> list[str]:
    folder = stores.join(dataset_url, "data")
    if not stores.exists(folder):
        return []
    return [e.url for e in stores.list_entries(folder) if _DATA_FILE.fullmatch(e.key)]


def _holds(url: str, path: Path) -> bool:
    """Whether the object has the bytes of a file: put by us, and the store's answer got lost."""
    if stores.kind_of(url) != "object":
        return False
    with stores.open_input(url) as file, path.open("rb") as staged:
        while (block := file.read(1 << 20)) == staged.read(1 << 20):
            if not block:
                return True
    return False


def _split(staged: SplitWriter, audit: Sequence[Finding]) -> Split:
    bad = {f.key for f in audit if f.severity == "error" and f.split == staged.name}
    total = len(staged.paths)
    *class_pixels, ignored = (int(count) for count in np.atleast_1d(staged.pixels))
    return Split(
        name=staged.name,
        rows=staged.rows,
        files=tuple(f"data/{staged.name}-{i:05d}-of-{total:05d}.parquet" for i in range(total)),
        class_pixels=tuple(class_pixels),
        ignored_pixels=ignored,
        left_out=len(bad),
        further_class_pixels={
            head: tuple(map(int, pixels)) for head, pixels in staged.further_pixels.items()
        },
    )


def _split_order(name: str) -> tuple[int, str]:
    known = ("train", "val", "test")
    return (known.index(name) if name in known else len(known), name)
