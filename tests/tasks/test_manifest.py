"""The manifest lists the images of a collection, once, and fixes the shards."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import manifest as manifests
from tasks import stores
from tasks.manifest import collect
from tasks.predict_config import IMAGE_PATTERNS, PredictConfig
from tasks.stores import Entry, StoreError
from tests.tasks.pictures import planned, put


def entries(keys: Sequence[str]) -> list[Entry]:
    return [Entry(key=key, url=f"memory://c/{key}", size=len(key), etag="1") for key in keys]


def keys_of(collection_url: str, output_url: str = "memory://out", **patterns: Any) -> list[str]:
    patterns = {"include": IMAGE_PATTERNS, **patterns}
    return [entry.key for entry in collect(collection_url, output_url, **patterns)]


def test_only_images_of_a_prefix_are_taken(tmp_path: Path) -> None:
    put(str(tmp_path), dict.fromkeys(["a.jpg", "b/B.JPEG", "b/c.tif", "notes.txt", "jpg"], b"x"))
    assert keys_of(str(tmp_path)) == ["a.jpg", "b/B.JPEG", "b/c.tif"]


def test_glob_and_single_object_are_taken_as_they_are(tmp_path: Path) -> None:
    put(str(tmp_path), dict.fromkeys(["frames/1", "frames/2", "frames/x.txt"], b"x"))
    assert keys_of(f"{tmp_path}/frames/[0-9]") == ["1", "2"]
    assert keys_of(f"{tmp_path}/frames/x.txt") == ["x.txt"]


def test_patterns_match_the_name_or_with_a_slash_the_whole_key(tmp_path: Path) -> None:
    keys = ["left/1.png", "left/thumbs/1.png", "right/1.png", "right/left.png"]
    put(str(tmp_path), dict.fromkeys(keys, b"x"))
    assert keys_of(str(tmp_path), include=["left/*"]) == keys[:2]
    assert keys_of(str(tmp_path), include=["LEFT*"]) == keys[3:]
    assert keys_of(str(tmp_path), exclude=["*/thumbs/*", "left.*"]) == ["left/1.png", "right/1.png"]


@pytest.mark.parametrize("store", ["local", "memory", "s3"])
def test_our_own_output_below_the_collection_is_not_part_of_it(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if store == "s3":
        prefix = request.getfixturevalue("s3").new_bucket()
    else:
        prefix = str(tmp_path) if store == "local" else f"memory://{tmp_path}"
    put(prefix, dict.fromkeys(["a.png", "out.png", "out/masks/a.png.png", "out2/b.png"], b"x"))
    assert keys_of(prefix, f"{prefix}/out/") == ["a.png", "out.png", "out2/b.png"]
    assert keys_of(f"{prefix}/**/*.png", f"{prefix}/out") == ["a.png", "out.png", "out2/b.png"]


def test_output_in_the_place_of_the_collection_is_refused(tmp_path: Path) -> None:
    put(str(tmp_path), {"a.png": b"x"})
    with pytest.raises(StoreError, match="output_url and collection_url are both"):
        list(collect(f"{tmp_path}/", str(tmp_path), include=IMAGE_PATTERNS))


def test_name_that_is_no_text_is_refused_by_its_name(tmp_path: Path) -> None:
    (Path(str(tmp_path)) / "good.png").write_bytes(b"x")
    with open(bytes(tmp_path) + b"/caf\xe9.png", "wb"):  # noqa: PTH123 - Latin-1
        pass
    with pytest.raises(StoreError, match=r"caf\\udce9\.png is no valid UTF-8"):
        keys_of(str(tmp_path))
    assert keys_of(str(tmp_path), exclude=["caf*"]) == ["good.png"]


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
