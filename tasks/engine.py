"""From images in a store to rows: read, decode, network, encode, each stage beside the others.

A shard goes through in *windows* of a few dozen megabytes: while one is segmented the next
is read. Inside a window images of equal size go to the predictor together; one batch is in
the network while the next is decoded and the last one encoded. What is in memory is bounded
in bytes, not in images, and every image ends as one row, in order.

Images are decoded in processes of their own (`fcn.decoders`), which the shards in work share.
"""

import atexit
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import torch

from fcn.bands import Band
from fcn.classes import Classes
from fcn.cores import num_cores
from fcn.decoders import Decoders, decoder_bytes
from fcn.errors import ImageError
from fcn.images import DecodedImage
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
from tasks.networks import Networks, Outcome, Segmenter
from tasks.part_file import Row
from tasks.predict_config import PredictConfig
from tasks.read_errors import ReadError
from tasks.rows import Encoder, MaskNotSaved, SaveMask, failed
from tasks.seconds import Seconds
from tasks.stores import Entry

WINDOW_BYTES = 32 << 20
"""Encoded bytes of a window, unless the budget is small; each shard has two in memory."""

BATCH_PIXELS = 16_000_000
"""Pixels of a batch (48 MB decoded) unless one image has more; each shard has three at most."""

BATCH_IMAGES = 16
"""Images of a batch, unless `PredictConfig.batch_size` asks for more."""

THREADS = max(2, min(8, num_cores()))

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
        config.memory_budget,
        config.max_image_pixels,
        config.max_image_bytes,
        tuple(bands),
        1 + len(further_classes or {}),
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
            config,
            seconds,
            Networks(predictor, cores or CORES, seconds),
            Encoder(predictor.classes, further_classes or {}, config, seconds, save_mask),
            advance=advance,
            encoding=encoding,
            share=pixel_share,
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
        return failed(self.entry, error, (self.height, self.width))


class _Engine:
    """The stages after reading, for windows of one shard."""

    def __init__(
        self,
        config: PredictConfig,
        seconds: Seconds,
        networks: Networks,
        encoder: Encoder,
        *,
        advance: Callable[[int], None],
        encoding: ThreadPoolExecutor,
        share: Share,
        bands: Sequence[Band],
    ) -> None:
        self.config = config
        self.seconds = seconds
        self.networks = networks
        self.encoder = encoder
        self.advance = advance
        self.encoding = encoding
        self.share = share
        self.label_bytes = LABEL_BYTES * (1 + len(encoder.further_classes))
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
        most = MAX_IMAGE_BYTES + self.pixel_bytes - PIXEL_BYTES + self.label_bytes - LABEL_BYTES
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
            return failed(entry, data)
        files = {name: file for name, file in bands.items() if isinstance(file, bytes)}
        unread = [file for file in bands.values() if not isinstance(file, bytes)]
        try:
            with self.seconds.measure("decode", [entry.key]):
                height, width = DECODERS.size(data, max_pixels=self.config.max_image_pixels)
        except ImageError as error:
            return failed(entry, error)
        image = _Image(index=index, entry=entry, data=data, height=height, width=width, bands=files)
        return image.failed(unread[0]) if unread else image

    def _batch_bytes(self, batch: Sequence[_Image]) -> int:
        """Memory that a batch takes from its decoding to its masks.

        More than there is only where a store told no sizes; such a batch goes alone.
        """
        return min(_decoders_bytes(batch) + self._kept_bytes(batch), self.share.budget.size)

    def _kept_bytes(self, batch: Sequence[_Image]) -> int:
        """Of these, what is still needed when the batch is decoded."""
        return (self.pixel_bytes + self.label_bytes) * sum(image.pixels for image in batch)

    def _give_decoders_bytes(self, batch: Sequence[_Image]) -> None:
        """Give back what decoding took: of a batch that was given less than it asked for, less."""
        self.share.give(max(0, self._batch_bytes(batch) - self._kept_bytes(batch)))

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
        encoding = {}
        for image, (found, outcome) in zip(batch, self._outcomes(batch, jobs), strict=True):
            truncated = isinstance(found, DecodedImage) and found.truncated
            encoding[image.index] = self.encoding.submit(self._row, image, outcome(), truncated)
        return encoding

    def _outcomes(
        self, batch: Sequence[_Image], jobs: Sequence[Future[DecodedImage | Exception]]
    ) -> list[tuple[DecodedImage | Exception, Callable[[], Outcome]]]:
        """What was decoded of a batch, and what waits for the network's word on each."""
        pairs = zip(batch, (job.result() for job in jobs), strict=True)
        if self.networks.take_one_by_one(batch[0].pixels):
            begun = [(found, self._begin(image, found)) for image, found in pairs]
            self._give_decoders_bytes(batch)
            return begun
        decoded = list(pairs)
        self._give_decoders_bytes(batch)
        good = {i.entry.key: f.pixels for i, f in decoded if isinstance(f, DecodedImage)}
        said = iter(self.networks.together(good))
        outcomes = [f if isinstance(f, Exception) else next(said) for _, f in decoded]
        return [(found, _known(one)) for (_, found), one in zip(decoded, outcomes, strict=True)]

    def _begin(self, image: _Image, found: DecodedImage | Exception) -> Callable[[], Outcome]:
        """Have the network begin with an image while those behind it are being decoded."""
        if isinstance(found, Exception):
            return _known(found)
        return self.networks.begin(image.entry.key, found.pixels)

    def _row(self, image: _Image, outcome: Outcome, truncated: bool) -> Row:
        try:
            if isinstance(outcome, Exception):
                return image.failed(outcome)
            return self.encoder.row(image.entry, outcome, truncated=truncated)
        except MaskNotSaved as error:
            return image.failed(error)
        finally:
            self.share.give(self.label_bytes * image.pixels)


def _known(outcome: Outcome) -> Callable[[], Outcome]:
    return lambda: outcome


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
