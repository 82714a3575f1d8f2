"""A disk that is full, read-only or someone else's: an error that says so, and nothing damaged."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tasks import parts, stores
from tasks.plan import plan_run
from tasks.predict_config import PredictConfig
from tasks.shards import write_part_with
from tasks.stores import StoreError
from tests.tasks.pictures import Brightness, encoded, put, save_model

CONFIG = PredictConfig(images_per_shard=4, sinks=("parquet", "png"))
PAGE = os.sysconf("SC_PAGE_SIZE")
NOBODY = 65534


@pytest.fixture
def disk() -> Iterator[Path]:
    """A file system of one megabyte."""
    place = Path(tempfile.mkdtemp(prefix="fcn-disk-"))
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "fcn-disk", place],
            capture_output=True,
            check=False,
        )
        if mounted.returncode:
            pytest.skip("only root may mount a small file system")
        place.chmod(0o755)
        yield place
        subprocess.run(["umount", "--lazy", place], check=True)  # a traceback may hold a file open
    finally:
        place.rmdir()


@pytest.fixture
def readable() -> Iterator[Path]:
    """A place that anybody may read, as pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="fcn-readable-") as place:
        Path(place).chmod(0o755)
        yield Path(place)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of a model file."""
    return save_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture
def collection(tmp_path: Path, rng: np.random.Generator) -> str:
    """Twelve images, whose masks and parts need some pages each."""
    url = str(tmp_path / "in")
    noise = rng.integers(0, 256, (12, 64, 80, 3), dtype=np.uint8)
    put(url, {f"{index:02}.png": encoded(image) for index, image in enumerate(noise)})
    return url


def run(collection: str, model: str, output: str) -> None:
    """What the flow does, without Prefect and a network."""
    plan = plan_run(collection, model, output, CONFIG)
    for number in plan.missing:
        write_part_with(Brightness(), plan.manifest, number, CONFIG)
    parts.write_index(output, plan.manifest.card.model.label_classes())


def files(output: str) -> dict[str, bytes]:
    found = (path for path in Path(output).rglob("*") if path.is_file())
    return {str(path.relative_to(output)): path.read_bytes() for path in found}


def fill(disk: Path, free: int) -> None:
    """Leave so many bytes."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - free))


def test_disk_full_at_any_moment_leaves_whole_files_and_a_rerun_goes_on(
    disk: Path, collection: str, model: str
) -> None:
    output = str(disk / "out")
    run(collection, model, output)
    undisturbed = files(output)
    shutil.rmtree(output)

    errors: list[StoreError] = []
    for pages in range(1000):
        used = sum(-(-len(data) // PAGE) * PAGE for data in files(output).values())
        fill(disk, free=max(0, pages * PAGE - used))
        try:
            run(collection, model, output)
            break
        except StoreError as error:
            errors.append(error)
        assert files(output).items() <= undisturbed.items()

    told = (
        rf"cannot write {output}/(\w+).*: no space left on device; make room there, then run again"
    )
    found = [re.fullmatch(told, str(error)) for error in errors]
    assert all(found), errors
    assert {match[1] for match in found if match} == {"manifest", "masks", "parts", "_index"}
    assert not any(map(stores.is_transient, errors))
    assert files(output) == undisturbed


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)


@contextmanager
def somebody_else(disk: Path) -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("refusal", "text"),
    [
        (read_only, "read-only file system; choose another place"),
        (somebody_else, "permission denied; check who owns it"),
    ],
)
def test_refused_writing_is_told_and_a_rerun_does_the_rest(
    refusal: object, text: str, disk: Path, readable: Path, collection: str, model: str
) -> None:
    output = str(disk / "out")
    collection = shutil.copytree(collection, str(readable / "in"))
    model = shutil.copy(model, str(readable / "model.safetensors"))
    plan = plan_run(collection, model, output, CONFIG)
    write_part_with(Brightness(), plan.manifest, 0, CONFIG)
    before = files(output)

    with refusal(disk):
        errors = []
        for step in (
            lambda: write_part_with(Brightness(), plan.manifest, 1, CONFIG),
            lambda: parts.write_index(output, Brightness.classes),
            lambda: run(collection, model, output),
        ):
            with pytest.raises(StoreError, match=f"cannot write {output}/.*: {text}") as caught:
                step()
            errors.append(caught.value)

    assert not any(map(stores.is_transient, errors))
    assert files(output) == before
    run(collection, model, output)
    assert parts.listed(output) == {0: [0, 1, 2]}
    assert parts.is_indexed(output)


def test_full_place_for_temporary_files_is_told(
    disk: Path, collection: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(disk, free=0)
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    with pytest.raises(StoreError, match=rf"cannot write {disk}/.*no space left on device; make"):
        run(collection, model, str(tmp_path / "out"))
    assert files(str(tmp_path / "out")) == {}
    assert [path.name for path in disk.iterdir()] == ["filler"]
