"""Verify, compact and browse as flows: what they show, and how they end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact

from flows.browse import browse
from flows.command_line import main
from flows.compact import compact
from flows.verify import verify
from tasks import parts, stores
from tasks.predict_config import PredictConfig
from tasks.shards import write_part_with
from tests.tasks.pictures import CLASSES, Brightness, encoded, pixels, planned, put

pytestmark = pytest.mark.usefixtures("prefect_server")

CONFIG = PredictConfig(images_per_shard=4)


@pytest.fixture
def output(tmp_path: Path, rng: np.random.Generator) -> str:
    """Nine images and a bad one, two of them done again by a second run."""
    collection, url = str(tmp_path / "in"), str(tmp_path / "out")
    put(collection, {f"{index}.png": encoded(pixels(rng)) for index in range(9)})
    put(collection, {"bad|name.jpg": b"no image"})
    for run, chosen in enumerate([collection, f"{collection}/[12].png"]):
        manifest = planned(url, list(stores.list_entries(chosen)), CONFIG, run=run)
        for number in range(manifest.num_shards):
            write_part_with(Brightness(), manifest, number, CONFIG)
    parts.write_index(url, CLASSES)
    return url


def artifacts(state: Any) -> dict[str, Artifact]:
    """The artifacts of a flow run, by key."""
    with get_client(sync_client=True) as client:
        wanted = ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id])
        found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=wanted))
    return {artifact.key or "": artifact for artifact in found}


def test_verify_counts_what_it_went_through(output: str) -> None:
    summary = verify(output)
    assert (summary.runs, summary.parts, summary.rows, summary.masks) == (2, 4, 12, 11)


def test_verify_ends_with_what_is_wrong_where_and_what_to_do(
    output: str, capfd: pytest.CaptureFixture[str]
) -> None:
    part = Path(parts.part_url(output, 0, 1))
    part.write_bytes(part.read_bytes()[:-1])
    Path(output, "parts", "notes.txt").write_text("mine")
    assert main(["verify", "--output-url", output]) == 1
    errors = capfd.readouterr().err
    assert "error: 2 findings, 8 rows checked\n" in errors
    assert "  unreadable part, 1: parts/run=00000/part-00001.parquet: no part of ours" in errors
    assert "    remove the part and _index.json, then run predict again: its images" in errors
    assert " are segmented anew\n" in errors
    assert "  foreign file, 1: parts/notes.txt: no name of a part\n" in errors

    state = verify(output, return_state=True)
    table = str(artifacts(state)["verify-findings"].data)
    assert state.is_failed()
    assert '"kind": "foreign file"' in table
    assert '"do": "move it elsewhere' in table


def test_compact_merges_and_verify_agrees(output: str) -> None:
    state = compact(output, return_state=True)
    summary = state.result()
    assert (summary.run, summary.merged, summary.rows, summary.parts) == (2, 2, 10, 3)
    assert "10 of 10 rows" in str(artifacts(state)["compact-progress"].description)
    assert verify(output).rows == 10
    assert compact(output).merged == 0


def test_browse_writes_a_page_and_shows_it_in_the_ui(output: str, tmp_path: Path) -> None:
    state = browse(output, return_state=True)
    summary = state.result()
    assert (summary.images, summary.failed, summary.shown) == (10, 1, 9)
    page = Path(output, "browse.html").read_text("utf-8")
    assert summary.page_url == f"{output}/browse.html"
    assert page.count("<figure>") == 9
    assert "bad|name.jpg" in page
    markdown = str(artifacts(state)["browse"].data)
    assert markdown.count("data:image/jpeg;base64,") == 9

    other = str(tmp_path / "pages" / "mine.html")
    assert main(["browse", "--output-url", output, "--page-url", other, "--seed", "3"]) == 0
    assert Path(other).is_file()
