"""A collection is what its URL holds: objects, members of containers, or what a list names."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tasks.collection import collect
from tasks.pages import to_entries
from tasks.predict_config import IMAGE_PATTERNS
from tasks.reading import read_objects
from tasks.stores import Entry, StoreError
from tests.tasks.containers import parquet, table_bytes, tar
from tests.tasks.pictures import put


def images_of(
    collection_url: str, output_url: str = "memory://out", **patterns: Any
) -> list[Entry]:
    patterns = {"include": IMAGE_PATTERNS, **patterns}
    pages = collect(collection_url, output_url, **patterns)
    return [entry for page in pages for entry in to_entries(page)]


def keys_of(collection_url: str, output_url: str = "memory://out", **patterns: Any) -> list[str]:
    return [entry.key for entry in images_of(collection_url, output_url, **patterns)]


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


@pytest.fixture(params=["local", "memory", "s3"])
def prefix(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty place in one of the stores."""
    if request.param == "s3":
        return str(request.getfixturevalue("s3").new_bucket()) + "/in"
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path}"


SHARD = tar(("b.jpg", b"jpg b"), ("b.json", b"{}"), ("a.jpg", b"jpg a"))


def test_prefix_of_shards_is_the_images_in_them(prefix: str) -> None:
    put(prefix, {"t/1.tar": SHARD, "t/0.tar": SHARD, "x.parquet": parquet([b"1", b"2"])})
    put(prefix, {"notes.txt": b"", "t.tar-old": b""})
    found = images_of(prefix)
    assert [entry.key for entry in found] == [
        *("t/0.tar/a.jpg", "t/0.tar/b.jpg", "t/1.tar/a.jpg", "t/1.tar/b.jpg"),
        *("x.parquet/000000000", "x.parquet/000000001"),
    ]
    assert read_objects(found) == [b"jpg a", b"jpg b"] * 2 + [b"1", b"2"]


def test_prefix_with_images_is_these_and_no_container(tmp_path: Path) -> None:
    put(str(tmp_path), {"a.jpg": b"x", "backup.tar": b"no tar", "labels.parquet": b"none"})
    put(str(tmp_path), {"old.tar.gz": b""})
    assert keys_of(str(tmp_path)) == ["a.jpg"]


def test_glob_takes_objects_and_what_is_in_containers_in_order(prefix: str) -> None:
    names = ["s.tar-1.jpg", "s.tar0.jpg", "s.jpg", "sa.jpg"]
    put(prefix, {**dict.fromkeys(names, b"x"), "s.tar": SHARD, "s.tar.tar": SHARD})
    found = images_of(f"{prefix}/s*")
    keys = [entry.key for entry in found]
    assert keys == sorted(keys)
    assert set(keys) == {
        *names,
        *(f"{name}/{key}.jpg" for name in ("s.tar", "s.tar.tar") for key in "ab"),
    }


def test_one_container_is_what_it_holds(prefix: str) -> None:
    put(prefix, {"deep/s.tar": SHARD, "deep/x.parquet": parquet([b"1"])})
    assert keys_of(f"{prefix}/deep/s.tar") == ["s.tar/a.jpg", "s.tar/b.jpg"]
    assert keys_of(f"{prefix}/deep/x.parquet") == ["x.parquet/000000000"]


def test_patterns_go_for_containers_and_what_is_in_them(tmp_path: Path) -> None:
    put(str(tmp_path), {"a.tar": SHARD, "bad.tar": b"no tar", "x.parquet": parquet([b"1", b"2"])})
    glob = f"{tmp_path}/*"
    assert keys_of(glob, include=["*.json"], exclude=["bad.tar", "*/*1"]) == [
        "a.tar/b.json",
        "x.parquet/000000000",
    ]
    with pytest.raises(StoreError, match=r"bad\.tar is no tar file"):
        keys_of(glob)


def test_one_list_is_what_it_names(prefix: str) -> None:
    put(prefix, {"sub/b.jpg": b"b", "sub/a.jpg": b"a"})
    put(prefix, {"list.csv": b"url\nsub/b.jpg\nsub/a.jpg\n"})
    put(prefix, {"list.parquet": table_bytes(pa.table({"url": ["sub/a.jpg"]}))})
    found = images_of(f"{prefix}/list.csv")
    assert [entry.key for entry in found] == ["sub/a.jpg", "sub/b.jpg"]
    assert read_objects(found) == [b"a", b"b"]
    assert keys_of(f"{prefix}/list.csv", exclude=["b*"]) == ["sub/a.jpg"]
    assert keys_of(f"{prefix}/list.parquet") == ["sub/a.jpg"]


def test_images_of_several_stores_in_one_list(tmp_path: Path, s3: Any) -> None:
    bucket = s3.new_bucket()
    put(bucket, {"b.jpg": b"s3"})
    put("memory://list", {"c.jpg": b"memory"})
    put(str(tmp_path), {"a.jpg": b"local", "s.tar": SHARD})
    urls = f"url,key\n{bucket}/b.jpg,b\nmemory://list/c.jpg,c\na.jpg,a\n{bucket}/no.jpg,d\n"
    put(str(tmp_path), {"list.csv": urls.encode()})
    found = read_objects(images_of(f"{tmp_path}/list.csv"))
    assert found[:3] == [b"local", b"s3", b"memory"]
    assert type(found[3]).__name__ == "ObjectVanished"


def test_parquet_that_may_be_a_list_or_hold_images_is_not_guessed(tmp_path: Path) -> None:
    put(str(tmp_path), {"x.parquet": table_bytes(pa.table({"url": ["s3://x/1"], "mask": [b"m"]}))})
    with pytest.raises(StoreError, match=r"x\.parquet has a column url, and bytes in mask: it may"):
        keys_of(f"{tmp_path}/x.parquet")
    put(str(tmp_path), {"y.parquet": table_bytes(pa.table({"url": ["u"], "image": [b"i"]}))})
    assert keys_of(f"{tmp_path}/y.parquet") == ["y.parquet/000000000"]


def test_compressed_tars_are_refused_where_there_is_nothing_else(tmp_path: Path) -> None:
    put(str(tmp_path), {"s.tar.gz": b""})
    with pytest.raises(StoreError, match=r"s\.tar\.gz is a compressed tar"):
        keys_of(str(tmp_path))


def test_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    put(str(tmp_path), {"s.tar": tar(("a.jpg", b"1"), ("./a.jpg", b"2"))})
    with pytest.raises(
        StoreError,
        match=r"the key s\.tar/a\.jpg is there twice, tar://a\.jpg::.*/s\.tar at 512 and "
        r"tar://\./a\.jpg::.*/s\.tar at 1,536; keys have to differ",
    ):
        keys_of(f"{tmp_path}/s.tar")


def test_member_whose_name_is_no_text_is_refused_by_its_name(tmp_path: Path) -> None:
    put(str(tmp_path), {"s.tar": tar(("caf\udce9.jpg", b"1"))})
    with pytest.raises(StoreError, match=r"s\.tar/caf\\udce9\.jpg is no valid UTF-8"):
        keys_of(f"{tmp_path}/s.tar")
