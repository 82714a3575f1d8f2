"""Hard keys go all the way, from the listing to the rows of the output, on every store."""

from pathlib import Path

import numpy as np
import pytest

from tasks import parts, stores
from tasks.collection import collect
from tasks.pages import to_entries
from tasks.predict_config import PredictConfig
from tasks.shards import write_part_with
from tests.tasks.containers import table_bytes
from tests.tasks.pictures import Brightness, encoded, pixels, planned, put

import pyarrow as pa  # isort: skip

KEYS = [
    "a b/plus+and&=;,'\".png",
    "brackets[1]/star*.png",
    "hash#percent%41%2F.png",
    "question?mark=1.png",
    "back\\slash.png",
    "ünï/日本 🙂.png",
    "-dash/.hidden.png",
    "/".join(["long" * 25] * 9) + "/" + "x" * 83 + ".png",
]
SOME_STORES_ONLY = {
    "..": ["up/../x.png", "..png", "a/...png"],
    "double slash": ["a//b.png"],
}


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    return str(request.getfixturevalue("s3").new_bucket())


def predicted(collection_url: str, place: str) -> dict[str, dict[str, object]]:
    """The rows of an output, by key, with masks as objects of their own."""
    config = PredictConfig(images_per_shard=5, sinks=("parquet", "png"))
    output = f"{place}/out"
    pages = collect(collection_url, output, include=config.include)
    manifest = planned(output, [e for page in pages for e in to_entries(page)], config)
    for number in range(manifest.num_shards):
        write_part_with(Brightness(), manifest, number, config)
    rows = parts.read(output).to_table().to_pylist()
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
    return {row["key"]: row for row in rows}


def test_hard_keys_go_from_the_listing_to_the_rows(place: str, rng: np.random.Generator) -> None:
    assert max(map(len, KEYS)) >= 990
    images = {key: encoded(pixels(rng, 4 + number, 8)) for number, key in enumerate(KEYS)}
    put(f"{place}/in", images)

    rows = predicted(f"{place}/in", place)

    assert {key: (row["status"], row["height"]) for key, row in rows.items()} == {
        key: ("ok", 4 + number) for number, key in enumerate(KEYS)
    }
    for key, row in rows.items():
        assert stores.read_bytes(str(row["url"])) == images[key]
        mask = row["mask"]
        assert isinstance(mask, dict)
        assert stores.read_bytes(mask["path"]) == mask["bytes"]


def test_hard_keys_go_from_a_list_to_the_rows(place: str, rng: np.random.Generator) -> None:
    image = encoded(pixels(rng))
    put(f"{place}/in", dict.fromkeys(KEYS, image))
    urls = [f"{place}/in/{key}" for key in KEYS]
    table = pa.table({"url": urls, "key": [f"k/{key}" for key in KEYS]})
    put(place, {"list.parquet": table_bytes(table)})

    rows = predicted(f"{place}/list.parquet", place)

    assert {key: row["status"] for key, row in rows.items()} == {f"k/{key}": "ok" for key in KEYS}


def test_keys_with_dots_stay_below_the_output(tmp_path: Path, rng: np.random.Generator) -> None:
    keys = ["../../up.png", "a/../../../b.png", "./c.png", "...png"]
    put(str(tmp_path / "in"), {f"{n}.png": encoded(pixels(rng)) for n in range(4)})
    lines = [f"{number}.png,{key}" for number, key in enumerate(keys)]
    put(str(tmp_path / "in"), {"list.csv": "\n".join(["url,key", *lines]).encode()})
    (tmp_path / "place").mkdir()

    rows = predicted(f"{tmp_path}/in/list.csv", f"{tmp_path}/place/of")

    assert {key: row["status"] for key, row in rows.items()} == dict.fromkeys(keys, "ok")
    masks = list((tmp_path / "place" / "of").rglob("masks/**/*.png"))
    assert len(masks) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "place"]


def test_keys_of_s3_that_no_file_can_have(s3: object, rng: np.random.Generator) -> None:
    place = s3.new_bucket()
    keys = ["a//b.png", "up/../x.png", "...png"]
    fs, path = stores.filesystem(f"{place}/in")
    bucket, _, prefix = path.partition("/")
    for key in keys:
        fs.call_s3("put_object", Bucket=bucket, Key=f"{prefix}/{key}", Body=encoded(pixels(rng)))
    rows = predicted(f"{place}/in", place)
    assert {key: row["status"] for key, row in rows.items()} == dict.fromkeys(sorted(keys), "ok")
