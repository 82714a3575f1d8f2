"""The memory budget, by what the kernel says of a real process and of its decoders."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.tasks.pictures import encoded, pixels, put

ROOT = Path(__file__).resolve().parents[2]

SEGMENT = """
import sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from benchmarks.hostile import NullModel
from tasks import stores
from tasks.budget import least_budget
from tasks.engine import segment
from tasks.predict_config import PredictConfig
from tasks.seconds import Seconds

limits = dict(max_image_pixels=100_000_000, max_image_bytes=4 << 20)
budget = int(sys.argv[3])
assert budget >= least_budget(*limits.values())
config = PredictConfig(memory_budget=budget, **limits)

def resident():
    pages = 0
    for process in [Path("/proc/self"), *map(Path, children())]:
        try:
            pages += int((process / "statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            pass
    return 4096 * pages

def children():
    for task in Path("/proc/self/task").glob("*/children"):
        yield from (f"/proc/{child}" for child in task.read_text().split())

def watch():
    while not done.is_set():
        most[0] = max(most[0], resident())
        time.sleep(0.005)

entries = list(stores.list_entries(sys.argv[2]))
small = [entry for entry in entries if "small" in entry.key]
segment(small, NullModel(), config, seconds=Seconds())  # everything is loaded and started
most, done = [0], threading.Event()
before = resident()
watcher = threading.Thread(target=watch)
watcher.start()
with ThreadPoolExecutor(2) as shards:
    halves = [entries[::2], entries[1::2]]
    jobs = [shards.submit(segment, half, NullModel(), config, seconds=Seconds()) for half in halves]
    rows = [row for job in jobs for row in job.result()]
done.set()
watcher.join()
assert {row.status for row in rows} == {"ok"}, rows
print(most[0] - before)
"""


def test_images_of_100_megapixels_stay_within_the_budget(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """One of the large images at a time: 0.65 GB measured, and 1.2 GB without a bound."""
    large = io.BytesIO()
    Image.new("RGB", (10_000, 10_000), (9, 80, 70)).save(large, "JPEG", quality=30)
    files = {f"large-{number}.jpg": large.getvalue() for number in range(4)}
    files |= {f"small-{number:02}.png": encoded(pixels(rng, 300, 400)) for number in range(40)}
    put(str(tmp_path), files)
    budget = 4_040_000_000

    peak = int(
        subprocess.run(
            [sys.executable, "-c", SEGMENT, str(ROOT), str(tmp_path), str(budget)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )

    assert 400_000_000 < peak < 900_000_000 < budget
