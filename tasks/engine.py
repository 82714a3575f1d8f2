"""From images in a store to rows: read, decode, network, encode, each stage beside the others.

A shard goes through in *windows* of a few dozen megabytes: while one is segmented the next
is read. Inside a window images of equal size go to the predictor together; one batch is in
the network while the next is decoded and the last one encoded. What is in memory is bounded
in bytes, not in images, and every image ends as one row, in order.

Images are decoded in processes of their own (`fcn.decoders`), which the shards in work share.
"""

import atexit
import errno
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal, Protocol

import numpy as np
import torch

from fcn.bands import Band
from fcn.classes import Classes
from fcn.decoders import Decoders, decoder_bytes
from fcn.errors import ImageError, ScoresNotFinite
from fcn.images import DecodedImage
from fcn.masks import count_labels, encode_mask
from fcn.predict import MAX_WHOLE_PIXELS, Prediction
from tasks.bands import BandFiles, expected_bytes, stacked
from tasks.bands import read as read_with_bands
from tasks.budget import (
    LABEL_BYTES,
    MAX_IMAGE_BYTES,
    PIXEL_BYTES,
    Share,
    band_pixel_bytes,
    budgets,
    prefetched,
)
from tasks.cores import Cores
from tasks.part_file import HeadMask, Row
from tasks.predict_config import PredictConfig
from tasks.read_errors import ReadError
from tasks.stores import Entry, StoreError, is_transient

WINDOW_BYTES = 32 << 20
"""Encoded bytes of a window, unless the budget is small; each shard has two in memory."""

BATCH_PIXELS = 16_000_000
"""Pixels of a batch (48 MB decoded) unless one image has more; each shard has three at most."""

BATCH_IMAGES = 16
"""Images of a batch, unless `PredictConfig.batch_size` asks for more."""

MAX_ERROR_TEXT = 500
THREADS = max(2, min(8, os.cpu_count() or 2))

Stage = Literal["read", "decode", "network", "encode", "write"]
SaveMask = Callable[..., str]
"""Puts the PNG mask of a key, and as a third argument of a further head, and returns its URL."""

_FULL = {errno.ENOSPC, errno.EDQUOT}

CORES = Cores(torch.get_num_threads())
"""What runs the networks of this process, for all shards in work."""

DECODERS = Decoders(THREADS)
"""The decoding processes of this process, for all shards in work."""

atexit.register(DECODERS.close)

_DECODING = ThreadPoolExecutor(DECODERS.number, "decode")  # as many threads wait for them


def cores_of(number: int | None) -> Cores:
    """So many cores, whatever torch takes in this process; ``None``: as many as that."""
    return CORES if number is None or number == CORES.number else _other_cores(number)


_other_cores = cache(Cores)  # for all shards in work


class MaskNotSaved(Exception):
    """A mask that cannot have an object of its own, such as for a name that is too long."""


class Segmenter(Protocol):
    """What the engine needs of a `fcn.Predictor`."""

    @property
    def classes(self) -> Classes:
        """Classes of the label maps."""

    @property
    def side_by_side(self) -> bool:
        """Whether it runs on the cores of this machine, an image a core.

        Another, a GPU's, is called with a batch by every shard in work, in a thread of its own.
        """

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Label maps and confidences of images, RGB uint8 ``H x W x 3`` or with bands, in order."""


class Seconds:
    """Busy time by stage, summed over threads; stages overlap, so the sum exceeds the clock.

    Of the network it is that of all cores: a second of one core counts as much as its share.
    ``by_image`` tells, by key, how much of decoding and of the network was an image's own.
    """

    def __init__(self) -> None:
        self.by_stage: dict[Stage, float] = dict.fromkeys(
            ("read", "decode", "network", "encode", "write"), 0.0
        )
        self.by_image: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def measure(
        self, stage: Stage, keys: Collection[str] = (), *, cores: float = 1.0
    ) -> Iterator[None]:
        """Add the time of a ``with`` block to a stage, and to images an equal share each.

        Args:
            stage: What is done.
            keys: Of the images that it is done for.
            cores: The share of the machine that does it.
        """
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            with self._lock:
                self.by_stage[stage] += cores * seconds
                for key in keys:
                    self.by_image[key] = self.by_image.get(key, 0.0) + seconds / len(keys)


def segment(
    entries: Sequence[Entry],
    predictor: Segmenter,
    config: PredictConfig,
    *,
    seconds: Seconds,
    save_mask: SaveMask | None = None,
    advance: Callable[[int], None] = lambda _: None,
    last_attempt: bool = False,
    further_classes: Mapping[str, Classes] | None = None,
    cores: Cores | None = None,
    bands: Sequence[Band] = (),
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
        further_classes: Of the model's further heads, by name.
        cores: What runs the network; ``None``: `CORES`.
        bands: What the model sees beside the colours, see `tasks.bands`.

    Raises:
        StoreUnavailable: the store is out, see `read_objects`.
        StoreError: masks cannot be saved for now, or the disk is full.
        RuntimeError: no decoding process can be started.
    """
    names = [band.name for band in bands]

    def read(window: Sequence[Entry]) -> tuple[list[bytes | ReadError], list[BandFiles]]:
        with seconds.measure("read"):
            return read_with_bands(
                window, names, last_attempt=last_attempt, max_bytes=config.max_image_bytes
            )

    files, pixels = budgets(
        config.memory_budget, config.max_image_pixels, config.max_image_bytes, tuple(bands)
    )
    limit = min(WINDOW_BYTES, files.size // (2 * config.concurrency))
    rows: list[Row] = []
    with (
        ThreadPoolExecutor(1) as reader,
        ThreadPoolExecutor(THREADS) as encoding,
        files.share() as file_share,
        pixels.share() as pixel_share,
    ):
        engine = _Engine(
            *(predictor, config, seconds, save_mask, advance, encoding, pixel_share),
            further_classes=further_classes or {},
            cores=cores or CORES,
            bands=bands,
        )
        for window, job in prefetched(
            list(windows(entries, limit)),
            lambda window: min(_listed_bytes(window), files.size),
            file_share,
            lambda window: reader.submit(read, window),
        ):
            rows += engine.rows(window, *job.result())
            del job  # and with it the files
            file_share.give(min(_listed_bytes(window), files.size))
    return rows


def windows(entries: Sequence[Entry], limit: int = WINDOW_BYTES) -> Iterator[Sequence[Entry]]:
    """Neighbouring images, up to ``limit`` bytes together, at least one."""
    start, size = 0, 0
    for index, entry in enumerate(entries):
        entry_size = expected_bytes(entry)
        if index > start and size + entry_size > limit:
            yield entries[start:index]
            start, size = index, 0
        size += entry_size
    if entries:
        yield entries[start:]


def _listed_bytes(entries: Sequence[Entry]) -> int:
    """Bytes of these files; where a store tells no size, a megabyte is assumed."""
    return sum(map(expected_bytes, entries))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Image:
    """A file of a window, its place there, its size by its header, and the files of its bands."""

    index: int
    entry: Entry
    data: bytes
    height: int
    width: int
    bands: Mapping[str, bytes]

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def failed(self, error: Exception) -> Row:
        return _failed(self.entry, error, (self.height, self.width))


class _Engine:
    """The stages after reading, for windows of one shard."""

    def __init__(
        self,
        predictor: Segmenter,
        config: PredictConfig,
        seconds: Seconds,
        save_mask: SaveMask | None,
        advance: Callable[[int], None],
        encoding: ThreadPoolExecutor,
        share: Share,
        further_classes: Mapping[str, Classes],
        cores: Cores,
        bands: Sequence[Band],
    ) -> None:
        self.predictor = predictor
        self.config = config
        self.seconds = seconds
        self.save_mask = save_mask
        self.advance = advance
        self.encoding = encoding
        self.share = share
        self.further_classes = further_classes
        self.label_bytes = LABEL_BYTES * (1 + len(further_classes))
        self.cores = cores
        self.bands = bands
        self.pixel_bytes = PIXEL_BYTES + band_pixel_bytes(bands)

    def rows(
        self,
        entries: Sequence[Entry],
        found: Sequence[bytes | ReadError],
        bands: Sequence[BandFiles],
    ) -> list[Row]:
        """One row for each image of a window, in order."""
        opened = list(_DECODING.map(self._open, range(len(entries)), entries, found, bands))
        rows = {index: row for index, row in enumerate(opened) if isinstance(row, Row)}
        self.advance(len(rows))
        images = [image for image in opened if isinstance(image, _Image)]
        num_images = max(BATCH_IMAGES, self.config.batch_size or 0)
        most = MAX_IMAGE_BYTES + self.pixel_bytes - PIXEL_BYTES
        num_pixels = min(BATCH_PIXELS, self.share.budget.size // (4 * most))
        batches = _batches(images, num_images, num_pixels)
        encoding: dict[int, Future[Row]] = {}
        for batch, jobs in prefetched(batches, self._batch_bytes, self.share, self._start_decoding):
            encoded, encoding = encoding, self._segment(batch, jobs)
            del jobs  # and with them the pixels
            self.share.give(self.pixel_bytes * sum(image.pixels for image in batch))
            rows.update((index, job.result()) for index, job in encoded.items())
            self.advance(len(batch))
        rows.update((index, job.result()) for index, job in encoding.items())
        return [rows[index] for index in range(len(entries))]

    def _open(
        self, index: int, entry: Entry, data: bytes | ReadError, bands: BandFiles
    ) -> _Image | Row:
        """The image by its header, or the row that says what is wrong with it."""
        if isinstance(data, ReadError):
            return _failed(entry, data)
        files = {name: file for name, file in bands.items() if isinstance(file, bytes)}
        unread = [file for file in bands.values() if not isinstance(file, bytes)]
        try:
            with self.seconds.measure("decode", [entry.key]):
                height, width = DECODERS.size(data, max_pixels=self.config.max_image_pixels)
        except ImageError as error:
            return _failed(entry, error)
        image = _Image(index=index, entry=entry, data=data, height=height, width=width, bands=files)
        return image.failed(unread[0]) if unread else image

    def _batch_bytes(self, batch: Sequence[_Image]) -> int:
        """Memory that a batch takes from its decoding to its masks.

        More than there is only where a store told no sizes; such a batch goes alone.
        """
        kept = (self.pixel_bytes + self.label_bytes) * sum(image.pixels for image in batch)
        return min(_decoders_bytes(batch) + kept, self.share.budget.size)

    def _start_decoding(self, batch: Sequence[_Image]) -> list[Future[DecodedImage | Exception]]:
        return [_DECODING.submit(self._decode, image) for image in batch]

    def _decode(self, image: _Image) -> DecodedImage | Exception:
        try:
            with self.seconds.measure("decode", [image.entry.key]):
                found = DECODERS.decode(
                    image.data, max_pixels=image.pixels, lenient=self.config.lenient
                )
                return stacked(found, image.bands, self.bands, DECODERS) if self.bands else found
        except (ImageError, MemoryError) as error:
            return error

    def _segment(
        self, batch: Sequence[_Image], jobs: Sequence[Future[DecodedImage | Exception]]
    ) -> dict[int, Future[Row]]:
        """The rows of a batch, its masks still being encoded, by their places in the window."""
        decoded = [job.result() for job in jobs]
        self.share.give(_decoders_bytes(batch))
        predictions = iter(
            self._predict(
                {
                    image.entry.key: found.pixels
                    for image, found in zip(batch, decoded, strict=True)
                    if isinstance(found, DecodedImage)
                }
            )
        )
        encoding = {}
        for image, found in zip(batch, decoded, strict=True):
            outcome = found if isinstance(found, Exception) else next(predictions)
            truncated = isinstance(found, DecodedImage) and found.truncated
            encoding[image.index] = self.encoding.submit(self._row, image, outcome, truncated)
        return encoding

    def _predict(self, images: Mapping[str, np.ndarray]) -> list[Prediction | Exception]:
        """Predictions for images by key, in their order.

        An image that does not fit into memory even alone, or has no finite scores, is an error
        of its own.
        """
        if not images:
            return []
        run = partial(self._run, images, 1.0)
        if not self.predictor.side_by_side:
            # In this thread: a GPU has the next shard's batch on its way while one is in work.
            return self._predicted(images, run)
        pixels = max(image.shape[0] * image.shape[1] for image in images.values())
        if pixels * self.cores.number > MAX_WHOLE_PIXELS:
            return self._predicted(images, self.cores.on_all(run).result)
        jobs = {
            key: self.cores.on_one(partial(self._run, {key: images[key]}, 1 / self.cores.number))
            for key in images
        }
        return [
            outcome
            for key, job in jobs.items()
            for outcome in self._predicted({key: images[key]}, job.result)
        ]

    def _predicted(
        self, images: Mapping[str, np.ndarray], found: Callable[[], list[Prediction | Exception]]
    ) -> list[Prediction | Exception]:
        try:
            return found()
        except (torch.OutOfMemoryError, MemoryError, ScoresNotFinite) as error:
            if len(images) == 1:
                return [error]
        return [one for key in images for one in self._predict({key: images[key]})]

    def _run(self, images: Mapping[str, np.ndarray], cores: float) -> list[Prediction | Exception]:
        with self.seconds.measure("network", images, cores=cores):
            return list(self.predictor.predict(list(images.values())))

    def _row(self, image: _Image, outcome: Prediction | Exception, truncated: bool) -> Row:
        try:
            if isinstance(outcome, Exception):
                return image.failed(outcome)
            return self._encode(image, outcome, truncated)
        finally:
            self.share.give(self.label_bytes * image.pixels)

    def _encode(self, image: _Image, prediction: Prediction, truncated: bool) -> Row:
        try:
            first = self._mask(image, prediction, self.predictor.classes)
            further = {
                name: self._mask(image, prediction.further[name], classes, name)
                for name, classes in self.further_classes.items()
            }
        except StoreError as error:
            if is_transient(error) or getattr(error.__cause__, "errno", None) in _FULL:
                raise
            return image.failed(MaskNotSaved(str(error)))
        return Row(
            entry=image.entry,
            status="partial" if truncated else "ok",
            height=prediction.label.shape[0],
            width=prediction.label.shape[1],
            further=further,
            **vars(first),
        )

    def _mask(
        self, image: _Image, prediction: Prediction, classes: Classes, *head: str
    ) -> HeadMask:
        """The mask of one head, whose name is given unless it is the first.

        Raises:
            StoreError: it cannot be put where the png sink wants it.
        """
        label, mask_format = prediction.label, self.config.mask_format
        with self.seconds.measure("encode"):
            mask = encode_mask(label, classes.palette, mask_format=mask_format)
            counts = count_labels(label, len(classes))
        mask_path = f"{image.entry.key}.png" if mask_format == "png" else None
        if self.save_mask:
            png = mask if mask_format == "png" else encode_mask(label, classes.palette)
            with self.seconds.measure("write"):
                mask_path = self.save_mask(image.entry.key, png, *head)
        return HeadMask(
            mask=mask if "parquet" in self.config.sinks else None,
            mask_path=mask_path,
            class_pixels=counts,
            confidence=prediction.confidence,
        )


def _batches(images: Sequence[_Image], num_images: int, num_pixels: int) -> list[Sequence[_Image]]:
    """Images of equal size, so many of them or of their pixels together, in order of appearance."""
    by_size: dict[tuple[int, int], list[_Image]] = {}
    for image in images:
        by_size.setdefault((image.height, image.width), []).append(image)
    batches: list[Sequence[_Image]] = []
    for alike in by_size.values():
        step = max(1, min(num_images, num_pixels // alike[0].pixels))
        batches += [alike[start : start + step] for start in range(0, len(alike), step)]
    return batches


def _decoders_bytes(batch: Sequence[_Image]) -> int:
    """Memory of the processes that decode a batch, as many at a time as there are."""
    needs = sorted(
        max(decoder_bytes(file, image.pixels) for file in (image.data, *image.bands.values()))
        for image in batch
    )
    return sum(needs[-DECODERS.number :])


def _failed(entry: Entry, error: Exception, size: tuple[int, int] | None = None) -> Row:
    height, width = size or (None, None)
    text = str(error).encode("utf-8", "replace").decode()[:MAX_ERROR_TEXT]
    return Row(
        entry=entry,
        status="failed",
        height=height,
        width=width,
        error_class=type(error).__name__,
        error=text or type(error).__name__,
    )
