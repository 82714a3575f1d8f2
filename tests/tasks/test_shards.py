"""A part is the commit: whoever writes it, however often, and wherever a writer was killed."""

import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from fcn.errors import CheckpointError
from fcn.masks import decode_mask
from tasks import parts, stores
from tasks.plan import plan_run
from tasks.predict_config import PredictConfig
from tasks.shards import mask_saver, summarise, write_part, write_part_with
from tests.tasks.pictures import Brightness, encoded, pixels, put, save_model
from tests.tasks.shard_writer import Writers


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of a model file."""
    return save_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture
def writers() -> Iterator[Writers]:
    writers = Writers()
    yield writers
    writers.end()


def finish(process: BaseProcess) -> None:
    process.join(60)
    assert process.exitcode == 0


def part_bytes(output: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(output).glob("parts/**/*.parquet")}


@pytest.mark.slow
def test_killed_runs_end_like_an_undisturbed_one(
    tmp_path: Path, model: str, rng: np.random.Generator, writers: Writers
) -> None:
    collection, calm, stormy = (str(tmp_path / name) for name in ("in", "calm", "stormy"))
    images = {f"{index:02}.png": encoded(pixels(rng, 90 + index % 4, 120)) for index in range(60)}
    put(collection, {**images, "17.png": b"no image", "30.png": images["30.png"][:200]})
    undisturbed = writers.start(collection, model, calm)

    counts = []
    for num_parts in sorted(rng.choice(np.arange(1, 10), size=3, replace=False)):
        process = writers.start(collection, model, stormy)
        while len(part_bytes(stormy)) < num_parts and process.is_alive():
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        counts.append(len(part_bytes(stormy)))
    zombie, other = (writers.start(collection, model, stormy) for _ in range(2))
    while len(part_bytes(stormy)) == counts[-1] and zombie.is_alive():
        time.sleep(0.005)
    assert zombie.pid is not None
    os.kill(zombie.pid, signal.SIGSTOP)
    finish(other)
    os.kill(zombie.pid, signal.SIGCONT)
    for process in (undisturbed, zombie):
        finish(process)

    assert 0 < counts[0] < 12, f"no run was killed half-way: {counts}"
    assert part_bytes(stormy) == part_bytes(calm)
    table = parts.read(stormy).to_table(columns=["key", "status"])
    assert sorted(table["key"].to_pylist()) == sorted(images)
    assert table["status"].to_pylist().count("failed") == 2
    assert parts.is_indexed(stormy)


def test_runs_on_s3_from_end_to_end(model: str, s3: Any, rng: np.random.Generator) -> None:
    bucket = s3.new_bucket()
    keys = ["a b.png", "brackets[1]/*?.png", "per%41cent#.png", "ü/日.png"]
    put(f"{bucket}/in", {key: encoded(pixels(rng, 20, 24)) for key in keys})
    put(f"{bucket}/in", {"empty.png": b""})
    stores.write_bytes(f"{bucket}/model.safetensors", stores.read_bytes(model))
    config = PredictConfig(images_per_shard=2, sinks=("parquet", "png"))
    given = (f"{bucket}/in", f"{bucket}/model.safetensors", f"{bucket}/in/out", config)

    plan = plan_run(*given)
    reports = [write_part(plan.manifest, n, given[1], config) for n in plan.missing]
    parts.write_index(given[2], plan.manifest.card.model.label_classes())

    summary = summarise(plan, reports, seconds=1.0)
    assert (summary.rows, summary.ok, summary.failed, summary.segmented) == (5, 4, 1, 5)
    for row in parts.read(given[2]).to_table().to_pylist():
        if row["status"] == "ok":
            png = stores.read_bytes(f"{given[2]}/masks/{row['key']}.png")
            assert (decode_mask(png) == decode_mask(row["mask"]["bytes"])).all()
    assert plan_run(*given).missing == ()


def test_first_writer_of_a_part_wins(tmp_path: Path, model: str, rng: np.random.Generator) -> None:
    put(str(tmp_path / "in"), {"a.png": encoded(pixels(rng))})
    config = PredictConfig()
    manifest = plan_run(str(tmp_path / "in"), model, str(tmp_path / "out"), config).manifest
    first = write_part_with(Brightness(), manifest, 0, config)
    before = part_bytes(str(tmp_path / "out"))

    (tmp_path / "in" / "a.png").unlink()
    second = write_part_with(Brightness(), manifest, 0, config)

    assert (first.was_first, second.was_first) == (True, False)
    assert "another writer was first" in second.line()
    assert part_bytes(str(tmp_path / "out")) == before


def test_model_replaced_during_a_run_stops_it(
    tmp_path: Path, model: str, rng: np.random.Generator
) -> None:
    put(str(tmp_path / "in"), {"a.png": encoded(pixels(rng))})
    own = str(tmp_path / "own.safetensors")
    stores.write_bytes(own, stores.read_bytes(model))
    plan = plan_run(str(tmp_path / "in"), own, str(tmp_path / "out"), PredictConfig())
    save_model(Path(own), seed=1)

    with pytest.raises(CheckpointError, match=r"own\.safetensors was replaced"):
        write_part(plan.manifest, 0, own, PredictConfig())
    assert part_bytes(str(tmp_path / "out")) == {}


def test_png_sink_alone_leaves_the_masks_out_of_the_parts(
    tmp_path: Path, model: str, rng: np.random.Generator
) -> None:
    put(str(tmp_path / "in"), {"sub/a.png": encoded(pixels(rng))})
    config, output = PredictConfig(sinks=("png",)), str(tmp_path / "out")
    plan = plan_run(str(tmp_path / "in"), model, output, config)
    write_part_with(Brightness(), plan.manifest, 0, config)

    [row] = pq.read_table(parts.part_url(output, 0, 0), partitioning=None).to_pylist()
    assert row["mask"] == {"bytes": None, "path": f"{output}/masks/sub/a.png.png"}
    assert decode_mask(stores.read_bytes(row["mask"]["path"])).shape == (12, 16)


def test_keys_cannot_lead_out_of_the_output(tmp_path: Path) -> None:
    url = mask_saver(str(tmp_path / "out"))("../../x", b"png")
    assert Path(url).resolve().is_relative_to(tmp_path / "out" / "masks")


def test_summary_tells_weak_spots_and_drift_also_of_parts_done_before(
    tmp_path: Path, model: str, rng: np.random.Generator
) -> None:
    collection, output = str(tmp_path / "in"), str(tmp_path / "out")
    config = PredictConfig(images_per_shard=1)
    put(collection, {name: encoded(pixels(rng)) for name in ("a.png", "b.png")})
    plan = plan_run(collection, model, output, config)
    write_part_with(Brightness(), plan.manifest, 0, config)  # by an earlier attempt
    report = write_part_with(Brightness(), plan.manifest, 1, config)
    first = summarise(plan, [report], seconds=1.0)
    assert [(spot.key, spot.confidence) for spot in first.weak_spots] == [
        ("a.png", 0.5),
        ("b.png", 0.5),
    ]
    assert [image.key for image in first.slow_images] == ["b.png"]  # of this attempt
    assert [share.drift for share in first.class_shares] == [None] * 3
    assert sum(share.pixels for share in first.class_shares) == 2 * 12 * 16

    put(collection, {"c.png": encoded(np.full((12, 16, 3), 255, np.uint8))})
    plan = plan_run(collection, model, output, config)
    report = write_part_with(Brightness(), plan.manifest, 0, config)
    second = summarise(plan, [report], seconds=1.0)
    assert [share.share for share in second.class_shares] == [0, 0, 1]
    assert second.class_shares[0].drift == -first.class_shares[0].share
