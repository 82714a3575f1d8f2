"""A run is planned from what the parts say: all, the rest, what changed, or nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn.errors import CheckpointError
from tasks import models, parts, stores
from tasks.manifest import Manifest
from tasks.plan import Done, Plan, pending, plan_run
from tasks.predict_config import PredictConfig
from tasks.shards import write_part_with
from tasks.stores import Entry, StoreError
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
    assert list(stores.list_entries(output)) == []


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


def _entries(rows: dict[str, int]) -> Iterator[Entry]:
    for key, etag in sorted(rows.items()):
        yield Entry(key=key, url=key, size=1, etag=str(etag))


_listing = st.dictionaries(st.text(max_size=3), st.integers(0, 2), max_size=12)


@given(
    now=_listing, before=_listing, digests=st.lists(st.sampled_from(["d", "x", ""]), min_size=12)
)
def test_pending_is_the_difference(
    now: dict[str, int], before: dict[str, int], digests: list[str]
) -> None:
    done = [
        Done(entry=entry, run=0, digest=digest)
        for entry, digest in zip(_entries(before), digests, strict=False)
    ]
    same = {row.entry.key for row in done if row.digest == "d"} & {
        key for key in now if now[key] == before.get(key)
    }
    assert [entry.key for entry in pending(_entries(now), done, "d")] == sorted(now.keys() - same)
