"""Partitions are fixed by the manifest; what cannot be spread out is refused before planning."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks import fan_out
from tasks.fan_out import MAX_PARTITIONS, FanOutError, partitions
from tasks.manifest import Manifest, ModelCard, RunCard
from tasks.plan import Plan
from tasks.predict_config import FanOut, PredictConfig

MODEL = ModelCard(url="m", size=1, etag="e", digest="0" * 64, classes=[], ignore_index=255)
CARD = RunCard(run=0, run_digest="1" * 64, collection_url="c", images_per_shard=10, model=MODEL)


def planned(num_shards: int, missing: list[int]) -> Plan:
    manifest = Manifest(output_url="out", card=CARD, num_rows=10 * num_shards)
    return Plan(manifest=manifest, missing=tuple(missing), num_deleted=0)


@given(st.data(), st.sampled_from(["here", "ray", "work-pool"]), st.integers(1, 500))
def test_every_missing_shard_is_in_one_partition(
    data: st.DataObject, way: FanOut, size: int
) -> None:
    first, num_shards = data.draw(st.integers(0, 50)), data.draw(st.integers(1, 3000))
    shards = range(first, first + num_shards)
    missing = sorted(data.draw(st.sets(st.sampled_from(shards), max_size=30)))
    config = PredictConfig(fan_out=way, shards_per_partition=size)

    found = partitions(planned(first + num_shards, missing), shards, config)

    assert [shard for one in found for shard in one.missing] == missing
    assert len(found) <= MAX_PARTITIONS
    assert all(shards.start <= one.first <= one.last < shards.stop for one in found)
    assert all(set(one.missing) <= set(range(one.first, one.last + 1)) for one in found)


def test_partition_is_the_same_whatever_of_it_is_done() -> None:
    config = PredictConfig(fan_out="work-pool", shards_per_partition=4)
    for missing in ([4, 5, 6, 7], [7]):
        [one] = partitions(planned(10, missing), range(10), config)
        assert (one.first, one.last, one.name) == (4, 7, "shards-00004-00007")


def test_ten_thousand_shards_are_never_ten_thousand_task_runs() -> None:
    plan = planned(10_000, list(range(10_000)))
    found = partitions(plan, range(10_000), PredictConfig())
    assert len(found) == 834
    assert found[0].missing == tuple(range(12))


def test_memory_is_no_place_for_several_processes() -> None:
    with pytest.raises(FanOutError, match=r"memory://in is seen by this process alone"):
        fan_out.require(PredictConfig(fan_out="ray"), "memory://in", "model", "out")
    fan_out.require(PredictConfig(), "memory://in", "model", "out")


@pytest.mark.parametrize("way", ["ray", "dask"])
def test_missing_package_is_told_with_the_extra_to_install(
    way: FanOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, f"prefect_{way}", None)  # what an import then finds
    with pytest.raises(FanOutError, match=rf'install the extra {way}.*"\.\[pipeline,{way}\]"'):
        fan_out.require(PredictConfig(fan_out=way), "in", "model", "out")


def test_others_get_absolute_places_and_backend_and_precision_of_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = PredictConfig(fan_out="ray", device="cpu", cluster="auto", gpus_per_task=1)
    manifest, model_url, given = fan_out.for_others(planned(1, []).manifest, "s3://b/m", config)
    assert manifest.output_url == f"{tmp_path}/out"
    assert model_url == "s3://b/m"
    assert given == PredictConfig(device="cpu", precision="fp32", backend=CARD.backend)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"cluster": "auto"}, "cluster='auto' is of no use to fan_out='here'"),
        ({"fan_out": "dask", "gpus_per_task": 1}, "gpus_per_task=1 is of no use to fan_out='dask'"),
        ({"fan_out": "work-pool", "deployment": "predict"}, "deployment"),
        ({"fan_out": "kubernetes"}, "fan_out"),
    ],
)
def test_settings_that_go_nowhere_are_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        PredictConfig.model_validate(settings)
