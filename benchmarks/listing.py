"""What it costs to list and plan a collection on S3 and in local folders, by the number of keys.

::

    python -m benchmarks.listing --work DIR --keys 10000 100000 1000000

The S3 endpoint is a server on this machine that makes up pages of 1,000 keys
(`benchmarks.list_server`); its own cost is shown apart. The local files are empty. No image is
read. Every step is a process of its own, for its peak of memory. Linux only. Writes
``docs/benchmarks/listing.md``.
"""

import argparse
import http.client
import multiprocessing
import os
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import fcn
from benchmarks.growth import CLASSES, CONFIG, memory
from benchmarks.list_server import PREFIX, key, listed
from benchmarks.machine import command, describe
from fcn.input import TORCHVISION
from tasks import s3_pages, stores
from tasks.pages import paged
from tasks.plan import plan_run

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "listing.md"
BUCKET = "s3://bucket"
URL = f"{BUCKET}/{PREFIX.rstrip('/')}"


def requests_alone(_: Path) -> int:
    """Every page asked for and received, and nothing made of it."""
    server = http.client.HTTPConnection(urlsplit(os.environ["AWS_ENDPOINT_URL"]).netloc)
    token, count = "0", 0
    while token:
        server.request("GET", f"/bucket?list-type=2&continuation-token={token}")
        body = server.getresponse().read()
        found = re.search(rb"<NextContinuationToken>(\d+)<", body[:1000])
        token = found[1].decode() if found else ""
        count += body.count(b"<Contents>")
    return count


def botocore_pages(_: Path) -> int:
    """Pages through s3fs, parsed by botocore."""
    fs, bucket = stores.filesystem(BUCKET)
    position: dict[str, str] = {}
    count = 0
    while True:
        answer = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=PREFIX, **position)
        count += len(answer["Contents"])
        if not answer["IsTruncated"]:
            return count
        position = {"ContinuationToken": answer["NextContinuationToken"]}


def our_pages(_: Path) -> int:
    """Pages through s3fs, parsed with expat."""
    fs, bucket = stores.filesystem(BUCKET)
    return sum(map(len, s3_pages.pages(fs, bucket, PREFIX)))


def list_s3(_: Path) -> int:
    """Pages of entries."""
    return sum(page.num_rows for page in paged(stores.list_entries(URL)))


def list_local(work: Path) -> int:
    return sum(page.num_rows for page in paged(stores.list_entries(str(work / "files"))))


def plan_s3(work: Path) -> int:
    return _plan(URL, work)


def plan_local(work: Path) -> int:
    return _plan(str(work / "files"), work)


def _plan(url: str, work: Path) -> int:
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    return plan_run(url, str(work / "model.safetensors"), str(out), CONFIG).num_missing


STEPS: dict[str, tuple[str, Callable[[Path], int]]] = {
    "requests alone": ("S3", requests_alone),
    "pages, by botocore": ("S3", botocore_pages),
    "pages, by expat": ("S3", our_pages),
    "list": ("S3", list_s3),
    "plan": ("S3", plan_s3),
    "list, local": ("local", list_local),
    "plan, local": ("local", plan_local),
}
"""What is measured, and of which store."""

MOST_KEYS = {
    "requests alone": 100_000,
    "pages, by botocore": 100_000,
    "pages, by expat": 100_000,
    "list, local": 100_000,
}
"""Of the steps that are parts of others; a million by botocore takes five minutes."""


def measure(step: str, work: Path, num: int) -> tuple[float, float, float, float]:
    """Seconds by the clock and of the processor, MiB before and at the peak."""
    before, cpu, start = memory("VmRSS"), time.process_time(), time.perf_counter()
    count = STEPS[step][1](work)
    seconds, spent = time.perf_counter() - start, time.process_time() - cpu
    assert count == num, (step, count, num)
    return seconds, spent, before, memory("VmHWM")


def measured(step: str, work: Path, num: int) -> str:
    """A row of the table."""
    with listed(num) as server:
        os.environ |= {
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        idle = server.seconds()
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as processes:
            found = processes.submit(measure, step, work, num).result()
        seconds, spent, before, peak = found
        of_server = f"{server.seconds() - idle:.1f}" if STEPS[step][0] == "S3" else ""
    cells = (
        *(step, f"{num:,}", f"{seconds:.1f}", f"{spent:.1f}", f"{1e6 * spent / num:.1f}"),
        *(of_server, f"{before:.0f}", f"{peak:.0f}"),
    )
    print(*cells, sep=" | ", flush=True)
    return f"| {' | '.join(cells)} |"


def make_files(folder: Path, num: int) -> None:
    """As many empty files, 500 in a folder, under the keys of the server."""
    for number in range(num):
        path = folder / key(number).removeprefix(PREFIX)
        if number % 500 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT))


HEAD = """# Listing and planning by the number of keys

| step | keys | seconds | CPU seconds | CPU µs per key | server's CPU s | MiB before | MiB peak |
|---|---|---|---|---|---|---|---|"""

NOTES = """
- **requests alone**: every page asked for and received with `http.client`, nothing made of it: what
  this server and the loopback interface cost.
- **pages, by botocore** and **by expat**: through s3fs, the answers parsed by botocore, and as
  `tasks/s3_pages.py` does.
- **list**: through `tasks.stores.list_entries` into pages of entries.
- **plan**: `tasks.plan.plan_run`: patterns, order and names checked, the manifest written to a
  local disk; with loading the model (SqueezeNet).
- **local**: the same keys as empty files, 500 in a folder; the system has their metadata in memory.

The server makes up pages of 1,000 keys of 60 characters, as S3 writes them, on the same machine:
no network, no delay. A store that takes 100 ms a page adds 100 s to a million keys. Every row is a
process of its own; its memory before is that of the imports (torch). What is a part of **plan** is
measured of at most 100,000 keys, but for the list of S3.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="where everything goes")
    parser.add_argument("--keys", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--page", type=Path, default=PAGE, help="where the page is written")
    args = parser.parse_args()
    rows: dict[tuple[str, int], str] = {}
    for num in args.keys:
        work = args.work.resolve() / str(num)
        make_files(work / "files", num)
        net = fcn.FCN("squeezenet1_1", len(CLASSES), 8)
        fcn.save(fcn.Model(net, CLASSES, TORCHVISION), work / "model.safetensors")
        for step in STEPS:
            if num <= MOST_KEYS.get(step, num):
                rows[step, num] = measured(step, work, num)
    lines = [rows[step, num] for step in STEPS for num in args.keys if (step, num) in rows]
    load = (
        f"Load of the machine when it was through: {os.getloadavg()[1]:.0f} (mean of five minutes)."
        " Where it is\nmore than one, seconds are more than a machine of one's own takes.\n"
    )
    told = command("listing") + "\n\n" + load
    args.page.write_text("\n".join([HEAD, *lines, NOTES, told, describe(), ""]), "utf-8")


if __name__ == "__main__":
    main()
