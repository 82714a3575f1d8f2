"""The page of a prediction shows typical images, also those inside containers."""

from pathlib import Path

import numpy as np

from tasks.collection import collect
from tasks.pages import to_entries
from tasks.predict_config import PredictConfig
from tasks.predict_pages import find_examples, prediction_page
from tasks.shards import PredictSummary, write_part_with
from tests.tasks.containers import parquet, tar
from tests.tasks.pictures import Brightness, encoded, pixels, planned, put


def test_examples_come_from_objects_and_containers(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    images = [encoded(pixels(rng)) for _ in range(6)]
    put(
        f"{tmp_path}/in",
        {
            "a.png": images[0],
            "s.tar": tar(("a.png", images[1]), ("b.png", images[2])),
            "x.parquet": parquet(images[3:]),
        },
    )
    config = PredictConfig(images_per_shard=4)
    pages = collect(f"{tmp_path}/in/*", f"{tmp_path}/out", include=config.include)
    entries = [entry for page in pages for entry in to_entries(page)]
    manifest = planned(f"{tmp_path}/out", entries, config)
    for number in range(manifest.num_shards):
        write_part_with(Brightness(), manifest, number, config)

    examples = find_examples(manifest)

    assert sorted(example.caption.partition(":")[0] for example in examples) == [
        *("a.png", "s.tar/a.png", "s.tar/b.png"),
        *(f"x.parquet/{row:09d}" for row in range(3)),
    ]
    assert all(example.picture.shape == (12, 16, 3) for example in examples)


def test_page_counts_the_keys_that_are_gone() -> None:
    stages = dict.fromkeys(("read", "decode", "network", "encode", "write"), 0.1)
    summary = PredictSummary(
        output_url="out",
        run=1,
        rows=2,
        ok=2,
        partial=0,
        failed=0,
        deleted=1234,
        segmented=2,
        seconds=1.0,
        stages=stages,
    )
    assert "No longer in the collection: 1,234 keys." in prediction_page(summary, [], [])
