"""Runs become one: every reader sees the same rows before, meanwhile and afterwards."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from tasks import manifest as manifests
from tasks import part_file, parts, stores
from tasks.findings import Seen
from tasks.merge import MergeError, plan_merge, remove_merged, write_merged
from tasks.output_check import check_output
from tasks.plan import plan_run
from tasks.predict_config import PredictConfig
from tasks.shards import write_part_with
from tests.tasks.pictures import Brightness, encoded, pixels, put, save_model

ROOT = Path(__file__).resolve().parents[2]
CONFIG = PredictConfig(images_per_shard=2)
OTHER = PredictConfig(images_per_shard=3, mask_format="rle")

# Merges copies of an output, each killed one write, link or removal later than the last one.
KILLED = """
import os, shutil, signal, sys
from tasks.merge import plan_merge, remove_merged, write_merged
from tests.tasks.test_merge import merge

output = sys.argv[1]
for number in range(1000):
    copy = f"{output}-{number}"
    shutil.copytree(output, copy)
    child = os.fork()
    if not child:
        left = [number]
        def kill_in_time(event, arguments):
            changes = event in {"os.link", "os.remove", "os.rename"} or (
                event == "open" and arguments[1] and set(arguments[1]) & set("wx")
            )
            if changes and str(arguments[0]).startswith(copy):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(kill_in_time)
        merge(copy)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status != signal.SIGKILL:
        sys.exit(status)
"""


def merge(output_url: str) -> None:
    """What the flow does, without Prefect."""
    plan = plan_merge(output_url)
    if plan:
        write_merged(plan)
        remove_merged(plan)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of a model file."""
    return save_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture
def collection(tmp_path: Path, rng: np.random.Generator) -> str:
    url = str(tmp_path / "in")
    put(url, {f"{index}.png": encoded(pixels(rng)) for index in range(7)} | {"bad.png": b"bad"})
    return url


def predict(
    collection: str, model: str, output: str, config: PredictConfig = CONFIG, *shards: int
) -> int:
    """A run (of these shards alone, if some are named), without a network; how many images."""
    plan = plan_run(collection, model, output, config)
    for number in shards or plan.missing:
        write_part_with(Brightness(), plan.manifest, number, config)
    if plan.missing and not shards:
        parts.write_index(output, Brightness.classes)
    return plan.num_missing


@pytest.fixture
def output(tmp_path: Path, collection: str, model: str, rng: np.random.Generator) -> str:
    """Three runs: all images, a changed and a new one, and two with other settings."""
    url = str(tmp_path / "out")
    predict(collection, model, url)
    put(collection, {"2.png": encoded(pixels(rng, 20, 20)), "25.png": encoded(pixels(rng))})
    stores.remove(f"{collection}/6.png")
    predict(collection, model, url)
    predict(f"{collection}/[34].png", model, url, OTHER)
    return url


def rows(output_url: str) -> dict[str, dict[str, Any]]:
    """The newest row of every key, without what a merge changes."""
    found = parts.read(output_url).to_table().to_pylist()
    names = ("mask", "mask_rle")
    by_key = {row["key"]: {name: row.get(name) for name in {*row, *names}} for row in found}
    assert len(by_key) == len(found)
    for row in by_key.values():
        del row["run"]
    return by_key


def files(output_url: str) -> dict[str, bytes]:
    """The output's objects by name, without what a killed writer may leave."""
    found = (path for path in Path(output_url).rglob("*") if path.is_file())
    return {
        str(path.relative_to(output_url)): path.read_bytes()
        for path in found
        if path.suffix != ".tmp"
    }


def test_plain_readers_see_every_key_once_and_ours_the_same_rows(output: str) -> None:
    before = rows(output)
    merge(output)
    assert rows(output) == before
    plain: pa.Table = ds.dataset(f"{output}/parts", format="parquet").to_table()
    assert plain["key"].to_pylist() == sorted(before)
    assert list(parts.listed(output)) == manifests.runs(output) == [3]
    assert list(check_output(output, Seen())) == []


def test_rows_keep_their_run_digest_and_what_is_done_stays_done(
    output: str, collection: str, model: str, rng: np.random.Generator
) -> None:
    digests = {run: manifests.read(output, run).card.run_digest for run in (0, 2)}
    merge(output)
    found = {key: row["run_digest"] for key, row in rows(output).items()}
    assert [key for key, digest in found.items() if digest == digests[2]] == ["3.png", "4.png"]
    assert sum(digest == digests[0] for digest in found.values()) == len(found) - 2

    assert predict(f"{collection}/[34].png", model, output, OTHER) == 0
    assert predict(f"{collection}/[!34]*.png", model, output) == 0
    put(collection, {"1.png": encoded(pixels(rng, 8, 8)), "new.png": encoded(pixels(rng))})
    assert predict(f"{collection}/[!34]*.png", model, output) == 2
    assert list(parts.listed(output)) == [3, 4]
    merge(output)
    assert rows(output)["1.png"]["height"] == 8
    assert list(check_output(output, Seen())) == []


def test_image_that_could_not_be_read_is_still_to_be_done(
    collection: str, model: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    output = str(tmp_path / "out")
    plan = plan_run(collection, model, output, CONFIG)
    stores.remove(f"{collection}/4.png")
    for number in plan.missing:
        write_part_with(Brightness(), plan.manifest, number, CONFIG)
    put(collection, {"new.png": encoded(pixels(rng)), "4.png": encoded(pixels(rng))})
    predict(f"{collection}/new.png", model, output)
    merge(output)
    assert plan_run(collection, model, output, CONFIG).num_missing == 1


def test_run_that_was_given_up_counts_as_far_as_it_went(
    collection: str, model: str, tmp_path: Path
) -> None:
    output, other = str(tmp_path / "out"), save_model(tmp_path / "other.safetensors", seed=1)
    predict(collection, model, output)
    predict(collection, other, output, CONFIG, 0)
    predict(collection, model, output)
    before = rows(output)
    merge(output)
    assert rows(output) == before
    assert list(check_output(output, Seen())) == []


def test_one_run_alone_is_left_as_it_is(collection: str, model: str, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    predict(collection, model, output)
    before = files(output)
    merge(output)
    assert files(output) == before


def test_unfinished_run_is_for_predict_to_finish(
    output: str, collection: str, model: str, rng: np.random.Generator
) -> None:
    put(collection, {f"new{index}.png": encoded(pixels(rng)) for index in range(3)})
    predict(f"{collection}/[!34]*.png", model, output, CONFIG, 0)
    before = files(output)
    with pytest.raises(MergeError, match=r"run 00003 is not finished: 1 of 2 parts are not there"):
        merge(output)
    assert files(output) == before


def test_damaged_part_is_not_given_a_digest_that_fits(output: str) -> None:
    part = Path(parts.part_url(output, 0, 0))
    data = bytearray(part.read_bytes())
    data[data.index(b"IDAT") + 8] ^= 16
    part.write_bytes(data)
    with pytest.raises(MergeError, match=r"part-00000\.parquet: its bytes are not those"):
        merge(output)
    assert len(parts.listed(output)) == 3
    assert rows(output)


def test_merged_part_that_is_damaged_removes_nothing(output: str) -> None:
    plan = plan_merge(output)
    assert plan
    write_merged(plan)
    part = Path(parts.part_url(output, 3, 1))
    data = part.read_bytes()
    part.write_bytes(data[:-100])
    with pytest.raises(MergeError, match=r"part-00001\.parquet is not as it was written"):
        remove_merged(plan)
    assert sorted(parts.listed(output)) == [0, 1, 2, 3]
    part.unlink()
    merge(output)
    assert part.read_bytes() == data


def test_merge_killed_at_every_step_loses_nothing_and_is_finished_by_the_next(
    output: str, collection: str, model: str
) -> None:
    before = rows(output)
    run = subprocess.run(
        [sys.executable, "-c", KILLED, output],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert run.returncode == 0, run.stderr
    copies = sorted(Path(output).parent.glob("out-*"), key=lambda path: int(path.name[4:]))
    whole = files(str(copies[-1]))
    assert len(copies) > 20
    assert len({tuple(files(str(copy))) for copy in copies}) > 10
    for copy in map(str, copies):
        assert rows(copy) == before
        # predict knows what is done, and takes no merge for a run of its own
        again = shutil.copytree(copy, f"{copy}-predict")
        assert predict(f"{collection}/[!34]*.png", model, str(again)) == 0
        merge(copy)
        assert files(copy) == whole
    assert list(check_output(str(copies[0]), Seen())) == []


def test_late_part_of_a_zombie_stops_a_merge_that_does_not_know_its_rows(
    output: str, collection: str, model: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    put(collection, {"zombie.png": encoded(pixels(rng))})
    given_up = plan_run(f"{collection}/zombie.png", model, output, CONFIG)
    predict(f"{collection}/[34].png", model, output, PredictConfig(lenient=True))
    plan = plan_merge(output)
    assert plan
    write_part_with(Brightness(), given_up.manifest, 0, CONFIG)
    with pytest.raises(MergeError, match=r"zombie\.png came into an older run after the merge"):
        merge(output)
    assert "zombie.png" in rows(output)


def test_merges_on_s3(model: str, s3: Any, rng: np.random.Generator) -> None:
    bucket = s3.new_bucket()
    put(f"{bucket}/in", {"a b.png": encoded(pixels(rng)), "日[1].png": encoded(pixels(rng))})
    predict(f"{bucket}/in", model, f"{bucket}/out")
    put(f"{bucket}/in", {"a b.png": encoded(pixels(rng, 8, 8))})
    predict(f"{bucket}/in", model, f"{bucket}/out")
    before = rows(f"{bucket}/out")
    merge(f"{bucket}/out")
    assert rows(f"{bucket}/out") == before
    assert list(parts.listed(f"{bucket}/out")) == [2]
    assert list(check_output(f"{bucket}/out", Seen())) == []


def test_parts_of_a_merge_are_as_large_as_those_of_its_largest_run(output: str) -> None:
    merge(output)
    cards = parts.committed(output)
    assert [card.rows for card in cards] == [3, 3, 3]
    assert cards[0].inherited == 3
    with stores.open_input(parts.part_url(output, 3, 1)) as file:
        assert part_file.read_card(file) == cards[1]
