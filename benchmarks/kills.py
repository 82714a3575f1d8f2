"""Predictions killed at random moments and started again: do they end like undisturbed ones?

::

    python -m benchmarks.kills                            # 94 kills, and 6 of the whole flow
    python -m benchmarks.kills --kills 20 --flow-kills 0

A *storm* is one output. Runs over it are killed with SIGKILL until one comes through, or
until two race for the rest; one of these is stopped (SIGSTOP) somewhere and goes on when the
other is through, a zombie. Then every file of the output is compared with those of an
undisturbed run, byte by byte, and the next storm begins.

Most runs are processes that do what the flow does through the same functions, since a start
of Prefect takes seconds; the last kills are of ``python -m flows predict``. Writes
``docs/benchmarks/kills.md``.
"""

import argparse
import contextlib
import hashlib
import multiprocessing
import os
import random
import shlex
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from benchmarks.machine import describe
from tasks import parts
from tasks.plan import plan_run
from tasks.predict_config import PredictConfig
from tasks.shards import write_part
from tests.tasks.pictures import encoded, pixels, put, save_model

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks" / "kills.md"

CONFIG = PredictConfig(images_per_shard=10, max_failed=1, sinks=("parquet", "png"))

# Runs are forked off a process that has imported everything: real ones, without its seconds.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__, "torchvision", "simplejpeg"])


@dataclass(frozen=True)
class Job:
    """What is predicted, and where to."""

    collection: str
    model: str
    output: str


@dataclass
class Report:
    """What was done to the runs, and what it came to.

    Attributes:
        kills: runs killed, by what was there at that moment.
        storms: outputs that came to their end and were compared.
        zombies: runs that were stopped half-way and went on when another was through.
        files: files compared with those of an undisturbed run.
        remains: temporary files that killed writers left.
        differences: files unlike those of the undisturbed run; none is the promise.
    """

    kills: Counter[str] = field(default_factory=Counter)
    storms: int = 0
    zombies: int = 0
    files: int = 0
    remains: int = 0
    differences: list[str] = field(default_factory=list)


def make_job(work: Path, num_images: int, seed: int) -> Job:
    """Images of four sizes, two of them damaged, and a model with random weights."""
    rng = np.random.default_rng(seed)
    sizes = [(48 + index % 4, 64) for index in range(num_images)]
    images = {f"{index:04d}.png": encoded(pixels(rng, *size)) for index, size in enumerate(sizes)}
    images |= {"0017.png": b"no image", "0030.png": images["0030.png"][:200]}
    put(str(work / "in"), images)
    model = save_model(work / "model.safetensors")
    return Job(collection=str(work / "in"), model=model, output=str(work / "out"))


def run_functions(job: Job) -> None:
    """What the flow does, without Prefect."""
    plan = plan_run(job.collection, job.model, job.output, CONFIG)
    for number in plan.missing:
        write_part(plan.manifest, number, job.model, CONFIG)
    if not parts.is_indexed(job.output):
        parts.write_index(job.output, plan.manifest.card.model.label_classes())


def run_flow(job: Job) -> None:
    """The whole flow by its command, with a server of its own; it writes to a log."""
    os.setsid()  # the server is in the flow's group, to be found when the flow was killed
    log = os.open(f"{job.output}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["PREFECT_HOME"] = f"{job.output}.prefect"
    options = {
        "collection-url": job.collection,
        "model-url": job.model,
        "output-url": job.output,
        "config.images-per-shard": str(CONFIG.images_per_shard),
        "config.max-failed": str(CONFIG.max_failed),
        "config.sinks": ",".join(CONFIG.sinks),
    }
    given = [text for name, value in options.items() for text in (f"--{name}", value)]
    os.execv(sys.executable, [sys.executable, "-m", "flows", "predict", *given])


class Run:
    """A run in a process of its own."""

    def __init__(self, job: Job, target: Callable[[Job], None]) -> None:
        self.process: BaseProcess = _PROCESSES.Process(target=target, args=(job,))
        self.process.start()

    def ended_within(self, seconds: float) -> bool:
        """Whether it came to its end by itself.

        Raises:
            RuntimeError: it did, and failed.
        """
        self.process.join(seconds)
        if self.process.exitcode:
            raise RuntimeError(f"a run ended with exit status {self.process.exitcode}")
        return self.process.exitcode == 0

    def finish(self) -> None:
        """Wait for the end.

        Raises:
            RuntimeError: it failed, or does not end.
        """
        if not self.ended_within(300):
            self.kill()
            raise RuntimeError("a run did not end within five minutes")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid or 0, number)

    def kill(self) -> None:
        """SIGKILL, and then the server of a flow, which goes on for a while."""
        self.process.kill()
        self.process.join()
        with contextlib.suppress(ProcessLookupError):  # no leader of a group: no flow
            os.killpg(self.process.pid or 0, signal.SIGKILL)


def storms(job: Job, target: Callable[[Job], None], chance: random.Random, kills: int) -> Report:
    """Storms, one after the other, until so many runs were killed."""
    Run(job, target).finish()
    (calm, _), report = take_files(job), Report()
    while report.kills.total() < kills:
        storm(job, target, calm, chance, report, kills)
        print(report, flush=True)
    return report


def storm(
    job: Job,
    target: Callable[[Job], None],
    calm: dict[str, str],
    chance: random.Random,
    report: Report,
    kills: int,
) -> None:
    """Kill runs into one new output, until there are ``kills``, and compare what comes out."""
    goes_on = True
    while goes_on:
        victim = Run(job, target)
        if ended_before(victim, job, calm, chance):
            break
        victim.kill()
        report.kills[stage(job, calm)] += 1
        goes_on = report.kills.total() < kills and chance.random() < 0.85
    else:
        report.zombies += race(job, target, calm, chance)
    files, remains = take_files(job)
    names = sorted(files.keys() | calm.keys())
    report.storms += 1
    report.files += len(files)
    report.remains += remains
    report.differences += [name for name in names if files.get(name) != calm.get(name)]


def ended_before(run: Run, job: Job, calm: dict[str, str], chance: random.Random) -> bool:
    """Wait for a random moment: some more files, and up to 50 ms; whether the run ended before."""
    awaited = count_files(job) + chance.randrange(len(calm) // 3)
    while count_files(job) < awaited:
        if run.ended_within(0.005):
            return True
    return run.ended_within(chance.uniform(0, 0.05))


def race(
    job: Job, target: Callable[[Job], None], calm: dict[str, str], chance: random.Random
) -> bool:
    """Two runs at once, one of which sleeps from somewhere until the other is through.

    Returns:
        Whether it was still at work when it was stopped.
    """
    zombie, other = Run(job, target), Run(job, target)
    if not ended_before(zombie, job, calm, chance):
        zombie.send(signal.SIGSTOP)
    other.finish()
    stopped = not zombie.ended_within(0)
    if stopped:
        zombie.send(signal.SIGCONT)
    zombie.finish()
    return stopped


def count_files(job: Job) -> int:
    """Files that an output has so far."""
    return sum(len(names) for _, _, names in os.walk(job.output))


def stage(job: Job, calm: dict[str, str]) -> str:
    """How far an output is."""
    output = Path(job.output)
    total = sum(name.startswith("parts/") for name in calm)
    there = len(list(output.glob("parts/*/*.parquet")))
    if (output / parts.INDEX_NAME).exists():
        return "index written"
    if there == total:
        return "all parts, no index"
    if there:
        return "some parts"
    return "manifest, no part" if list(output.glob("manifest/*/*.parquet")) else "no manifest"


def take_files(job: Job) -> tuple[dict[str, str], int]:
    """Digest of every file of an output by name, and its number of temporary files.

    The output is moved away: rows hold its URL, so that the next one must have the same.
    """
    output = Path(job.output)
    found = [path for path in output.rglob("*") if path.is_file()]
    whole = [path for path in found if path.suffix != ".tmp"]
    digests = {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in whole
    }
    output.rename(f"{output}-{time.monotonic_ns()}")
    return digests, len(found) - len(whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=94, help="of the functions of the flow")
    parser.add_argument("--flow-kills", type=int, default=6, help="of python -m flows predict")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    lines = []
    for name, target, kills in [
        ("the flow's functions", run_functions, args.kills),
        ("`python -m flows predict`", run_flow, args.flow_kills),
    ]:
        if not kills:
            continue
        with tempfile.TemporaryDirectory(prefix="kills-") as work:
            job, start = make_job(Path(work), args.images, args.seed), time.monotonic()
            report = storms(job, target, random.Random(args.seed), kills)
            lines.append(row(name, report, time.monotonic() - start))
            print(lines[-1], *report.differences, sep="\n", flush=True)
            if report.differences:
                sys.exit(1)
    PAGE.write_text(page(args.images, lines), encoding="utf-8")


def row(name: str, report: Report, seconds: float) -> str:
    """A line of the page's table."""
    moments = "; ".join(f"{stage}: {count}" for stage, count in sorted(report.kills.items()))
    cells = (
        *(name, report.kills.total(), moments, report.storms, report.zombies),
        *(f"{report.files:,}", len(report.differences), report.remains, f"{seconds:.0f}"),
    )
    return f"| {' | '.join(map(str, cells))} |"


def page(num_images: int, lines: list[str]) -> str:
    """The result as Markdown."""
    shards = -(-num_images // CONFIG.images_per_shard)
    columns = (
        *("killed", "kills", "what was there", "outputs", "races", "files compared"),
        *("different", "temporary files left", "seconds"),
    )
    return f"""# Killed predictions

{num_images} small images in {shards} shards, masks in parts and as PNG objects. Runs were killed
with SIGKILL at random moments and started again on the same output. In a race two runs do the
rest at once; one of them is stopped half-way and goes on when the other is through. Every file
of every output, parts, masks, manifest and index, was compared with an undisturbed run's.

| {" | ".join(columns)} |
{"|---" * len(columns)}|
{chr(10).join(lines)}

Temporary files are what writers killed within a write left on the local file system: their
names begin with a dot and end with .tmp, and no reader takes them for anything.

Command: `python -m benchmarks.kills {shlex.join(sys.argv[1:])}`

{describe()}
"""


if __name__ == "__main__":
    main()
