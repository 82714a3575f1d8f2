"""Predictions killed at random moments and started again: do they end like undisturbed ones?

::

    python -m benchmarks.kills                         # 94 kills, and 6 of the whole flow
    python -m benchmarks.kills --stores s3 --kills 20 --flow-kills 0
    python -m benchmarks.kills --stores s3://bucket/empty az://container/empty

A *storm* is one output. Runs over it are killed with SIGKILL until one comes through, or until
three race for the rest; two of these are stopped (SIGSTOP) somewhere and go on together when the
third is through, as zombies. Then every file, row and mask of the output is compared with those
of an undisturbed run (`benchmarks.outputs`), and the next storm begins. The checkout has to stay
as it is meanwhile: a manifest tells its commit.

The kills are spread over the stores: files of this machine, moto's S3 server in a process of its
own, or any URL that fsspec opens, with credentials and endpoint from the environment. Most runs
are processes that do what the flow does through the same functions, since a start of Prefect
takes seconds; the last kills are of ``python -m flows predict``. Writes
``docs/benchmarks/kills.md``.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import shlex
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from benchmarks.machine import describe
from benchmarks.moto_store import moto_bucket
from benchmarks.outputs import Output, differences, faults, is_part, read_output
from tasks import parts, stores
from tasks.plan import plan_run
from tasks.predict_config import PredictConfig
from tasks.shards import write_part
from tests.tasks.pictures import encoded, pixels, put, save_model

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks" / "kills.md"

CONFIG = PredictConfig(images_per_shard=10, max_failed=1, sinks=("parquet", "png"))
NUM_ZOMBIES = 2

# Runs are forked off a process that has imported everything: real ones, without its seconds.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__, "torchvision", "simplejpeg"])


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is predicted, and where to.

    Attributes:
        collection: URL of the images.
        keys: theirs.
        model: URL of the model.
        output: URL of what the runs write.
        scratch: a folder for what runs of the flow need beside that.
        interval: seconds between two looks at the output.
    """

    collection: str
    keys: tuple[str, ...]
    model: str
    output: str
    scratch: Path
    interval: float


@dataclass
class Report:
    """What was done to the runs, and what it came to.

    Attributes:
        kills: runs killed, by what was there at that moment.
        storms: outputs that came to their end and were compared.
        zombies: runs that were stopped half-way and went on when another was through.
        files: files compared with those of an undisturbed run.
        rows: rows compared so, with the label maps of their masks.
        remains: temporary files that killed writers left.
        differences: what is unlike the undisturbed run; nothing is the promise.
    """

    kills: Counter[str] = field(default_factory=Counter)
    storms: int = 0
    zombies: int = 0
    files: int = 0
    rows: int = 0
    remains: int = 0
    differences: list[str] = field(default_factory=list)


def make_job(place: str, scratch: Path, num_images: int, seed: int) -> Job:
    """Images of four sizes, two of them damaged, and a model with random weights."""
    rng = np.random.default_rng(seed)
    sizes = [(48 + index % 4, 64) for index in range(num_images)]
    images = {f"{index:04d}.png": encoded(pixels(rng, *size)) for index, size in enumerate(sizes)}
    images |= {"0007.png": b"no image", "0010.png": images["0010.png"][:200]}
    put(f"{place}/in", images)
    model = f"{place}/model.safetensors"
    stores.create_file(model, Path(save_model(scratch / "model")))
    return Job(
        collection=f"{place}/in",
        keys=tuple(images),
        model=model,
        output=f"{place}/out",
        scratch=scratch,
        interval=0.005 if stores.local_path(place) else 0.05,
    )


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
    log = os.open(job.scratch / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["PREFECT_HOME"] = str(job.scratch / f"prefect-{os.getpid()}")
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
    """Storms, one after the other, until so many runs were killed.

    Raises:
        RuntimeError: the undisturbed run itself breaks the promise, or a run that nobody killed
            failed.
    """
    Run(job, target).finish()
    calm, report = take(job), Report()
    if found := list(faults(calm, job.keys)):
        raise RuntimeError(f"the undisturbed run: {found[:5]}")
    while report.kills.total() < kills:
        storm(job, target, calm, chance, report, kills)
        print(report, flush=True)
    return report


def storm(
    job: Job,
    target: Callable[[Job], None],
    calm: Output,
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
    output = take(job)
    report.storms += 1
    report.files += len(output.files)
    report.rows += sum(map(len, output.rows.values()))
    report.remains += output.num_remains
    report.differences += [*faults(output, job.keys), *differences(output, calm)]


def ended_before(run: Run, job: Job, calm: Output, chance: random.Random) -> bool:
    """Wait for a random moment: some more files, and a little; whether the run ended before."""
    awaited = len(names(job)) + chance.randrange(len(calm.files) // 3)
    while len(names(job)) < awaited:
        if run.ended_within(job.interval):
            return True
    return run.ended_within(chance.uniform(0, 10 * job.interval))


def race(job: Job, target: Callable[[Job], None], calm: Output, chance: random.Random) -> int:
    """Three runs at once; two sleep from somewhere until the other is through, and race then.

    Returns:
        How many were still at work when they were stopped.
    """
    other, *zombies = [Run(job, target) for _ in range(1 + NUM_ZOMBIES)]
    for zombie in zombies:
        if not ended_before(zombie, job, calm, chance):
            zombie.send(signal.SIGSTOP)
    try:
        other.finish()
        stopped = [zombie for zombie in zombies if not zombie.ended_within(0)]
    finally:  # a sleeper could not even be ended
        for zombie in zombies:
            zombie.send(signal.SIGCONT)
    for zombie in stopped:
        zombie.finish()
    return len(stopped)


def names(job: Job) -> list[str]:
    """The files that an output has so far; while others write, a local one may vanish meanwhile."""
    path = stores.local_path(job.output)
    if path is not None:
        return [
            f"{folder.removeprefix(str(path))}/{name}".lstrip("/")
            for folder, _, found in os.walk(path)
            for name in found
        ]
    if not stores.exists(job.output):
        return []
    return [entry.key for entry in stores.list_entries(f"{job.output}/")]


def stage(job: Job, calm: Output) -> str:
    """How far an output is."""
    there = names(job)
    num_parts = sum(map(is_part, there))
    if parts.INDEX_NAME in there:
        return "index written"
    if num_parts == sum(map(is_part, calm.files)):
        return "all parts, no index"
    if num_parts:
        return "some parts"
    has_manifest = any(name.startswith("manifest/") for name in there if name in calm.files)
    return "manifest, no part" if has_manifest else "no manifest"


def take(job: Job) -> Output:
    """What the output holds, which is removed: the next one has to have the same URL."""
    output = read_output(job.output)
    fs, path = stores.filesystem(job.output)
    fs.rm(path, recursive=True)
    return output


@contextlib.contextmanager
def place_of(store: str) -> Iterator[tuple[str, str]]:
    """Name of a store for the page, and URL of an empty place there."""
    if store == "local":
        with tempfile.TemporaryDirectory(prefix="kills-") as work:
            yield "local files", work
    elif store == "s3":
        yield "S3 (moto)", f"s3://{BUCKET}/{time.monotonic_ns()}"
    else:
        yield store.partition("://")[0], store.rstrip("/")


BUCKET = "kills"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--stores", nargs="+", default=["local", "s3"], metavar="STORE",
                        help="local, s3 (moto, in a process of its own), or URLs")  # fmt: skip
    parser.add_argument("--kills", type=int, default=94, help="of the functions of the flow")
    parser.add_argument("--flow-kills", type=int, default=6, help="of python -m flows predict")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    lines = []
    with moto_bucket(BUCKET) if "s3" in args.stores else contextlib.nullcontext():
        for name, target, kills in [
            ("the flow's functions", run_functions, args.kills),
            ("`python -m flows predict`", run_flow, args.flow_kills),
        ]:
            for number, store in enumerate(args.stores):
                if share := (kills + number) // len(args.stores):
                    lines.append(line(name, store, target, share, args.images, args.seed))
                    PAGE.write_text(page(args.images, lines), encoding="utf-8")


def line(
    name: str, store: str, target: Callable[[Job], None], kills: int, num_images: int, seed: int
) -> str:
    """A line of the page's table; ends the process where something is unlike."""
    with place_of(store) as (where, place), tempfile.TemporaryDirectory() as scratch:
        job, start = make_job(place, Path(scratch), num_images, seed), time.monotonic()
        report = storms(job, target, random.Random(seed), kills)
    text = row(name, where, report, time.monotonic() - start)
    print(text, *report.differences, sep="\n", flush=True)
    if report.differences:
        sys.exit(1)
    return text


def row(name: str, where: str, report: Report, seconds: float) -> str:
    """The line with these cells."""
    moments = "; ".join(f"{stage}: {count}" for stage, count in sorted(report.kills.items()))
    cells = (
        *(name, where, report.kills.total(), moments, report.storms, report.zombies),
        *(f"{report.files:,}", f"{report.rows:,}", len(report.differences), report.remains),
        f"{seconds:.0f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def page(num_images: int, lines: list[str]) -> str:
    """The result as Markdown."""
    shards = -(-num_images // CONFIG.images_per_shard)
    columns = (
        *("killed", "store", "kills", "what was there", "outputs", "zombies", "files compared"),
        *("rows compared", "different", "temporary files left", "seconds"),
    )
    return f"""# Killed predictions

{num_images} small images in {shards} shards, masks in parts and as PNG objects; images, model and
output on the store named. Runs were killed with SIGKILL at random moments and started again on the
same output, until one came through before its moment, or by a race: three runs do the rest at
once, two of them are stopped half-way, and both go on when the third is through (zombies). Of every
output, every file (parts, masks, manifest, index) was compared with an undisturbed run's, and so
was every row with the label map of its mask; every key of the collection has one row.

| {" | ".join(columns)} |
{"|---" * len(columns)}|
{chr(10).join(lines)}

Temporary files are what writers killed within a write left on the local file system: their
names begin with a dot and end with .tmp, and no reader takes them for anything. The S3 server is
moto's, in a process that nobody killed.

Command: `{shlex.join(["python", "-m", "benchmarks.kills", *sys.argv[1:]])}`

{describe()}
"""


if __name__ == "__main__":
    main()
