"""The manifest lists the images of a collection, once, and fixes the shards."""

import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import manifest as manifests
from tasks import stores
from tasks.predict_config import PredictConfig
from tasks.stores import Entry, StoreError
from tests.tasks.pictures import planned


def entries(keys: Sequence[str]) -> list[Entry]:
    return [Entry(key=key, url=f"memory://c/{key}", size=len(key), etag="1") for key in keys]


@given(
    keys=st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True, max_size=40),
    images_per_shard=st.integers(1, 50),
)
@settings(max_examples=50, deadline=None)
def test_shards_partition_the_manifest(keys: list[str], images_per_shard: int) -> None:
    output = "memory://partition"
    fs, path = stores.filesystem(output)
    if fs.exists(path):
        fs.rm(path, recursive=True)
    wanted = entries(sorted(keys))

    manifest = planned(output, wanted, PredictConfig(images_per_shard=images_per_shard))
    shards = [manifest.shard(number) for number in range(manifest.num_shards)]

    assert [entry for shard in shards for entry in shard] == wanted
    assert [len(shard) for shard in shards] == [
        manifest.num_images(number) for number in range(manifest.num_shards)
    ]
    assert all(len(shard) == images_per_shard for shard in shards[:-1])
    assert list(manifest.entries()) == wanted


@pytest.mark.parametrize(("images_per_shard", "num_pages"), [(1, 3), (300, 3), (25_000, 2)])
def test_shards_of_a_manifest_of_several_pages(
    tmp_path: Path, images_per_shard: int, num_pages: int
) -> None:
    wanted = entries([f"{number:06d}.jpg" for number in range(25_100)])
    manifest = planned(str(tmp_path), wanted, PredictConfig(images_per_shard=images_per_shard))
    for number in (0, manifest.num_shards // 2, manifest.num_shards - 1):
        start = number * images_per_shard
        assert manifest.shard(number) == wanted[start : start + images_per_shard]
    metadata = pq.read_metadata(manifests.manifest_url(str(tmp_path), 0))
    assert metadata.num_row_groups == num_pages


def test_of_two_planners_one_writes_and_both_read_the_same(tmp_path: Path) -> None:
    config = PredictConfig(images_per_shard=10)
    plans = [entries([f"{name}{number}" for number in range(25)]) for name in "ab"]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda plan: planned(str(tmp_path), plan, config), plans))
    first, second = (list(manifest.entries()) for manifest in found)
    assert first == second
    assert first in plans


def test_runs_are_listed_in_order(tmp_path: Path) -> None:
    assert manifests.runs(str(tmp_path / "new")) == []
    for run in (1, 0, 2):
        planned(str(tmp_path), entries(["a"]), PredictConfig(), run=run)
    assert manifests.runs(str(tmp_path)) == [0, 1, 2]


def test_foreign_file_in_the_place_of_a_manifest_says_so(tmp_path: Path) -> None:
    url = manifests.manifest_url(str(tmp_path), 0)
    stores.write_bytes(url, b"no Parquet at all")
    with pytest.raises(StoreError, match=r"manifest\.parquet is no manifest of ours"):
        manifests.read(str(tmp_path), 0)


def test_manifest_without_containers_is_still_read(tmp_path: Path) -> None:
    wanted = entries(["a", "b"])
    manifest = planned(str(tmp_path), wanted, PredictConfig())
    url = manifests.manifest_url(str(tmp_path), 0)
    older = pq.read_table(url).select(["key", "url", "size", "etag"])
    pq.write_table(older, url)
    assert list(manifests.read(str(tmp_path), 0).entries()) == wanted == manifest.shard(0)


def test_neighbouring_shards_read_the_file_once_and_a_copy_reads_for_itself(tmp_path: Path) -> None:
    """Shown by what is still known when the file is gone: two pages of 10,000 rows, no more."""
    wanted = entries([f"{number:06d}.jpg" for number in range(30_000)])
    manifest = planned(str(tmp_path), wanted, PredictConfig(images_per_shard=1_000))
    shards = [0, 10, 20, 11]
    with ThreadPoolExecutor(1) as threads:
        assert [found[0] for found in threads.map(manifest.shard, shards)] == [
            wanted[1_000 * number] for number in shards
        ]
    copy = pickle.loads(pickle.dumps(manifest))
    assert copy == manifest
    assert copy.shard(29) == wanted[29_000:]
    stores.remove(manifests.manifest_url(str(tmp_path), 0))
    assert manifest.shard(19) + manifest.shard(20) == wanted[19_000:21_000]
    for other, shard in ((manifest, 0), (copy, 0), (pickle.loads(pickle.dumps(copy)), 29)):
        with pytest.raises(StoreError, match="manifest"):
            other.shard(shard)


def test_shards_asked_for_at_once_are_the_same_rows(tmp_path: Path) -> None:
    wanted = entries([f"{number:06d}.jpg" for number in range(40_000)])
    manifest = planned(str(tmp_path), wanted, PredictConfig(images_per_shard=700))
    order = [number * 37 % manifest.num_shards for number in range(manifest.num_shards)]
    with ThreadPoolExecutor(8) as threads:
        found = dict(zip(order, threads.map(manifest.shard, order), strict=True))
    assert [entry for number in sorted(found) for entry in found[number]] == wanted
