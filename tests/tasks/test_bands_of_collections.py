"""A prediction finds the bands of its images, and says of each image what is wrong with them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fcn
from fcn.bands import Band, stack
from fcn.decoders import Decoders
from fcn.errors import BandError
from fcn.images import decode_image
from fcn.input import TORCHVISION, InputSpec
from fcn.masks import decode_mask
from tasks import models, parts, stores
from tasks.bands import find
from tasks.budget import band_pixel_bytes
from tasks.collection import collect
from tasks.engine import windows
from tasks.manifest import read
from tasks.pages import to_entries, to_page
from tasks.plan import Plan, plan_run
from tasks.predict_config import PredictConfig
from tasks.shards import write_part
from tasks.stores import Entry, StoreError
from tests.fcn.models import varied_model
from tests.tasks.containers import tar
from tests.tasks.pictures import encoded, pixels, put, save_model

BANDS = (Band("depth", "uint16", 2000.0, 900.0), Band("height", "float32", -3.0, 2.5))
CONFIG = PredictConfig(images_per_shard=3, backend="torch", device="cpu")


@pytest.fixture(scope="module")
def model() -> fcn.Model:
    return varied_model("squeezenet1_1", 3, 8, InputSpec(
        channel_order="RGB", mean=TORCHVISION.mean, std=TORCHVISION.std, bands=BANDS
    ))  # fmt: skip


@pytest.fixture(scope="module")
def model_url(model: fcn.Model, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    fcn.save(model, path)
    return str(path)


def depth(rng: np.random.Generator, *size: int) -> bytes:
    return encoded(rng.integers(0, 4000, size, np.uint16))


def height(rng: np.random.Generator, *size: int) -> bytes:
    values = rng.normal(-3, 2, size).astype(np.float32)
    values[0, :2] = np.nan
    return encoded(values, "TIFF")


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Seven images in two folders, with both bands."""
    for index in range(7):
        size = (20 + index, 30)
        key = f"{'ab'[index % 2]}/{index}"
        put(str(tmp_path / "images"), {f"{key}.png": encoded(pixels(rng, *size))})
        put(str(tmp_path / "bands-depth"), {f"{key}.PNG": depth(rng, *size)})
        put(str(tmp_path / "bands-height"), {f"{key}.tif": height(rng, *size)})
    return tmp_path


def done(collection: str, model_url: str, output: str, config: PredictConfig = CONFIG) -> Plan:
    plan = plan_run(collection, model_url, output, config)
    for shard in plan.missing:
        write_part(plan.manifest, shard, model_url, config)
    return plan


def rows(output: str) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in parts.read(output).to_table().to_pylist()}


def test_masks_are_those_of_the_images_with_their_bands(
    folder: Path, model: fcn.Model, model_url: str
) -> None:
    output = str(folder / "out")
    done(str(folder / "images"), model_url, output)
    predictor = fcn.Predictor(model, device="cpu")
    found = rows(output)
    assert len(found) == 7
    for key, row in found.items():
        image = decode_image((folder / "images" / key).read_bytes()).pixels
        stem = key.removesuffix(".png")
        bands = {
            "depth": fcn.decode_band((folder / f"bands-depth/{stem}.PNG").read_bytes()),
            "height": fcn.decode_band((folder / f"bands-height/{stem}.tif").read_bytes()),
        }
        (label,) = predictor([stack(image, bands, BANDS)])
        assert row["status"] == "ok"
        assert (row["height"], row["width"]) == label.shape
        assert np.array_equal(decode_mask(row["mask"]["bytes"]), label)


def test_a_band_that_does_not_fit_fails_its_image_alone(
    folder: Path, model_url: str, rng: np.random.Generator
) -> None:
    bands = str(folder / "bands-depth")
    (folder / "bands-depth/a/0.PNG").unlink()
    put(bands, {
        "b/1.PNG": depth(rng, 5, 5), "a/2.PNG": depth(rng, 50, 60), "b/3.PNG": b"no image",
        "a/4.PNG": encoded(np.zeros((24, 30), np.uint8)), "b/5.PNG": b"",
    })  # fmt: skip
    output = str(folder / "out")
    done(str(folder / "images"), model_url, output)
    found = rows(output)
    assert found["a/6.png"]["status"] == "ok"
    errors = {
        key: (row["status"], row["error_class"], row["error"])
        for key, row in found.items()
        if row["status"] != "ok"
    }
    assert errors == {
        "a/0.png": (
            "failed", "MissingBand", ("no band depth: there is no bands-depth/a/0.png, .tif or "
            ".tiff beside the folder of the collection"),
        ),
        "b/1.png": (
            "failed", "BandError", "band depth is 5 x 5 (height x width), its image 21 x 30",
        ),
        "a/2.png": (
            "failed", "BandError", ("band depth is larger than its image, 22 x 30: 50 x 60 pixels "
            "(height x width), above the limit of 660"),
        ),
        "b/3.png": (
            "failed", "BandError",
            "band depth: no decoder knows this format; it starts with b'no image'",
        ),
        "a/4.png": ("failed", "BandError", "band depth holds uint8, expected uint16"),
        "b/5.png": ("failed", "BandError", "band depth: zero bytes"),
    }  # fmt: skip
    assert found["a/0.png"]["height"] == 20


def test_only_images_whose_bands_changed_are_done_again(
    folder: Path, model_url: str, rng: np.random.Generator
) -> None:
    (folder / "bands-depth/b/1.PNG").unlink()
    collection, output = str(folder / "images"), str(folder / "out")
    done(collection, model_url, output)
    assert not done(collection, model_url, output).missing
    put(str(folder), {
        "bands-height/a/4.tif": height(rng, 24, 30), "bands-depth/b/1.tiff": depth(rng, 21, 30),
    })  # fmt: skip
    (folder / "bands-height/b/5.tif").unlink()
    again = done(collection, model_url, output)
    assert [entry.key for entry in again.manifest.entries()] == ["a/4.png", "b/1.png", "b/5.png"]
    found = rows(output)
    assert found["b/1.png"]["status"] == "ok"
    assert found["b/5.png"]["error_class"] == "MissingBand"


def test_a_run_that_was_cut_off_ends_with_the_same_bytes(folder: Path, model_url: str) -> None:
    collection, first, second = (str(folder / name) for name in ("images", "out-1", "out-2"))
    whole = done(collection, model_url, first)
    plan = plan_run(collection, model_url, second, CONFIG)
    write_part(plan.manifest, 2, model_url, CONFIG)
    models._loaded.clear()
    assert plan_run(collection, model_url, second, CONFIG).missing == (0, 1)
    done(collection, model_url, second)
    for shard in range(whole.manifest.num_shards):
        written = [stores.read_bytes(parts.part_url(url, 0, shard)) for url in (first, second)]
        assert written[0] == written[1]


def test_the_manifest_of_rgb_images_has_no_column_for_bands(folder: Path, model_url: str) -> None:
    rgb = save_model(folder / "rgb.safetensors")
    for url, wanted in ((rgb, False), (model_url, True)):
        output = str(folder / f"out-{wanted}")
        plan = plan_run(str(folder / "images"), url, output, CONFIG)
        schema = pq.read_schema(Path(output, "manifest/run=00000/manifest.parquet"))
        assert ("bands" in schema.names) == wanted
        assert (b'"bands"' in schema.metadata[b"fcn.run"]) == wanted
        entry = next(read(output, 0).entries())
        assert (entry.bands is not None) == wanted
        assert plan.manifest.card.model.bands == (BANDS if wanted else ())


@pytest.mark.parametrize("pattern", ["images/*/*.png", "images/a/0.png"])
def test_globs_and_single_images_have_bands_beside_their_folder(
    pattern: str, folder: Path, model_url: str, rng: np.random.Generator
) -> None:
    if "*" not in pattern:  # beside images/a
        put(str(folder / "images"), {"bands-depth/0.png": depth(rng, 20, 30)})
        put(str(folder / "images"), {"bands-height/0.tiff": height(rng, 20, 30)})
    output = str(folder / "out")
    done(f"{folder}/{pattern}", model_url, output)
    found = rows(output)
    assert {row["status"] for row in found.values()} == {"ok"}
    assert len(found) == (7 if "*" in pattern else 1)


def test_images_of_parquet_files_have_their_bands_in_columns(
    folder: Path, model_url: str, rng: np.random.Generator
) -> None:
    beside = str(folder / "out-files")
    done(f"{folder}/images/a", model_url, beside)  # of which nothing lies beside a
    assert {row["error_class"] for row in rows(beside).values()} == {"MissingBand"}

    image = [encoded(pixels(rng, 20, 30)) for _ in range(4)]
    deep = [depth(rng, 20, 30) for _ in range(4)]
    high = [height(rng, 20, 30) for _ in range(4)]
    table = pa.table({
        "image": [{"bytes": data, "path": "x"} for data in image],
        "band_depth": pa.array([*deep[:3], None], pa.binary()),
        "band_height": [{"bytes": data, "path": "x"} for data in high],
    })  # fmt: skip
    for name in ("tables", "images2", "bands2-depth", "bands2-height"):
        (folder / name).mkdir()
    pq.write_table(table, folder / "tables/some.parquet")
    pq.write_table(table.select(["image"]), folder / "tables/without.parquet")
    output = str(folder / "out-rows")
    done(str(folder / "tables"), model_url, output)
    found = rows(output)
    ok = {key for key, row in found.items() if row["status"] == "ok"}
    assert ok == {f"some.parquet/{row:09d}" for row in range(3)}
    assert found["some.parquet/000000003"]["error_class"] == "MissingBand"
    without = found["without.parquet/000000000"]
    assert (without["error_class"], without["error"]) == (
        "MissingBand", "no band depth: there is no column band_depth of bytes",
    )  # fmt: skip

    put(str(folder / "flat/images"), {"0.png": image[0]})
    put(str(folder / "flat/bands-depth"), {"0.png": deep[0]})
    put(str(folder / "flat/bands-height"), {"0.tif": high[0]})
    done(f"{folder}/flat/images", model_url, str(folder / "out-flat"))
    (row,) = rows(str(folder / "out-flat")).values()
    assert row["mask"]["bytes"] == found["some.parquet/000000000"]["mask"]["bytes"]


def test_nothing_is_looked_for_beside_a_collection_whose_parquet_files_hold_all(
    tmp_path: Path,
) -> None:
    row = {"image": b"image", "band_depth": b"band"}
    (tmp_path / "tables").mkdir()
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "tables/b.parquet")
    (tmp_path / "bands-depth").symlink_to("bands-depth")  # cannot be listed

    def entries(pattern: str) -> list[Entry]:
        where = f"{tmp_path}/{pattern}", str(tmp_path / "out")
        pages = collect(*where, include=["*.png"], bands=["depth"])
        return [entry for page in pages for entry in to_entries(page)]

    for pattern in ("tables", "tables/*"):
        assert [entry.key for entry in entries(pattern)] == ["b.parquet/000000000"]
    put(str(tmp_path / "tables"), {"c.png": b"image"})
    with pytest.raises(StoreError, match=r"cannot read .*/bands-depth"):
        entries("tables/*")

    (tmp_path / "bands-depth").unlink()
    put(str(tmp_path / "bands-depth"), {"a.png": b"band", "c.png": b"band"})
    put(str(tmp_path / "tables"), {"a.png": b"image"})
    found = {entry.key: json.loads(entry.bands or "{}").keys() for entry in entries("tables/*")}
    assert found == {"a.png": {"depth"}, "b.parquet/000000000": set(), "c.png": {"depth"}}


def test_a_band_that_is_gone_since_it_was_listed_is_named(folder: Path, model_url: str) -> None:
    output = str(folder / "out")
    plan = plan_run(str(folder / "images/**/0.png"), model_url, output, CONFIG)
    (folder / "bands-height/a/0.tif").unlink()
    write_part(plan.manifest, plan.missing[0], model_url, CONFIG)
    (row,) = rows(output).values()
    assert row["error_class"] == "ObjectVanished"
    assert row["error"].startswith("band height: nothing there")


def _tar(folder: Path, data: bytes) -> str:
    stores.write_bytes(f"{folder}/shards/0.tar", tar(("0.png", data)))
    return str(folder / "shards")


def _list(folder: Path, data: bytes) -> str:
    put(str(folder / "some"), {"0.png": data})
    stores.write_bytes(f"{folder}/list.csv", f"url\n{folder}/some/0.png\n".encode())
    return str(folder / "list.csv")


@pytest.mark.parametrize(("make", "what"), [(_tar, "a tar file"), (_list, "a list of URLs")])
def test_tar_files_and_lists_hold_no_bands(
    make: Callable[[Path, bytes], str], what: str, tmp_path: Path, model_url: str, rng
) -> None:
    url = make(tmp_path, encoded(pixels(rng)))
    with pytest.raises(
        StoreError, match=f"is {what}, which holds no bands, .* depth, height; give"
    ):
        plan_run(url, model_url, str(tmp_path / "out"), CONFIG)
    assert not (tmp_path / "out/manifest").exists()


def test_a_whole_store_has_nothing_beside_it() -> None:
    put("memory://", {"0.png": b"x"})
    image = Entry(key="0.png", url="memory://0.png", size=1, etag="")
    with pytest.raises(StoreError, match="has no folder beside it, where bands would be"):
        list(find([to_page([image])], "memory://", ["depth"]))
    inside = to_page([replace(image, container="memory://0.parquet", offset=0)])
    assert list(find([inside], "memory://", ["depth"])) == [inside]  # in columns


@pytest.mark.parametrize("page_rows", [1, 10_000])
def test_keys_that_sort_otherwise_than_their_stems_find_their_bands(
    page_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.pages.PAGE_ROWS", page_rows)
    monkeypatch.setattr("tasks.bands.PAGE_ROWS", page_rows)
    names = ["x.jpg", "x.k.jpg", "x-1.jpg", "x/y.jpg", "x.png.jpg", "x.jpeg"]
    put(str(tmp_path / "images"), dict.fromkeys(names, b"image"))
    files = ["x.png", "x.k.tif", "x-1.PNG", "x/y.tiff", "x.tif", "lost.png", "x.jpg"]
    put(str(tmp_path / "bands-depth"), dict.fromkeys(files, b"band"))
    pages = collect(
        str(tmp_path / "images"), str(tmp_path / "out"), include=["*.jp*"], bands=["depth"]
    )
    entries = [entry for page in pages for entry in to_entries(page)]
    assert [entry.key for entry in entries] == sorted(names)
    found = {
        entry.key: {
            band: Path(url).name for band, (url, *_) in json.loads(entry.bands or "").items()
        }
        for entry in entries
    }
    assert found == {
        "x.jpg": {"depth": "x.png"}, "x.jpeg": {"depth": "x.png"}, "x.k.jpg": {"depth": "x.k.tif"},
        "x-1.jpg": {"depth": "x-1.PNG"}, "x/y.jpg": {"depth": "y.tiff"}, "x.png.jpg": {},
    }  # fmt: skip
    assert [len(window) for window in windows(entries, limit=9)] == [1, 1, 1, 1, 1, 1]


def test_bands_count_as_memory() -> None:
    assert band_pixel_bytes(()) == 0
    assert band_pixel_bytes((Band("nir", "uint8", 0, 1),)) == 4 + 1
    assert band_pixel_bytes(BANDS) == 4 * 5 + 2 + 4


def test_decoding_processes_give_bands_as_they_are(rng: np.random.Generator) -> None:
    decoders = Decoders(1)
    try:
        for values, kind in (
            (rng.integers(0, 256, (3, 5), np.uint8), "PNG"),
            (rng.integers(0, 65_536, (3, 5), np.uint16), "PNG"),
            (rng.normal(size=(3, 5)).astype(np.float32), "TIFF"),
        ):
            found = decoders.decode_band(encoded(values, kind), max_pixels=15)
            assert found.dtype == values.dtype
            assert np.array_equal(found, values)
        with pytest.raises(BandError, match="JPEG holds no band"):
            decoders.decode_band(encoded(np.zeros((3, 5), np.uint8), "JPEG"), max_pixels=15)
    finally:
        decoders.close()
