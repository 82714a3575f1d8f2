"""What kills a decoder costs one image: processes that really crash, hang and swell."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from fcn.decoders import START_BYTES, Decoders
from fcn.errors import (
    DecoderCrashed,
    DecoderTimedOut,
    ImageError,
    ImageTooLarge,
    TruncatedImage,
)
from fcn.images import decode_image, image_size
from tests.fcn.deadly import deadly, install, qoi

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "QOI", "TGA")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    pool = Decoders(2, seconds=0.5)
    yield pool
    pool.close()


@pytest.fixture
def deadly_decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoders]:
    install(tmp_path, monkeypatch)
    pool = Decoders(1, seconds=0.5)
    yield pool
    pool.close()


def pictures(rng: np.random.Generator) -> list[bytes]:
    """One file in every format, the JPEG turned by its EXIF orientation."""
    image = Image.fromarray(rng.integers(0, 256, (30, 41, 3), np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    files = []
    for image_format in FORMATS:
        file = io.BytesIO()
        image.save(file, image_format, **({"exif": exif} if image_format == "JPEG" else {}))
        files.append(file.getvalue())
    return files


def test_images_come_back_as_from_a_decoder_in_this_process(
    decoders: Decoders, rng: np.random.Generator
) -> None:
    for data in pictures(rng):
        size = decoders.size(data, max_pixels=10_000)
        found = decoders.decode(data, max_pixels=size[0] * size[1])
        assert size == image_size(data)
        np.testing.assert_array_equal(found.pixels, decode_image(data).pixels)
        assert found.pixels.flags.writeable
        assert not found.truncated


def photograph(rng: np.random.Generator, **options: object) -> bytes:
    """A JPEG of noise that is turned, of more than 130 kB."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    image = Image.fromarray(rng.integers(0, 256, (300, 410, 3), np.uint8))
    image.save(file, "JPEG", quality=95, exif=exif, **options)
    return file.getvalue()


@pytest.mark.parametrize("comment", [b"", bytes(60_000)])
def test_size_of_a_photograph_is_that_of_its_header_however_long(
    comment: bytes, decoders: Decoders, rng: np.random.Generator
) -> None:
    data = photograph(rng, icc_profile=2 * comment, comment=comment, progressive=bool(comment))
    assert decoders.size(data, max_pixels=200_000) == image_size(data) == (410, 300)
    with pytest.raises(ImageTooLarge, match="300 x 410 pixels"):
        decoders.size(data, max_pixels=1000)


COUNTS = """
import socket
import fcn.decoding
from fcn import wire

def serve(descriptor):
    parent = socket.socket(fileno=descriptor)
    parent.sendall(wire.READY)
    while request := wire.receive(parent, wire.REQUEST.size):
        length = len(wire.receive(parent, wire.REQUEST.unpack(request)[-1]))
        parent.sendall(wire.REPLY.pack(wire.FOUND, length, 1, 0))

fcn.decoding.serve = serve
"""


def test_for_its_size_a_photograph_is_not_sent_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    (tmp_path / "sitecustomize.py").write_text(COUNTS, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool, data = Decoders(1), photograph(rng)
    assert len(data) > 2 * START_BYTES
    assert pool.size(data, max_pixels=200_000) == (START_BYTES, 1)
    pool.close()


def test_errors_come_back_as_from_a_decoder_in_this_process(
    decoders: Decoders, rng: np.random.Generator
) -> None:
    whole = pictures(rng)[0]
    for data in (b"", b"no image", whole[: len(whole) // 2], whole[:3]):
        with pytest.raises(ImageError) as here:
            decode_image(data)
        with pytest.raises(type(here.value)) as there:
            decoders.decode(data, max_pixels=10_000)
        assert str(there.value) == str(here.value)
    with pytest.raises(ImageTooLarge, match="above the limit of 9"):
        decoders.size(whole, max_pixels=9)


def test_truncated_images_are_decoded_leniently_when_asked(
    decoders: Decoders, rng: np.random.Generator
) -> None:
    whole = pictures(rng)[0]
    cut = whole[: len(whole) * 2 // 3]
    found = decoders.decode(cut, max_pixels=10_000, lenient=True)
    assert found.truncated
    np.testing.assert_array_equal(found.pixels, decode_image(cut, lenient=True).pixels)
    with pytest.raises(TruncatedImage):
        decoders.decode(cut, max_pixels=10_000)


def test_many_threads_share_few_processes(decoders: Decoders, rng: np.random.Generator) -> None:
    files = pictures(rng) * 10
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda data: decoders.decode(data, max_pixels=10_000), files))
    for data, image in zip(files, found, strict=True):
        np.testing.assert_array_equal(image.pixels, decode_image(data).pixels)


@pytest.mark.parametrize(
    ("death", "error", "words"),
    [
        ("segfault", DecoderCrashed, r"this image crashed \(SIGSEGV\), 2 times"),
        ("abort", DecoderCrashed, r"SIGABRT"),
        ("exit", DecoderCrashed, r"exit status 7"),
        ("spin", DecoderTimedOut, r"did not end within 1 s of processor time"),
        ("swell", ImageTooLarge, r"too large to decode"),
    ],
)
def test_death_of_a_decoder_is_an_error_of_its_image(
    death: str, error: type[ImageError], words: str, deadly_decoders: Decoders
) -> None:
    good = qoi(width=20)
    start = time.monotonic()
    for _ in range(2):
        with pytest.raises(error, match=words):
            deadly_decoders.decode(deadly(death), max_pixels=1000)
        assert deadly_decoders.decode(good, max_pixels=1000).pixels.shape == (3, 20, 3)
    assert time.monotonic() - start < 20


def test_death_of_a_decoder_is_a_line_of_the_log(
    deadly_decoders: Decoders, caplog: pytest.LogCaptureFixture
) -> None:
    image = deadly("abort")
    with pytest.raises(DecoderCrashed):
        deadly_decoders.decode(image, max_pixels=1000)
    line = f"a decoding process ended with status {-signal.SIGABRT} at a file of {len(image)} bytes"
    assert caplog.messages == [line, line]


def test_decoder_that_sleeps_is_ended_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    pool = Decoders(1, seconds=0.1)
    with pytest.raises(DecoderTimedOut, match="10 times that by the clock"):
        pool.decode(deadly("sleep"), max_pixels=1000)
    pool.close()


def test_death_over_a_header_is_an_error_of_its_image(deadly_decoders: Decoders) -> None:
    with pytest.raises(DecoderCrashed, match="SIGABRT"):
        deadly_decoders.size(deadly("header"), max_pixels=1000)
    assert deadly_decoders.size(qoi(width=20), max_pixels=1000) == (3, 20)


def test_image_with_endless_scans_is_ended(decoders: Decoders) -> None:
    """A real one: each scan of a progressive JPEG goes over all its pixels again."""
    file = io.BytesIO()
    Image.new("RGB", (1000, 1000)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    endless = data[:last] + data[last:-2] * 5000 + data[-2:]
    with pytest.raises(DecoderTimedOut, match="this JPEG did not end within 2 s"):
        decoders.decode(endless, max_pixels=1_000_000)


def test_process_killed_by_accident_costs_no_image(rng: np.random.Generator) -> None:
    data, pool = pictures(rng)[1], Decoders(1)
    others = children(os.getpid())  # a Prefect server among them
    pool.decode(data, max_pixels=10_000)
    (own,) = set(children(os.getpid())) - set(others)
    os.kill(own, signal.SIGKILL)
    found = pool.decode(data, max_pixels=10_000)
    pool.close()
    np.testing.assert_array_equal(found.pixels, decode_image(data).pixels)


def test_processes_that_cannot_start_are_no_fault_of_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(3)", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="ended with status 3 before it was ready"):
        Decoders(1).decode(b"", max_pixels=1)


NO_DESCRIPTORS = """
import os, resource
from fcn.decoders import Decoders

def descriptors():
    return sorted(os.listdir("/proc/self/fd"))

Decoders(1)
before = descriptors()
resource.setrlimit(resource.RLIMIT_NOFILE, (32, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
for num_free in (0, 2, 4):  # none for a socket, for a pipe, for /dev/null
    held = []
    try:
        while True:
            held.append(os.dup(1))
    except OSError:
        pass
    for _ in range(num_free):
        os.close(held.pop())
    try:
        Decoders(1).decode(b"", max_pixels=1)
    except RuntimeError as error:
        print(error)
    for descriptor in held:
        os.close(descriptor)
    assert descriptors() == before, (num_free, before, descriptors())
"""


def test_process_that_cannot_be_forked_is_no_fault_of_the_image() -> None:
    run = subprocess.run(
        [sys.executable, "-c", NO_DESCRIPTORS],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    said = run.stdout.splitlines()
    assert len(said) == 3
    for line in said:
        assert re.search(r"started: .*Too many open files.*; allow more pro", line), line


LIMITED = """
import resource, sys
from pathlib import Path
from fcn.decoders import Decoders

resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
decoders = Decoders(1)
found = decoders.decode(Path(sys.argv[1]).read_bytes(), max_pixels=10**8)
print(*found.pixels.shape)
decoders.close()
"""


def test_decoders_keep_within_the_memory_that_their_parent_may_use(tmp_path: Path) -> None:
    """A hard limit, as by ``ulimit -v``, below what the request would allow."""
    (tmp_path / "good").write_bytes(qoi(20))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path / "good", str(3 << 30)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert (done.stdout, done.stderr) == ("3 20 3\n", "")


LIAR = """
import socket
import fcn.decoding
from fcn import wire

def serve(descriptor):
    parent = socket.socket(fileno=descriptor)
    parent.sendall(wire.READY)
    while request := wire.receive(parent, wire.REQUEST.size):
        wire.receive(parent, wire.REQUEST.unpack(request)[-1])
        parent.sendall({reply})

fcn.decoding.serve = serve
"""


@pytest.mark.parametrize(
    "reply",
    [
        "wire.REPLY.pack(wire.FOUND, 1, 1, 1 << 40)",
        "wire.REPLY.pack(wire.FOUND, 2, 2, 3) + bytes(3)",
        "wire.REPLY.pack(wire.FOUND, 0, 2, 0)",
        "wire.REPLY.pack(wire.FAILED, 0, 0, 12) + b'annotations' + bytes([10])",
    ],
)
def test_process_that_an_image_has_taken_over_is_not_believed(
    reply: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(LIAR.format(reply=reply), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool = Decoders(1)
    with pytest.raises(DecoderCrashed):
        pool.decode(qoi(width=2), max_pixels=1000)
    pool.close()


PARENT = """
import sys, threading
from pathlib import Path
from fcn.decoders import Decoders

decoders = Decoders(2)
decoders.size(Path(sys.argv[1]).read_bytes(), max_pixels=1000)
ask = lambda: decoders.decode(Path(sys.argv[2]).read_bytes(), max_pixels=1000)
threading.Thread(target=ask).start()
print("asked", flush=True)
"""


def test_no_process_outlives_a_killed_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process is idle, the other in an endless loop; the script has no main guard."""
    install(tmp_path, monkeypatch)
    (tmp_path / "good").write_bytes(qoi(20))
    (tmp_path / "bad").write_bytes(deadly("spin"))
    script = tmp_path / "script.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{PARENT}", encoding="utf-8")
    parent = subprocess.Popen(
        [sys.executable, script, tmp_path / "good", tmp_path / "bad"], stdout=subprocess.PIPE
    )
    with parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"asked\n"
        found = children(parent.pid)
        assert found
        parent.kill()
    for _ in range(100):
        alive = [pid for pid in found if is_alive(pid)]
        if not alive:
            break
        time.sleep(0.05)
    assert alive == []


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead may wait for somebody to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
