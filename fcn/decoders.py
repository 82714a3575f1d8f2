"""Decoders in processes of their own: a crash, a hang or a leak costs one image.

Image files are the one input that strangers write, and libraries in C read them. A decoder
that dies of a signal takes its process along; one that never returns cannot be stopped from
within. So decoding happens elsewhere, in a few processes that live as long as they can: see
`fcn.decoding` for what ends them.
"""

import contextlib
import logging
import queue
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn import errors, wire
from fcn.errors import (
    CorruptImage,
    DecoderCrashed,
    DecoderTimedOut,
    ImageError,
    TruncatedImage,
)
from fcn.headers import plain_jpeg_size
from fcn.images import DecodedImage
from fcn.pillow import format_name

ATTEMPTS = 2
"""A decoder that dies is tried once more, in a new process, before its image is blamed."""

HEADER_BYTES = 256 << 20
"""Memory beside the pixels: libraries that are loaded when first used, tables, metadata."""

SECONDS = 20.0
"""Processor time of a decoder, and `SECONDS_PER_MEGAPIXEL` in addition."""

SECONDS_PER_MEGAPIXEL = 1.0
"""Three times what the slowest takes (JPEG 2000, without loss) on a slow core."""

MAX_BYTES_PER_PIXEL = 32
"""Memory of the hungriest decoder (JPEG 2000 with alpha: 26 measured), its pixels included."""

_BYTES_PER_PIXEL = {"JPEG": 16}  # 12 measured (progressive CMYK), and 3 to turn it upright

MAX_TEXT_BYTES = 1 << 20
"""Limit on what a decoder says of an image it cannot decode."""

GRACE = 0.5
"""Seconds that a process has to end by itself."""

START_BYTES = 1 << 16
"""Of a JPEG, which are sent for its size: its header comes first, and mostly ends within them."""

FILE_COPIES = 3
"""Copies of a file in its decoding process: as received, as kept, as a decoder wants it."""

_BAND_DTYPES = {1: np.uint8, 2: np.uint16, 4: np.float32}  # by bytes of a value
_REPLY_BYTES: Mapping[int, Collection[int]] = {  # of a pixel, by task
    wire.SIZE: (0,),
    wire.DECODE: (3,),
    wire.DECODE_LENIENT: (3,),
    wire.DECODE_BAND: _BAND_DTYPES.keys(),
}

_logger = logging.getLogger(__name__)

_ROOT = str(Path(__file__).resolve().parents[1])
_COMMAND = "import sys; sys.path[0] = {!r}; from fcn.decoding import serve; serve({})"
_OVERTIME = {-signal.SIGPROF, -signal.SIGALRM}


class Decoders:
    """A pool of decoding processes, for use from many threads.

    Args:
        number: Processes at most; each is started when there is something for it to do, and
            anew when it has died. One takes 0.15 s to start and 40 MB.
        seconds: Processor time for an image, beside what its pixels take.
    """

    def __init__(self, number: int, *, seconds: float = SECONDS) -> None:
        self.number = number
        self.seconds = seconds
        # The process used last is used first; None stands for one that is not started.
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(number):
            self._idle.put(None)

    def size(self, data: bytes, *, max_pixels: int) -> tuple[int, int]:
        """Height and width by the header, as `fcn.images.image_size`.

        Raises:
            ImageError: as there, or `DecoderCrashed`, or `DecoderTimedOut`.
            RuntimeError: no decoding process can be started.
        """
        plain = plain_jpeg_size(data)
        if plain and plain[0] * plain[1] <= max_pixels:
            return plain
        if len(data) > START_BYTES and format_name(data) == "JPEG":
            with contextlib.suppress(CorruptImage, TruncatedImage):  # a longer header
                return self._size(data[:START_BYTES], max_pixels)
        return self._size(data, max_pixels)

    def _size(self, data: bytes, max_pixels: int) -> tuple[int, int]:
        _, height, width, _ = self._ask(wire.SIZE, data, max_pixels)
        return height, width

    def decode(self, data: bytes, *, max_pixels: int, lenient: bool = False) -> DecodedImage:
        """Decode an image, as `fcn.images.decode_image`.

        Args:
            data: The file's bytes.
            max_pixels: Limit of height x width. Memory and time are allowed for as many.
            lenient: Accept a file that ends early, as far as it goes.

        Raises:
            ImageError: as there, or `DecoderCrashed`, or `DecoderTimedOut`.
            RuntimeError: no decoding process can be started.
        """
        task = wire.DECODE_LENIENT if lenient else wire.DECODE
        kind, height, width, body = self._ask(task, data, max_pixels)
        pixels = body.reshape(height, width, 3)
        return DecodedImage(pixels=pixels, truncated=kind == wire.TRUNCATED)

    def decode_band(self, data: bytes, *, max_pixels: int) -> NDArray[Any]:
        """Decode a band, as `fcn.bands.decode_band`.

        Raises:
            ImageError: as there, or `DecoderCrashed`, or `DecoderTimedOut`.
            RuntimeError: no decoding process can be started.
        """
        _, height, width, body = self._ask(wire.DECODE_BAND, data, max_pixels)
        return body.view(_BAND_DTYPES[len(body) // (height * width)]).reshape(height, width)

    def close(self) -> None:
        """End the processes, once they are idle; whoever asks again starts new ones."""
        for process in [self._idle.get() for _ in range(self.number)]:
            if process:
                process.end()
            self._idle.put(None)

    def _ask(self, task: int, data: bytes, max_pixels: int) -> "_Reply":
        pixels = 0 if task == wire.SIZE else max_pixels
        seconds = self.seconds + SECONDS_PER_MEGAPIXEL * pixels / 1e6
        memory = HEADER_BYTES + decoder_bytes(data, pixels)
        request = wire.REQUEST.pack(task, max_pixels, seconds, memory, len(data))
        process, status = self._idle.get(), 0
        try:
            for _ in range(ATTEMPTS):
                process = process or _Process()
                try:
                    return process.ask(
                        request, data, max(4 * pixels, MAX_TEXT_BYTES), _REPLY_BYTES[task]
                    )
                except OSError:
                    status, process = process.end(), None
                    _logger.warning(
                        "a decoding process ended with status %d at a %s of %s bytes",
                        status,
                        format_name(data) or "file",
                        f"{len(data):,}",
                    )
                if status in _OVERTIME:
                    break
        except ImageError:
            raise
        except BaseException:  # half of a reply may be left in the socket
            if process:
                process.end()
                process = None
            raise
        finally:
            self._idle.put(process)
        raise _death(status, data, seconds)


_Reply = tuple[int, int, int, np.ndarray]


class _Process:
    """One decoding process, asked by one thread at a time."""

    def __init__(self) -> None:
        try:
            self._start()
        except OSError as error:  # not an image's: none has been sent
            raise RuntimeError(
                f"no decoding process can be started: {error}; allow more processes (ulimit -u), "
                "open files (ulimit -n) or memory, or run fewer decoders at once"
            ) from error
        with contextlib.suppress(ConnectionError):
            if wire.receive(self._socket, len(wire.READY)):
                return
        raise RuntimeError(
            f"a decoding process ended with status {self.end()} before it was ready; "
            "what it said is above"
        )

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        with contextlib.ExitStack() as undo, theirs:
            undo.enter_context(self._socket)
            # Not `multiprocessing`: that imports the program's main module anew, and so runs a
            # script that has no `if __name__ == "__main__"`.
            self._process = subprocess.Popen(  # noqa: S603 - this Python, our own words
                [sys.executable, "-c", _COMMAND.format(_ROOT, theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the parent
            )
            undo.pop_all()

    def ask(self, request: bytes, data: bytes, most: int, per_pixel: Collection[int]) -> _Reply:
        """Kind, height, width and body of the reply, which has ``most`` bytes at most.

        Of what is no error there are as many bytes a pixel as one of ``per_pixel``.

        Raises:
            ImageError: what the decoder says.
            OSError: the process died, or says what no decoding process does.
        """
        self._socket.sendall(request)
        self._socket.sendall(data)
        reply = bytearray(wire.REPLY.size)
        self._fill(memoryview(reply))
        kind, height, width, length = wire.REPLY.unpack(reply)
        whole = [num * height * width for num in per_pixel]
        is_empty = 0 in (height, width)  # no decoder gives such an image
        if length > most or (kind != wire.FAILED and (is_empty or length not in whole)):
            raise ConnectionAbortedError  # an image has taken it over
        body = np.empty(length, np.uint8)
        self._fill(body.data)
        if kind == wire.FAILED:
            name, _, text = body.tobytes().decode("utf-8", "replace").partition("\n")
            found = getattr(errors, name, None)
            if not (isinstance(found, type) and issubclass(found, ImageError)):
                raise ConnectionAbortedError
            raise found(text)
        return kind, height, width, body

    def _fill(self, target: memoryview) -> None:
        if not wire.receive_into(self._socket, target):
            raise ConnectionResetError

    def end(self) -> int:
        """End the process, if it has not ended, and return its exit status."""
        assert self._process.stdin
        with self._process.stdin:
            self._socket.close()
            with contextlib.suppress(subprocess.TimeoutExpired):  # it sees that, unless stuck
                return self._process.wait(GRACE)
        return self._process.wait()  # the closed pipe has ended it


def decoder_bytes(data: bytes, pixels: int) -> int:
    """Most bytes that decoding so many pixels from this file takes, the pixels among them."""
    per_pixel = _BYTES_PER_PIXEL.get(format_name(data) or "", MAX_BYTES_PER_PIXEL)
    return per_pixel * pixels + FILE_COPIES * len(data)


def _death(status: int, data: bytes, seconds: float) -> ImageError:
    name = format_name(data) or "image"
    if status in _OVERTIME:
        return DecoderTimedOut(
            f"the decoder of this {name} did not end within {seconds:.0f} s of processor time, "
            f"or {wire.PATIENCE} times that by the clock"
        )
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return DecoderCrashed(f"the decoder of this {name} crashed ({how}), {ATTEMPTS} times")
