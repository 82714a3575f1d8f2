"""Whatever is damaged in an output is found, by its kind and its place, and nothing else is."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcn.masks import MaskFormat, encode_mask
from tasks import part_file, parts, stores
from tasks.findings import NEXT_STEPS, Finding, Seen
from tasks.masks import Masks
from tasks.merge import plan_merge, remove_merged, write_merged
from tasks.output_check import check_output
from tasks.predict_config import PredictConfig
from tasks.shards import write_part_with
from tasks.stores import StoreError
from tests.tasks.pictures import (
    CLASSES,
    FURTHER_CLASSES,
    Brightness,
    TwoHeads,
    encoded,
    pixels,
    planned,
    put,
)

CONFIG = PredictConfig(images_per_shard=3)


def predicted(
    output_url: str, collection_url: str, config: PredictConfig = CONFIG, *, run: int = 0
) -> None:
    """A run over a collection, without a network."""
    entries = list(stores.list_entries(collection_url))
    manifest = planned(output_url, entries, config, run=run)
    for number in range(manifest.num_shards):
        write_part_with(Brightness(), manifest, number, config)
    parts.write_index(output_url, CLASSES)


@pytest.fixture
def collection(tmp_path: Path, rng: np.random.Generator) -> str:
    """Seven images and a bad one."""
    url = str(tmp_path / "in")
    put(url, {f"{index}.png": encoded(pixels(rng)) for index in range(7)} | {"bad.png": b"bad"})
    return url


@pytest.fixture
def output(tmp_path: Path, collection: str) -> str:
    """Three parts of three, three and two rows."""
    url = str(tmp_path / "out")
    predicted(url, collection)
    return url


def found(output_url: str) -> list[Finding]:
    return list(check_output(output_url, Seen()))


def kinds(output_url: str) -> list[tuple[str, str]]:
    return [(finding.kind, finding.place) for finding in found(output_url)]


def path_of(output_url: str, number: int, run: int = 0) -> Path:
    return Path(parts.part_url(output_url, run, number))


def rewrite(output_url: str, number: int, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Write a part and the index anew with changed rows, digests and all, as a bug would."""
    path = path_of(output_url, number)
    card = part_file.read_card(io.BytesIO(path.read_bytes()))
    table = pq.read_table(path, partitioning=None)
    rows = table.to_pylist()
    change(rows)
    changed = pa.Table.from_pylist(rows, schema=table.schema)
    own = part_file.summarise_table(changed, run=0, number=number, run_digest=card.run_digest)
    path.write_bytes(part_file.encode_table(changed, own))
    Path(output_url, "_index.json").unlink()
    parts.write_index(output_url, CLASSES)


PART_1 = "parts/run=00000/part-00001.parquet"


def test_output_as_it_was_written_has_no_findings(output: str) -> None:
    seen = Seen()
    assert list(check_output(output, seen)) == []
    assert (seen.rows, seen.masks, len(seen.cards)) == (8, 7, 3)


def test_every_byte_of_a_part_counts(output: str) -> None:
    data = path_of(output, 1).read_bytes()
    card = part_file.read_card(io.BytesIO(data))
    assert part_file.is_intact(io.BytesIO(data), card)
    unseen = []
    for place in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[place] ^= 1
        try:
            if part_file.is_intact(io.BytesIO(flipped), part_file.read_card(io.BytesIO(flipped))):
                unseen.append(place)
        except ValueError:
            pass  # no part any more
    assert unseen == []


def test_bit_flip_is_a_checksum(output: str) -> None:
    data = bytearray(path_of(output, 1).read_bytes())
    data[data.index(b"IDAT") + 8] ^= 16
    path_of(output, 1).write_bytes(data)
    assert kinds(output) == [("checksum", PART_1)]


@pytest.mark.parametrize("length", [0, 3, 100, -1])
def test_truncated_part_is_unreadable(output: str, length: int) -> None:
    path_of(output, 1).write_bytes(path_of(output, 1).read_bytes()[:length])
    assert kinds(output) == [("unreadable part", PART_1)]


def test_missing_part_is_missing_and_so_it_is_in_the_index(output: str) -> None:
    path_of(output, 1).unlink()
    assert kinds(output) == [("missing part", PART_1), ("index", "_index.json")]


def test_part_in_the_place_of_another_is_misplaced(output: str) -> None:
    shutil.copy(path_of(output, 0), path_of(output, 1))
    assert kinds(output) == [("misplaced part", PART_1)]


def test_part_of_another_output_is_misplaced(output: str, collection: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    predicted(other, collection, PredictConfig(images_per_shard=3, lenient=True))
    shutil.copy(path_of(other, 1), path_of(output, 1))
    assert kinds(output)[0] == ("misplaced part", PART_1)


def test_part_of_the_same_model_over_other_images_has_other_rows(
    output: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    put(str(tmp_path / "in2"), {f"{index}.png": encoded(pixels(rng)) for index in range(8)})
    other = str(tmp_path / "other")
    predicted(other, str(tmp_path / "in2"))
    shutil.copy(path_of(other, 1), path_of(output, 1))
    assert kinds(output)[0] == ("rows", PART_1)


@pytest.mark.parametrize(
    "name", ["notes.txt", "run=00000/part-00003.parquet", "run=00007/part-00000.parquet"]
)
def test_foreign_file_is_foreign(output: str, name: str) -> None:
    place = Path(output, "parts", name)
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(b"")
    assert kinds(output)[0] == ("foreign file", f"parts/{name}")


def test_what_a_killed_writer_left_is_no_finding(output: str) -> None:
    Path(output, "parts", "run=00000", f".{'0' * 32}.tmp").write_bytes(b"half a part")
    assert found(output) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"rows": 9}, "rows is 9; expected 8"),
        ({"run_digest": "x"}, "run_digest is 'x'"),
        ({"classes": []}, "classes is []"),
        ({"parts": []}, f"does not name {PART_1}"),
        ({"parts": 3}, "no index of ours"),
    ],
)
def test_edited_index_is_found(output: str, change: dict[str, Any], text: str) -> None:
    path = Path(output, "_index.json")
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    findings = found(output)
    assert {finding.kind for finding in findings} == {"index"}
    assert any(text in finding.text for finding in findings)


def test_edited_card_in_the_index_is_found(output: str) -> None:
    path = Path(output, "_index.json")
    path.write_text(path.read_text("utf-8").replace('"failed": 1', '"failed": 0'), "utf-8")
    [finding] = found(output)
    assert finding.text.startswith("says of parts/run=00000/part-00002.parquet")


def test_absent_index_and_damaged_manifest_are_found(output: str) -> None:
    Path(output, "_index.json").unlink()
    assert kinds(output) == [("index", "_index.json")]
    Path(output, "manifest", "run=00000", "manifest.parquet").write_bytes(b"PAR1")
    assert kinds(output)[0] == ("manifest", "manifest/run=00000/manifest.parquet")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda rows: rows.pop(0), "1 keys of the manifest are missing: 3.png, …"),
        (lambda rows: rows.insert(0, rows[0]), "1 keys stand there more than once"),
        (lambda rows: rows.reverse(), "the rows are not in the order of the manifest"),
        (lambda rows: rows[0].update(key="x"), "1 keys are not in the manifest: x, …"),
        (lambda rows: rows[0].update(etag="x"), "where the manifest has {'key': '3.png'"),
    ],
)
def test_rows_are_those_of_the_manifest(
    output: str, change: Callable[[list[dict[str, Any]]], Any], text: str
) -> None:
    rewrite(output, 1, change)
    [finding] = found(output)
    assert (finding.kind, finding.place) == ("rows", PART_1)
    assert text in finding.text


LABEL = np.zeros((12, 16), np.uint8)


@pytest.mark.parametrize(
    ("values", "kind", "text"),
    [
        ({"status": "fine"}, "row", "status is 'fine'"),
        ({"status": "failed"}, "row", "failed without a reason"),
        ({"height": None, "confidence": 0.0}, "row", "ok, but without height"),
        ({"confidence": 1.5}, "row", "confidence is 1.5"),
        ({"run_digest": "x"}, "row", "run digest x, which is that of no run"),
        ({"mask": None}, "mask", "neither a mask nor the object of one"),
        ({"mask": {"bytes": b"GIF89a", "path": "3.png.png"}}, "mask", "GIF"),
        ({"height": 11}, "mask", "mask is 12 x 16, its row says 11 x 16"),
        ({"class_pixels": [192, 0, 0]}, "mask", "pixels by class, its row says [192, 0, 0]"),
        (
            {"mask": {"bytes": encode_mask(LABEL + 3), "path": "3.png.png"}},
            "mask",
            "mask holds class 3; classes are 0..2",
        ),
    ],
)
def test_row_is_in_itself_consistent(
    output: str, values: dict[str, Any], kind: str, text: str
) -> None:
    rewrite(output, 1, lambda rows: rows[0].update(values))
    [finding] = found(output)
    assert (finding.kind, finding.place) == (kind, f"{PART_1}, 3.png")
    assert text in finding.text


def test_card_counts_its_rows(output: str) -> None:
    path = path_of(output, 1)
    card = part_file.read_card(io.BytesIO(path.read_bytes())).model_copy(
        update={"ok": 2, "sha256": "0" * 64}
    )
    path.write_bytes(part_file.encode_table(pq.read_table(path, partitioning=None), card))
    assert kinds(output)[0] == ("card", PART_1)


def test_other_columns_are_another_schema(output: str) -> None:
    path = path_of(output, 1)
    card = part_file.read_card(io.BytesIO(path.read_bytes())).model_copy(
        update={"sha256": "0" * 64}
    )
    table = pq.read_table(path, partitioning=None).drop_columns(["etag"])
    path.write_bytes(part_file.encode_table(table, card))
    assert kinds(output)[0] == ("schema", PART_1)


@pytest.mark.parametrize("sinks", [("png",), ("parquet", "png")])
def test_objects_of_masks_are_there_and_are_those_of_the_newest_run(
    collection: str, tmp_path: Path, rng: np.random.Generator, sinks: Any
) -> None:
    url, config = str(tmp_path / "png"), PredictConfig(images_per_shard=3, sinks=sinks)
    predicted(url, collection, config)
    put(collection, {"2.png": encoded(pixels(rng))})
    predicted(url, f"{collection}/2.png", config, run=1)
    assert found(url) == []

    Path(url, "masks", "1.png.png").unlink()
    Path(url, "masks", "4.png.png").write_bytes(encode_mask(LABEL[1:]))
    assert kinds(url) == [
        ("mask object", "parts/run=00000/part-00000.parquet, 1.png"),
        ("mask object", f"{PART_1}, 4.png"),
    ]


def test_run_that_was_cut_off_is_a_finding_as_long_as_its_rows_are_nowhere(
    output: str, collection: str
) -> None:
    predicted(output, collection, run=1)
    path_of(output, 0).unlink()
    parts.write_index(output, CLASSES)
    assert found(output) == []
    path_of(output, 0, run=1).unlink()
    parts.write_index(output, CLASSES)
    [older, newest] = found(output)[:2]
    assert (older.kind, newest.kind) == ("missing row", "missing part")
    assert "1 of 3 parts are not there, and 3 of their images" in older.text
    assert older.text.endswith("first: 0.png")


def test_place_without_an_output_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no manifest and no parts at"):
        found(str(tmp_path))


def test_every_kind_has_a_next_step() -> None:
    assert all(NEXT_STEPS.values())


@pytest.fixture
def two_heads(tmp_path: Path, collection: str) -> str:
    """A run of one head over all images, and one of two heads over three of them."""
    url = str(tmp_path / "out")
    config = PredictConfig(images_per_shard=3, sinks=("parquet", "png"))
    predicted(url, collection, config)
    entries = list(stores.list_entries(f"{collection}/[0-2].png"))
    manifest = planned(
        url, entries, config, run=1, model_digest="1" * 64, further_classes=FURTHER_CLASSES
    )
    write_part_with(TwoHeads(), manifest, 0, config)
    parts.write_index(url, CLASSES, FURTHER_CLASSES)
    return url


def test_masks_of_every_head_are_checked(two_heads: str) -> None:
    assert found(two_heads) == []
    Path(two_heads, "masks-side", "1.png.png").write_bytes(b"no mask")
    path = Path(parts.part_url(two_heads, 1, 0))
    card = part_file.read_card(path)
    table = pq.read_table(path, partitioning=None)
    place = table.schema.get_field_index("mask_side")
    column = table.schema.field(place)
    masks = table["mask_side"].to_pylist()
    masks[0] |= {"bytes": encode_mask(np.zeros((12, 16), np.uint8))}
    changed = table.set_column(place, column, pa.array(masks, column.type))
    own = card.model_copy(update={"sha256": part_file.NO_DIGEST})
    path.write_bytes(part_file.encode_table(changed, own))
    (mask, mask_object, *_) = found(two_heads)
    assert (mask.kind, mask.place) == ("mask", "parts/run=00001/part-00000.parquet, 0.png, side")
    assert "pixels by class, its row says [96, 96]" in mask.text
    assert (mask_object.kind, mask_object.place[-11:]) == ("mask object", "1.png, side")


def test_runs_of_other_heads_are_merged_with_all_columns(two_heads: str) -> None:
    merge = plan_merge(two_heads)
    assert merge is not None
    write_merged(merge)
    remove_merged(merge)
    assert found(two_heads) == []
    rows = {row["key"]: row for row in parts.read(two_heads).to_table().to_pylist()}
    assert (rows["2.png"]["class_pixels_side"], rows["2.png"]["confidence_side"]) == (
        [96, 96],
        0.25,
    )
    assert (rows["3.png"]["mask_side"], rows["3.png"]["class_pixels_side"]) == (None, None)
    assert {mask.key: sorted(mask.further) for mask in Masks(two_heads)} == {
        f"{index}.png": ["side"] if index < 3 else [] for index in range(7)
    }


def test_an_index_without_a_head_of_the_run_is_found(two_heads: str) -> None:
    parts.write_index(two_heads, CLASSES)
    (finding,) = found(two_heads)
    assert (finding.kind, finding.text[:27]) == ("index", "further_classes is None; ex")


@pytest.mark.parametrize("mask_format", ["png", "rle"])
def test_run_lengths_of_every_head(
    mask_format: MaskFormat, tmp_path: Path, collection: str
) -> None:
    config, url = PredictConfig(mask_format=mask_format), str(tmp_path / "two")
    entries = list(stores.list_entries(collection))
    manifest = planned(url, entries, config, further_classes=FURTHER_CLASSES)
    write_part_with(TwoHeads(), manifest, 0, config)
    parts.write_index(url, CLASSES, FURTHER_CLASSES)
    assert found(url) == []
    column = "mask_side" if mask_format == "png" else "mask_rle_side"
    assert column in parts.read(url).schema.names
    assert all((mask.further["side"].label[:, 8:] == 1).all() for mask in Masks(url))
