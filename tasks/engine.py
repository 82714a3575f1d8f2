"""From images in a store to rows: read, decode, network, encode, each stage beside the others.

A shard goes through in *windows* of a few dozen megabytes: while one is segmented the next
is read. Inside a window images of equal size go to the predictor together; one batch is in
the network while the next is decoded and the last one encoded. What is in memory is bounded
in bytes, not in images, and every image ends as one row, in order.
"""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, Protocol

import numpy as np
import torch

from fcn.classes import Classes
from fcn.images import DecodedImage, decode_image, image_size
from fcn.masks import encode_mask
from fcn.predict import Prediction
from tasks.part_file import Row
from tasks.predict_config import PredictConfig
from tasks.reading import ReadError, read_objects
from tasks.stores import UNKNOWN_SIZE, Entry, StoreError, is_transient

WINDOW_BYTES = 32 << 20
"""Encoded bytes of a window; two are in memory."""

BATCH_PIXELS = 16_000_000
"""Pixels of a batch (48 MB decoded) unless one image has more; three are in memory."""

BATCH_IMAGES = 16
"""Images of a batch, unless `PredictConfig.batch_size` asks for more."""

MAX_ERROR_TEXT = 500
THREADS = max(2, min(8, os.cpu_count() or 2))

Stage = Literal["read", "decode", "network", "encode", "write"]
SaveMask = Callable[[str, bytes], str]

_FULL = {errno.ENOSPC, errno.EDQUOT}

_NETWORK = threading.Lock()  # shards in work share one network and take turns, by batch


class MaskNotSaved(Exception):
    """A mask that cannot have an object of its own, such as for a name that is too long."""


class Segmenter(Protocol):
    """What the engine needs of a `fcn.Predictor`."""

    @property
    def classes(self) -> Classes:
        """Classes of the label maps."""

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Label maps and confidences of RGB images uint8 ``H x W x 3``, in their order."""


class Seconds:
    """Busy time by stage, summed over threads; stages overlap, so the sum exceeds the clock."""

    def __init__(self) -> None:
        self.by_stage: dict[Stage, float] = dict.fromkeys(
            ("read", "decode", "network", "encode", "write"), 0.0
        )
        self._lock = threading.Lock()

    @contextmanager
    def measure(self, stage: Stage) -> Iterator[None]:
        """Add the time of a ``with`` block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.by_stage[stage] += time.perf_counter() - start


def segment(
    entries: Sequence[Entry],
    predictor: Segmenter,
    config: PredictConfig,
    *,
    seconds: Seconds,
    save_mask: SaveMask | None = None,
    advance: Callable[[int], None] = lambda _: None,
    last_attempt: bool = False,
) -> list[Row]:
    """One row for each image, in order: its mask, or the reason why there is none.

    Args:
        entries: Images of one store, as the manifest lists them.
        predictor: The trained model.
        config: Settings of the run.
        seconds: Gets the time of each stage added.
        save_mask: Puts the PNG mask of a key where the png sink wants it, and returns its
            URL; called from several threads. A `StoreError` that is no fault of the store
            fails that image alone.
        advance: Told how many images were done, each time some are.
        last_attempt: Whether the shard will not be tried again, see `read_objects`.

    Raises:
        OSError: or an error of the store's client: the store is out, see `read_objects`.
        StoreError: masks cannot be saved for now, or the disk is full.
    """

    def read(window: Sequence[Entry]) -> list[bytes | ReadError]:
        with seconds.measure("read"):
            return read_objects(window, last_attempt=last_attempt, max_bytes=config.max_image_bytes)

    rows: list[Row] = []
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(THREADS) as pool:
        engine = _Engine(predictor, config, seconds, save_mask, advance, pool)
        for window, found in _read_ahead(reader, list(windows(entries)), read):
            rows += engine.rows(window, found)
    return rows


def windows(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """Neighbouring images, up to `WINDOW_BYTES` together, at least one."""
    start, size = 0, 0
    for index, entry in enumerate(entries):
        entry_size = 1 << 20 if entry.size == UNKNOWN_SIZE else entry.size
        if index > start and size + entry_size > WINDOW_BYTES:
            yield entries[start:index]
            start, size = index, 0
        size += entry_size
    if entries:
        yield entries[start:]


def _read_ahead(
    reader: ThreadPoolExecutor,
    parts: Sequence[Sequence[Entry]],
    read: Callable[[Sequence[Entry]], list[bytes | ReadError]],
) -> Iterator[tuple[Sequence[Entry], list[bytes | ReadError]]]:
    """Each window with its bytes, the next one being read meanwhile."""
    ahead = [reader.submit(read, window) for window in parts[:1]]
    for index, window in enumerate(parts):
        found = ahead.pop().result()
        ahead += [reader.submit(read, after) for after in parts[index + 1 : index + 2]]
        yield window, found


class _Engine:
    """The stages after reading, for windows of one shard."""

    def __init__(
        self,
        predictor: Segmenter,
        config: PredictConfig,
        seconds: Seconds,
        save_mask: SaveMask | None,
        advance: Callable[[int], None],
        pool: ThreadPoolExecutor,
    ) -> None:
        self.predictor = predictor
        self.config = config
        self.seconds = seconds
        self.save_mask = save_mask
        self.advance = advance
        self.pool = pool

    def rows(self, entries: Sequence[Entry], found: Sequence[bytes | ReadError]) -> list[Row]:
        """One row for each image of a window, in order."""
        sizes = list(self.pool.map(self._size, found))
        rows = {
            index: _failed(entries[index], size)
            for index, size in enumerate(sizes)
            if isinstance(size, Exception)
        }
        self.advance(len(rows))
        encoding: list[tuple[int, Future[Row]]] = []
        for batch, decoded in self._decoded(_batches(sizes, self.config.batch_size), found):
            encoded, encoding = encoding, []
            images = [image.pixels for image in decoded if isinstance(image, DecodedImage)]
            predictions = iter(self._predict(images))
            for index, image in zip(batch, decoded, strict=True):
                prediction = image if isinstance(image, Exception) else next(predictions)
                if isinstance(prediction, Exception):
                    rows[index] = _failed(entries[index], prediction, sizes[index])
                else:
                    truncated = isinstance(image, DecodedImage) and image.truncated
                    job = self.pool.submit(self._encode, entries[index], prediction, truncated)
                    encoding.append((index, job))
            rows.update((index, job.result()) for index, job in encoded)
            self.advance(len(batch))
        rows.update((index, job.result()) for index, job in encoding)
        return [rows[index] for index in range(len(entries))]

    def _size(self, data: bytes | ReadError) -> tuple[int, int] | Exception:
        """Height and width by the header, or what is wrong."""
        if isinstance(data, ReadError):
            return data
        try:
            with self.seconds.measure("decode"):
                return image_size(data, max_pixels=self.config.max_image_pixels)
        except Exception as error:  # noqa: BLE001 - bytes made to break a decoder may raise anything
            return error

    def _decoded(
        self, batches: Sequence[Sequence[int]], found: Sequence[bytes | ReadError]
    ) -> Iterator[tuple[Sequence[int], list[DecodedImage | Exception]]]:
        """Each batch with its pixels, the next one being decoded meanwhile."""
        ahead = [[self.pool.submit(self._decode, found[i]) for i in b] for b in batches[:1]]
        for number, batch in enumerate(batches):
            decoded = [job.result() for job in ahead.pop()]
            ahead += [
                [self.pool.submit(self._decode, found[i]) for i in b]
                for b in batches[number + 1 : number + 2]
            ]
            yield batch, decoded

    def _decode(self, data: bytes | ReadError) -> DecodedImage | Exception:
        if isinstance(data, ReadError):
            return data
        try:
            with self.seconds.measure("decode"):
                return decode_image(
                    data, max_pixels=self.config.max_image_pixels, lenient=self.config.lenient
                )
        except Exception as error:  # noqa: BLE001 - bytes made to break a decoder may raise anything
            return error

    def _predict(self, images: Sequence[np.ndarray]) -> list[Prediction | Exception]:
        """Predictions; an image that does not fit into memory even alone is an error of its own."""
        if not images:
            return []
        try:
            with _NETWORK, self.seconds.measure("network"):
                return list(self.predictor.predict(images))
        except (torch.OutOfMemoryError, MemoryError) as error:
            if len(images) == 1:
                return [error]
        return [one for image in images for one in self._predict([image])]

    def _encode(self, entry: Entry, prediction: Prediction, truncated: bool) -> Row:
        label, classes = prediction.label, self.predictor.classes
        mask_format = self.config.mask_format
        with self.seconds.measure("encode"):
            mask = encode_mask(label, classes.palette, mask_format=mask_format)
            counts = np.bincount(label.ravel(), minlength=len(classes)).tolist()
        mask_path = f"{entry.key}.png" if mask_format == "png" else None
        if self.save_mask:
            png = mask if mask_format == "png" else encode_mask(label, classes.palette)
            try:
                with self.seconds.measure("write"):
                    mask_path = self.save_mask(entry.key, png)
            except StoreError as error:
                if is_transient(error) or getattr(error.__cause__, "errno", None) in _FULL:
                    raise
                return _failed(entry, MaskNotSaved(str(error)), label.shape)
        return Row(
            entry=entry,
            status="partial" if truncated else "ok",
            height=label.shape[0],
            width=label.shape[1],
            mask=mask if "parquet" in self.config.sinks else None,
            mask_path=mask_path,
            class_pixels=counts,
            confidence=prediction.confidence,
        )


def _batches(
    sizes: Sequence[tuple[int, int] | Exception], batch_size: int | None
) -> list[list[int]]:
    """Indices of images of equal size, together within `BATCH_PIXELS`, in order of appearance."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        if not isinstance(size, Exception):
            by_size.setdefault(size, []).append(index)
    batches = []
    for (height, width), indices in by_size.items():
        images = max(BATCH_IMAGES, batch_size or 0)
        step = max(1, min(images, BATCH_PIXELS // max(1, height * width)))
        batches += [indices[start : start + step] for start in range(0, len(indices), step)]
    return batches


def _failed(entry: Entry, error: Exception, size: tuple[int, ...] | Exception | None = None) -> Row:
    height, width = size if isinstance(size, tuple) else (None, None)
    text = str(error).encode("utf-8", "replace").decode()[:MAX_ERROR_TEXT]
    return Row(
        entry=entry,
        status="failed",
        height=height,
        width=width,
        error_class=type(error).__name__,
        error=text or type(error).__name__,
    )
