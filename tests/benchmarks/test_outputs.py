"""The comparison of outputs, on files and on S3: it sees what was planted, and nothing else."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import fcn
from benchmarks.kills import Job, make_job, run_functions, take
from benchmarks.outputs import Output, differences, faults, read_output
from tasks import parts, stores


@pytest.fixture(params=["files", "s3"])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Job:
    """Twelve images in two shards, done once."""
    place = tmp_path / "place"
    url = str(place) if request.param == "files" else request.getfixturevalue("s3").new_bucket()
    job = make_job(url, tmp_path, num_images=12, seed=0)
    run_functions(job)
    return job


def other_mask(job: Job) -> None:
    """One pixel of one row, in a part that is whole and says nothing of it."""
    url = parts.part_url(job.output, 0, 1)
    table = pq.read_table(io.BytesIO(stores.read_bytes(url)))
    masks = table["mask"].to_pylist()
    label = fcn.decode_mask(masks[1]["bytes"]).copy()
    label[0, 0] += 1
    masks[1]["bytes"] = fcn.encode_mask(label)
    place = table.column_names.index("mask")
    changed = table.set_column(place, table.field("mask"), [masks])
    sink = io.BytesIO()
    pq.write_table(changed, sink)
    stores.write_bytes(url, sink.getvalue())


def other_object(job: Job) -> None:
    png = fcn.encode_mask(np.zeros((2, 2), np.uint8))
    stores.write_bytes(f"{job.output}/masks/0003.png.png", png)


def lost_object(job: Job) -> None:
    stores.remove(f"{job.output}/masks/0003.png.png")


def lost_part(job: Job) -> None:
    stores.remove(parts.part_url(job.output, 0, 1))


def key_twice(job: Job) -> None:
    again = stores.read_bytes(parts.part_url(job.output, 0, 1))
    stores.write_bytes(parts.part_url(job.output, 1, 0), again)


MASK_0003 = "file masks/0003.png.png"
PART = "file parts/run=00000/part-00001.parquet"
OTHER = "unlike the undisturbed output's"
PLANTED: list[tuple[Callable[[Job], None], list[str], list[str]]] = [
    (
        other_mask,
        ["mask 0011.png: another one in its PNG object"],
        [f"{PART}: {OTHER}", f"row 0011.png: {OTHER}"],
    ),
    (other_object, ["mask 0003.png: another one in its PNG object"], [f"{MASK_0003}: {OTHER}"]),
    (lost_object, ["mask 0003.png: another one in its PNG object"], [f"{MASK_0003}: missing"]),
    (
        lost_part,
        ["row 0010.png: there are 0", "row 0011.png: there are 0"],
        [f"{PART}: missing", "row 0010.png: missing", "row 0011.png: missing"],
    ),
    (
        key_twice,
        ["row 0010.png: there are 2", "row 0011.png: there are 2"],
        [
            "file parts/run=00001/part-00000.parquet: not in the undisturbed output",
            f"row 0010.png: {OTHER}",
            f"row 0011.png: {OTHER}",
        ],
    ),
]


def test_what_differs_is_told_and_nothing_else(job: Job) -> None:
    """All of it on files; on S3, where a run takes longer, one pixel."""
    calm = take(job)
    assert not stores.exists(job.output)
    assert calm.rows.keys() == set(job.keys)
    assert {"_index.json", "masks/0011.png.png"} < calm.files.keys()

    for plant, broken, unlike in PLANTED if stores.local_path(job.output) else PLANTED[:1]:
        run_functions(job)
        assert compared(read_output(job.output), calm, job) == ([], [])
        plant(job)
        assert compared(take(job), calm, job) == (broken, unlike)


def compared(output: Output, calm: Output, job: Job) -> tuple[list[str], list[str]]:
    return list(faults(output, job.keys)), list(differences(output, calm))
