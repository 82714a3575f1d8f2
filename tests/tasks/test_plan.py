"""A run is planned from what the parts say: all, the rest, what changed, or nothing."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn import backends
from fcn.errors import BackendError, CheckpointError
from tasks import deleted, models, parts, stores
from tasks.manifest import Manifest
from tasks.pages import rechunk, to_page
from tasks.plan import Plan, changes, newest, plan_run
from tasks.predict_config import PredictConfig
from tasks.shards import write_part, write_part_with
from tasks.stores import Entry, StoreError
from tests.tasks.containers import parquet, tar
from tests.tasks.pictures import Brightness, encoded, pixels, put, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of a model file."""
    return save_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture
def collection(tmp_path: Path, rng: np.random.Generator) -> str:
    """A collection of seven images."""
    url = str(tmp_path / "in")
    put(url, {f"{index}.png": encoded(pixels(rng)) for index in range(7)})
    return url


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "out")


def make(plan: Plan, config: PredictConfig, *shards: int) -> Manifest:
    """Do shards of a plan (all that are missing, if none are named), without a network."""
    for number in shards or plan.missing:
        write_part_with(Brightness(), plan.manifest, number, config)
    return plan.manifest


def keys(plan: Plan) -> list[str]:
    return [entry.key for entry in plan.manifest.entries()]


CONFIG = PredictConfig(images_per_shard=3)


def test_first_run_is_everything(collection: str, model: str, output: str) -> None:
    plan = plan_run(collection, model, output, CONFIG)
    assert (plan.missing, plan.num_missing, plan.manifest.card.run) == ((0, 1, 2), 7, 0)
    assert plan.manifest.card.model.label_classes() == Brightness.classes


def test_unfinished_run_goes_on_with_its_own_shards(
    collection: str, model: str, output: str
) -> None:
    make(plan_run(collection, model, output, CONFIG), CONFIG, 0, 2)
    put(collection, {"new.png": b"listed by the next run"})

    plan = plan_run(collection, model, output, CONFIG.model_copy(update={"images_per_shard": 5}))

    assert (plan.missing, plan.num_missing, plan.manifest.num_rows) == ((1,), 3, 7)


def test_finished_run_leaves_nothing_to_do_and_loads_no_model(
    collection: str, model: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(plan_run(collection, model, output, CONFIG), CONFIG)
    monkeypatch.setattr(models, "_loaded", {})
    plan = plan_run(collection, model, output, CONFIG)
    assert (plan.missing, plan.num_missing, plan.manifest.card.run) == ((), 0, 0)
    assert not models._loaded


def test_same_model_at_another_place_is_the_same_model(
    collection: str, model: str, output: str, tmp_path: Path
) -> None:
    make(plan_run(collection, model, output, CONFIG), CONFIG)
    copy = str(tmp_path / "copy.safetensors")
    stores.write_bytes(copy, stores.read_bytes(model))
    assert plan_run(collection, copy, output, CONFIG).missing == ()


def test_next_run_is_what_is_new_or_changed(
    collection: str, model: str, output: str, rng: np.random.Generator
) -> None:
    make(plan_run(collection, model, output, CONFIG), CONFIG)
    put(collection, {"1.png": encoded(pixels(rng, 20, 20)), "25.png": encoded(pixels(rng))})
    stores.remove(f"{collection}/6.png")

    plan = plan_run(collection, model, output, CONFIG)

    assert (plan.manifest.card.run, keys(plan)) == (1, ["1.png", "25.png"])
    make(plan, CONFIG)
    assert plan_run(collection, model, output, CONFIG).missing == ()
    newest = parts.read(output).to_table(columns=["key", "height", "run"]).sort_by("key")
    assert newest.to_pylist()[1:3] == [
        {"key": "1.png", "height": 20, "run": 1},
        {"key": "2.png", "height": 12, "run": 0},
    ]


def test_image_that_could_not_be_read_is_done_again(
    collection: str, model: str, output: str
) -> None:
    plan = plan_run(collection, model, output, CONFIG)
    put(collection, {"7.jpg": b"no image"})  # after planning: not part of this run
    image = stores.read_bytes(f"{collection}/4.png")
    stores.remove(f"{collection}/4.png")
    make(plan, CONFIG)
    stores.write_bytes(f"{collection}/4.png", image)

    plan = plan_run(collection, model, output, CONFIG)
    assert keys(plan) == ["4.png", "7.jpg"]
    make(plan, CONFIG)
    assert plan_run(collection, model, output, CONFIG).missing == ()  # 7.jpg stays bad


@pytest.mark.parametrize(
    "settings",
    [{"mask_format": "rle"}, {"max_image_pixels": 1000}, {"lenient": True}, {"sinks": ("png",)}],
)
def test_settings_that_change_rows_ask_for_everything_again(
    collection: str, model: str, output: str, settings: dict[str, Any]
) -> None:
    make(plan_run(collection, model, output, CONFIG), CONFIG)
    changed = PredictConfig(images_per_shard=3, **settings)
    plan = plan_run(collection, model, output, changed)
    assert (plan.manifest.card.run, plan.num_missing) == (1, 7)
    make(plan, changed)
    assert plan_run(collection, model, output, changed).missing == ()


@pytest.mark.parametrize(
    "settings",
    [{"batch_size": 2}, {"concurrency": 9}, {"max_failed": 1.0}, {"tile_size": 64}],
)
def test_settings_that_change_no_row_ask_for_nothing(
    collection: str, model: str, output: str, settings: dict[str, Any]
) -> None:
    make(plan_run(collection, model, output, CONFIG), CONFIG)
    changed = PredictConfig(images_per_shard=3, **settings)
    assert plan_run(collection, model, output, changed).missing == ()


def test_other_model_asks_for_everything_again_and_back(
    collection: str, model: str, output: str, tmp_path: Path
) -> None:
    other = save_model(tmp_path / "other.safetensors", seed=1)
    make(plan_run(collection, model, output, CONFIG), CONFIG)
    make(plan_run(collection, other, output, CONFIG), CONFIG, 0)  # cut off after a shard

    plan = plan_run(collection, model, output, CONFIG)

    assert (plan.manifest.card.run, keys(plan)) == (2, ["0.png", "1.png", "2.png"])


def test_model_that_cannot_be_used_leaves_no_trace(
    collection: str, output: str, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: not a readable safetensors"):
        plan_run(collection, str(bad), output, CONFIG)
    with pytest.raises(StoreError, match=r"cannot list .*/absent\.safetensors: nothing there"):
        plan_run(collection, str(tmp_path / "absent.safetensors"), output, CONFIG)
    with pytest.raises(StoreError, match=r"model_url .* is no file; expected a model such as"):
        plan_run(collection, str(tmp_path), output, CONFIG)
    assert not stores.exists(output)


def test_collection_without_images_says_what_was_looked_for(
    tmp_path: Path, model: str, output: str
) -> None:
    put(str(tmp_path / "in"), {"notes.txt": b""})
    with pytest.raises(StoreError, match=r"no images at .*/in; of a prefix these names count: \*"):
        plan_run(str(tmp_path / "in"), model, output, CONFIG)
    with pytest.raises(StoreError, match=r"no images at .*/in/\*\.jpg"):
        plan_run(f"{tmp_path}/in/*.jpg", model, output, CONFIG)
    with pytest.raises(StoreError, match=r"cannot list .*/typo: nothing there"):
        plan_run(str(tmp_path / "typo"), model, output, CONFIG)


def test_unwritable_output_is_told_before_any_work(collection: str, model: str) -> None:
    with pytest.raises(StoreError, match="cannot write /proc/out"):
        plan_run(collection, model, "/proc/out", CONFIG)


def test_urls_with_credentials_are_refused_and_not_repeated(collection: str, model: str) -> None:
    with pytest.raises(StoreError, match=r"s3://bucket/out was given with a user name") as caught:
        plan_run(collection, model, "s3://me:secret@bucket/out", CONFIG)
    assert "secret" not in str(caught.value)


def test_deleted_keys_are_counted_and_written_where_a_reader_finds_them(
    collection: str, model: str, output: str, rng: np.random.Generator
) -> None:
    plan = plan_run(collection, model, output, CONFIG)
    assert plan.num_deleted == 0
    make(plan, CONFIG)
    assert not stores.exists(deleted.deleted_url(output))
    images = {key: stores.read_bytes(f"{collection}/{key}") for key in ("2.png", "6.png")}
    for key in images:
        stores.remove(f"{collection}/{key}")

    assert (plan_run(collection, model, output, CONFIG).num_deleted, gone(output)) == (
        2,
        [("2.png", 0), ("6.png", 0)],
    )

    put(collection, {"2.png": encoded(pixels(rng, 20, 20)), "7.png": encoded(pixels(rng))})
    plan = plan_run(collection, model, output, CONFIG)
    assert (keys(plan), plan.num_deleted, gone(output)) == (["2.png", "7.png"], 1, [("6.png", 0)])
    cut_off = plan_run(collection, model, output, CONFIG)  # goes on without a listing
    assert (cut_off.num_missing, cut_off.num_deleted) == (2, 1)
    make(plan, CONFIG)
    assert parts.read(output).count_rows() == 8  # the row stays

    stores.remove(f"{collection}/2.png")
    plan_run(collection, model, output, CONFIG)
    assert gone(output) == [("2.png", 1), ("6.png", 0)]

    put(collection, images)
    plan = plan_run(collection, model, output, CONFIG)
    make(plan, CONFIG)
    assert plan_run(collection, model, output, CONFIG).missing == ()
    assert not stores.exists(deleted.deleted_url(output))


def gone(output_url: str) -> list[tuple[str, int]]:
    """The deleted keys as they are written down."""
    table = pq.read_table(deleted.deleted_url(output_url))
    return [(row["key"], row["run"]) for row in table.to_pylist()]


def test_images_in_containers_are_done_once_and_again_when_the_container_changes(
    tmp_path: Path, model: str, output: str, rng: np.random.Generator
) -> None:
    images = [encoded(pixels(rng)) for _ in range(4)]
    shard = tar(("a.png", images[0]), ("a.txt", b"a"), ("b.png", images[1]))
    collection = str(tmp_path / "in")
    put(collection, {"s.tar": shard, "x.parquet": parquet(images[2:])})
    make(plan_run(collection, model, output, CONFIG), CONFIG)

    rows = parts.read(output).to_table(columns=["key", "url", "status", "height"]).to_pylist()
    assert [(row["key"], row["status"], row["height"]) for row in rows] == [
        (key, "ok", 12)
        for key in ("s.tar/a.png", "s.tar/b.png", "x.parquet/000000000", "x.parquet/000000001")
    ]
    assert rows[0]["url"] == f"tar://a.png::{collection}/s.tar"
    assert plan_run(collection, model, output, CONFIG).missing == ()

    put(collection, {"s.tar": tar(("b.png", images[1]), ("c.png", images[0]))})
    plan = plan_run(collection, model, output, CONFIG)
    assert (keys(plan), gone(output)) == (["s.tar/b.png", "s.tar/c.png"], [("s.tar/a.png", 0)])


def test_finished_and_cut_off_runs_are_recognised_with_few_listings(
    collection: str, model: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(plan_run(collection, model, output, CONFIG), CONFIG, 0, 2)
    listed: list[str] = []
    list_entries = stores.list_entries

    def watch(url: str) -> Iterator[Entry]:
        listed.append(url.rpartition("/")[2])
        return list_entries(url)

    monkeypatch.setattr(stores, "list_entries", watch)
    plan = plan_run(collection, model, output, CONFIG)
    assert plan.missing == (1,)
    assert (listed.count("parts"), listed.count("in")) == (1, 0)
    make(plan, CONFIG)
    listed.clear()
    assert plan_run(collection, model, output, CONFIG).missing == ()
    assert listed.count("in") == 1
    assert listed.count("parts") == 2  # whether it is finished, and with which rows


def _page(rows: dict[str, int]) -> pa.Table:
    return to_page(
        [Entry(key=key, url=key, size=1, etag=str(etag)) for key, etag in sorted(rows.items())]
    )


_listing = st.dictionaries(st.text(max_size=3), st.integers(0, 2), max_size=12)
_digest = st.sampled_from(["d", "x", ""])


@given(
    now=_listing,
    before=st.lists(st.dictionaries(st.text(max_size=2), st.tuples(st.integers(0, 2), _digest))),
    num_rows=st.integers(1, 5),
)
@settings(deadline=None, max_examples=40)
def test_changes_are_the_difference(
    now: dict[str, int], before: list[dict[str, tuple[int, str]]], num_rows: int
) -> None:
    rows_now: dict[str, tuple[int, str]] = {}
    committed = []
    for run, rows in enumerate(before):
        rows_now |= rows
        page = _page({key: etag for key, (etag, _) in rows.items()})
        page = page.append_column("digest", [[rows[key][1] for key in sorted(rows)]])
        page = page.append_column("run", pa.array([run] * len(rows), pa.int32()))
        committed.insert(0, rechunk([page], num_rows))
    with tempfile.TemporaryDirectory() as folder:
        with deleted.Draft(Path(folder) / "deleted.parquet") as draft:
            pages = list(changes(rechunk([_page(now)], 3), newest(committed), "d", draft))
        found = [key for page in pages for key in page["key"].to_pylist()]
        away = pq.read_table(Path(folder) / "deleted.parquet")["key"].to_pylist()
    assert found == sorted(key for key in now if rows_now.get(key) != (now[key], "d"))
    assert away == sorted(rows_now.keys() - now.keys())


def forget(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As on a machine where these are not installed."""
    there = backends.find_spec
    monkeypatch.setattr(backends, "find_spec", lambda n: None if n in names else there(n))


def test_output_begun_with_one_backend_is_gone_on_with_it(
    collection: str, model: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        forget(elsewhere, "openvino", "onnxruntime")
        first = plan_run(collection, model, output, CONFIG)
    assert first.manifest.card.backend == "torch"
    make(first, CONFIG, 0)
    again = plan_run(collection, model, output, CONFIG)
    assert (again.manifest.card.backend, again.missing) == ("torch", (1, 2))
    make(again, CONFIG)
    assert plan_run(collection, model, output, CONFIG).missing == ()
    put(collection, {"new.png": b"added"})
    later = plan_run(collection, model, output, CONFIG)
    assert (later.manifest.card.run, later.num_missing) == (1, 1)
    assert later.manifest.card.backend == "torch"


def test_backend_that_is_gone_is_named_and_another_does_everything_anew(
    collection: str, model: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = plan_run(collection, model, output, CONFIG)
    assert first.manifest.card.backend == "openvino"
    make(first, CONFIG, 0)
    forget(monkeypatch, "openvino")
    with pytest.raises(BackendError, match=r"made with openvino.*fcn-flows\[openvino\].* anew"):
        plan_run(collection, model, output, CONFIG)
    asked = CONFIG.model_copy(update={"backend": "torch"})
    anew = plan_run(collection, model, output, asked)
    assert (anew.manifest.card.backend, anew.num_missing) == ("torch", 7)
    make(anew, asked)
    assert plan_run(collection, model, output, CONFIG).missing == ()  # torch's run is the newest
    other = CONFIG.model_copy(update={"mask_format": "rle"})
    assert plan_run(collection, model, output, other).manifest.card.backend == "onnxruntime"


def test_shards_run_on_the_backend_of_the_plan(collection: str, model: str, output: str) -> None:
    plan = plan_run(collection, model, output, CONFIG.model_copy(update={"backend": "onnxruntime"}))
    models._loaded.clear()
    write_part(plan.manifest, 0, model, CONFIG)
    (loaded,) = models._loaded.values()
    assert loaded.predictor.backend == "onnxruntime"
