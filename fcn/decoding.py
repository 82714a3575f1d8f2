"""A process that decodes images for another one, so that what kills a decoder kills only it.

Run by `fcn.decoders`, never imported by it. Requests come through a socket, one at a time, and
are answered in the same order. Neither side sends anything that has to be unpickled. While it
is at work, the kernel ends this process

- when the parent dies (its end of our standard input closes),
- when one request takes more processor time than it allows, or `wire.PATIENCE` times that by the
  clock,

whatever native code is at; an idle process finds its socket closed and ends by itself. Beyond
the memory that a request allows there is none.
"""

import fcntl
import os
import resource
import signal
import socket
from pathlib import Path

import numpy as np
from PIL import AvifImagePlugin

from fcn import wire
from fcn.bands import decode_band
from fcn.errors import ImageError
from fcn.images import decode_image, image_size
from fcn.pillow import image_error

NICENESS = 5
"""The parent's network goes first: a loop over all cores waits for the slowest of them."""

_STATM = Path("/proc/self/statm")


def serve(descriptor: int) -> None:
    """Answer the requests that come through the socket of this descriptor until it is closed."""
    _end_with_the_parent()
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is told by the exit status
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # others decode beside this process
    with socket.socket(fileno=descriptor) as parent:
        parent.sendall(wire.READY)
        _be_silent()
        while request := wire.receive(parent, wire.REQUEST.size):
            task, max_pixels, seconds, memory, length = wire.REQUEST.unpack(request)
            data = bytes(wire.receive(parent, length))
            _limit_memory(memory)
            _limit_seconds(seconds)
            _answer(parent, task, data, max_pixels)


def _answer(parent: socket.socket, task: int, data: bytes, max_pixels: int) -> None:
    try:
        if task == wire.SIZE:
            height, width = image_size(data, max_pixels=max_pixels)
            reply, body = wire.REPLY.pack(wire.FOUND, height, width, 0), memoryview(b"")
        elif task == wire.DECODE_BAND:
            values = np.ascontiguousarray(decode_band(data, max_pixels=max_pixels))
            body = values.data.cast("B")
            reply = wire.REPLY.pack(wire.FOUND, *values.shape, len(body))
        else:
            image = decode_image(data, max_pixels=max_pixels, lenient=task == wire.DECODE_LENIENT)
            kind = wire.TRUNCATED if image.truncated else wire.FOUND
            body = image.pixels.data.cast("B")
            reply = wire.REPLY.pack(kind, *image.pixels.shape[:2], len(body))
    except Exception as error:  # noqa: BLE001 - bytes made to break a decoder may raise anything
        found = error if isinstance(error, ImageError) else image_error(error, data)
        text = f"{type(found).__name__}\n{found}".encode("utf-8", "replace")
        reply, body = wire.REPLY.pack(wire.FAILED, 0, 0, len(text)), memoryview(text)
    _limit_seconds(0)
    parent.sendall(reply)
    parent.sendall(body)


def _end_with_the_parent() -> None:
    # A pipe that loses its last writer sends SIGIO, which ends a process that does not expect
    # it. (PR_SET_PDEATHSIG would look at the parent's thread, and threads end before it does.)
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)


def _be_silent() -> None:
    """From now on C libraries write to nowhere: libtiff tells every oddity on stderr."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


def _limit_seconds(seconds: float) -> None:
    """End this process after so much processor time, or `wire.PATIENCE` times that; 0 is never."""
    signal.setitimer(signal.ITIMER_PROF, seconds)  # its signals end a process by default
    signal.setitimer(signal.ITIMER_REAL, wire.PATIENCE * seconds)


def _limit_memory(more: int) -> None:
    """Allow so many bytes beside those that are mapped now; where no /proc is, all there are.

    Never more than what this process was given as its own hard limit (``ulimit -v``).
    """
    if _STATM.exists():
        mapped = int(_STATM.read_text("ascii").split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        allowed = mapped + more
        if hard != resource.RLIM_INFINITY:
            allowed = min(allowed, hard)
        resource.setrlimit(resource.RLIMIT_AS, (allowed, hard))
