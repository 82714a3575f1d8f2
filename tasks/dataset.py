"""The labelled dataset: what stands at a ``dataset_url``, and how it is read.

::

    dataset.json                            classes, splits, source, audit; written last
    data/train-00000-of-00003.parquet       key, image, label, height, width, label_NAME,
                                            band_NAME
    .incomplete                             only while it is being written

``image`` holds the bytes of the source file as they were. ``label`` holds a palette PNG
whose indices are class ids, with 255 for ignored pixels, aligned with the image after its
EXIF orientation; ``height`` and ``width`` are those of the oriented image.

A dataset of several heads has a column ``label_NAME`` for each further one, null where an image
is not labelled for it. What has no name is of the first head.

A dataset of images with bands (`fcn.bands`) has a column ``band_NAME`` for each, binary: the bytes
of its file as they were, which are a gray PNG or TIFF.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from fcn.bands import Band
from fcn.classes import Classes
from tasks import stores
from tasks.stores import StoreError

FORMAT_VERSION = 1
INFO_NAME = "dataset.json"

FIRST_HEAD = "main"
"""What a network of several heads calls the one that has no name here."""
BATCH_ROWS = 64
"""Rows of a Parquet row group and of an Arrow batch: a few MB of images."""

Severity = Literal["error", "warning"]


class DatasetError(Exception):
    """A dataset that cannot be made, or that is not what it says."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing the audit found: what, where, how much of it.

    ``file`` is the path inside the source; ``key`` and ``split`` are those of the sample,
    empty where there is none. ``count`` counts pixels or files, as ``text`` says. The sample
    of an error is not in the dataset; the sample of a warning is.
    """

    kind: str
    severity: Severity
    text: str
    count: int = 1
    file: str = ""
    key: str = ""
    split: str = ""


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split: its rows and Parquet files, pixels per class, and samples left out.

    ``further_class_pixels`` are those of further heads, by name; they end with the ignored ones.
    """

    name: str
    rows: int
    files: tuple[str, ...]
    class_pixels: tuple[int, ...]
    ignored_pixels: int = 0
    left_out: int = 0
    further_class_pixels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def all_class_pixels(self) -> tuple[int, ...]:
        """Pixels per class of all heads, one's after another's."""
        further = (count for pixels in self.further_class_pixels.values() for count in pixels[:-1])
        return (*self.class_pixels, *further)


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What ``dataset.json`` says.

    ``digest`` is the SHA-256 of the content (classes, and keys, images and labels of every
    split), whatever the number of files it is spread over. ``settings`` are those it was
    ingested with. ``further_classes`` are those of further heads, by name. ``bands`` are those
    that every image has, with mean and deviation over the split train.
    """

    url: str
    classes: Classes
    splits: dict[str, Split]
    source: str
    audit: list[Finding]
    digest: str
    settings: dict[str, Any]
    further_classes: Mapping[str, Classes] = field(default_factory=dict)
    bands: tuple[Band, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The content of ``dataset.json``; of one head or no band, nothing is said of more."""
        further = {name: classes.to_json() for name, classes in self.further_classes.items()}
        return {
            "format_version": FORMAT_VERSION,
            "digest": self.digest,
            "source": self.source,
            "classes": self.classes.to_json(),
            "ignore_index": self.classes.ignore_index,
            **({"further_classes": further} if further else {}),
            **({"bands": [vars(band) for band in self.bands]} if self.bands else {}),
            "splits": {
                name: {
                    key: value
                    for key, value in vars(split).items()
                    if key != "name" and (further or key != "further_class_pixels")
                }
                for name, split in self.splits.items()
            },
            "settings": self.settings,
            "audit": [vars(finding) for finding in self.audit],
        }

    @classmethod
    def from_json(cls, url: str, content: Mapping[str, Any]) -> "DatasetInfo":
        """The inverse of `to_json`, for the dataset at ``url``."""
        splits = {
            str(name): Split(
                name=str(name),
                rows=int(split["rows"]),
                files=tuple(split["files"]),
                class_pixels=tuple(split["class_pixels"]),
                ignored_pixels=int(split["ignored_pixels"]),
                left_out=int(split["left_out"]),
                further_class_pixels={
                    str(head): tuple(pixels)
                    for head, pixels in split.get("further_class_pixels", {}).items()
                },
            )
            for name, split in content["splits"].items()
        }
        ignore_index = int(content["ignore_index"])
        return cls(
            url=url,
            classes=Classes.from_json(content["classes"], ignore_index),
            splits=splits,
            source=str(content["source"]),
            audit=[Finding(**finding) for finding in content["audit"]],
            digest=str(content["digest"]),
            settings=dict(content["settings"]),
            further_classes={
                str(head): Classes.from_json(rows, ignore_index)
                for head, rows in content.get("further_classes", {}).items()
            },
            bands=tuple(Band(**band) for band in content.get("bands", ())),
        )


def read_info(dataset_url: str) -> DatasetInfo:
    """What the dataset at ``dataset_url`` holds, from its ``dataset.json``.

    Raises:
        DatasetError: there is no dataset, or its ``dataset.json`` cannot be used.
        StoreError: the store cannot be read.
    """
    url = stores.join(dataset_url, INFO_NAME)
    if not stores.exists(url):
        raise DatasetError(
            f"no dataset at {stores.redact(dataset_url)}: it holds no {INFO_NAME}. "
            "Give the dataset_url of a finished ingest, or run ingest first."
        )
    try:
        content = json.loads(stores.read_bytes(url))
        version = content["format_version"]
        if version == FORMAT_VERSION:
            return DatasetInfo.from_json(dataset_url, content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{stores.redact(url)} is damaged ({type(error).__name__}: {error}); "
            "ingest the source again with overwrite=True."
        ) from error
    raise DatasetError(
        f"{stores.redact(url)} has format version {version}; this program reads version "
        f"{FORMAT_VERSION}. Ingest the source again with overwrite=True."
    )


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image, as stored: the image file's bytes and the label's palette PNG.

    ``further_labels`` are those of further heads, by name; None where it is not labelled for one.
    ``bands`` are the files of its bands, by name.
    """

    key: str
    image: bytes
    label: bytes
    further_labels: Mapping[str, bytes | None] = field(default_factory=dict)
    bands: Mapping[str, bytes | None] = field(default_factory=dict)


class Samples:
    """The samples of a split, in random access: ``len(samples)``, ``samples[i]``.

    They lie in a memory-mapped local file, so that only what is read takes memory, and
    the processes of a ``DataLoader`` share it. Pickles as a path.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._table: pa.Table | None = None
        self._rows = self._mapped().num_rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Sample:
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        (row,) = self._mapped().slice(position, 1).to_pylist()
        further = {
            name.removeprefix("label_"): label and label["bytes"]
            for name, label in row.items()
            if name.startswith("label_")
        }
        bands = {
            name.removeprefix("band_"): data
            for name, data in row.items()
            if name.startswith("band_")
        }
        return Sample(row["key"], row["image"]["bytes"], row["label"]["bytes"], further, bands)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    @property
    def keys(self) -> list[str]:
        """The key of every sample, in order."""
        return [str(key) for key in self._mapped()["key"].to_pylist()]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}

    def _mapped(self) -> pa.Table:
        if self._table is None:
            with pa.memory_map(str(self._path)) as source:
                self._table = pa.ipc.open_file(source).read_all()
        return self._table


def open_split(info: DatasetInfo, split: str, cache_dir: Path | None = None) -> Samples:
    """The samples of one split, in random access.

    The first call copies them to one Arrow file in ``cache_dir``, in bounded memory; its
    name holds the dataset's digest, so that later calls find it and a changed dataset is
    copied anew. The default is ``$XDG_CACHE_HOME/fcn-flows`` (``~/.cache/fcn-flows``);
    files in it may be deleted at any time when nothing reads them.

    Raises:
        DatasetError: no such split, or its files are not those that ``dataset.json`` names.
        StoreError: the files cannot be read.
    """
    require_split(info, split)
    folder = default_cache_dir() if cache_dir is None else cache_dir
    path = folder / f"{info.digest[:20]}-{split}.arrow"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _copy_rows(info, info.splits[split], path)
    return Samples(path)


def require_split(info: DatasetInfo, split: str) -> None:
    """Refuse a split that a dataset does not have.

    Raises:
        DatasetError: no such split; says which there are.
    """
    if split not in info.splits:
        reasons = [found.text for found in info.audit if found.split == split and not found.key]
        raise DatasetError(
            f"no split {split!r} in the dataset at {stores.redact(info.url)}; "
            + "; ".join([f"it has {', '.join(info.splits)}", *reasons])
        )


def default_cache_dir() -> Path:
    """Where `open_split` keeps its copies: ``$XDG_CACHE_HOME/fcn-flows``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fcn-flows"


_COLUMNS = ["key", "image", "label"]


def _copy_rows(info: DatasetInfo, split: Split, path: Path) -> None:
    """Copy a split's rows to one Arrow file, which appears whole under ``path``."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        rows = _write_arrow(partial, _read_batches(info, split))
        if rows != split.rows:
            raise DatasetError(
                f"split {split.name} of {stores.redact(info.url)} has {rows:,} rows; "
                f"{INFO_NAME} says {split.rows:,}. Ingest the source again with overwrite=True."
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_arrow(path: Path, batches: Iterator[pa.RecordBatch]) -> int:
    rows, writer = 0, None
    with pa.OSFile(str(path), "wb") as sink:
        for batch in batches:
            writer = writer or pa.ipc.new_file(sink, batch.schema)
            writer.write_batch(batch)
            rows += batch.num_rows
        if writer is not None:
            writer.close()
    return rows


def _read_batches(info: DatasetInfo, split: Split) -> Iterator[pa.RecordBatch]:
    columns = [*_COLUMNS, *(f"label_{head}" for head in info.further_classes)]
    columns += [f"band_{band.name}" for band in info.bands]
    for name in split.files:
        url = stores.join(info.url, name)
        try:
            with stores.open_input(url) as source:
                yield from pq.ParquetFile(source).iter_batches(BATCH_ROWS, columns=columns)
        except (StoreError, pa.ArrowInvalid) as error:
            if isinstance(error, StoreError) and stores.exists(url):
                raise
            raise DatasetError(
                f"{name} of {stores.redact(info.url)} cannot be read ({error}). "
                "Ingest the source again with overwrite=True."
            ) from error
