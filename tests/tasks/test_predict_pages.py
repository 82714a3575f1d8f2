"""The page of a prediction: counts, stages, classes, what to label next, typical images."""

import dataclasses
from pathlib import Path

import numpy as np

from tasks.collection import collect
from tasks.pages import to_entries
from tasks.predict_config import PredictConfig
from tasks.predict_pages import class_rows, find_examples, prediction_page, weak_spot_rows
from tasks.shards import PredictSummary, write_part_with
from tasks.slow_images import SlowImage
from tasks.weak_spots import ClassShare, WeakSpot
from tests.tasks.containers import parquet, tar
from tests.tasks.pictures import Brightness, encoded, pixels, planned, put

SUMMARY = PredictSummary(
    output_url="out",
    run=3,
    rows=10,
    ok=9,
    partial=0,
    failed=1,
    deleted=0,
    segmented=10,
    seconds=4.0,
    stages={"read": 0.5, "decode": 1.0, "network": 3.0, "encode": 0.0, "write": 0.1},
    class_shares=(
        ClassShare(name="sky", pixels=1500, share=0.15, before=0.14),
        ClassShare(name="road|way", pixels=8500, share=0.85, before=0.9),
    ),
    weak_spots=(WeakSpot(confidence=0.31, key="x.jpg", class_pixels=(10, 30)),),
    slow_images=(
        SlowImage(seconds=20.5, key="hangs.jp2", status="failed", height=None, width=None),
        SlowImage(seconds=1.25, key="wide.png", status="ok", height=500, width=20_000),
    ),
)


def test_stages_are_told_with_their_throughput_and_the_networks_share() -> None:
    page = prediction_page(SUMMARY, [], [])
    assert "| decode | 1.0 | 10.0 |" in page
    assert "| encode | 0.0 | – |" in page
    assert "The network was busy 75 % of the time" in page


def test_classes_stand_by_how_far_they_have_moved() -> None:
    assert class_rows(SUMMARY) == [
        {
            "class": "road|way",
            "pixels": "8,500",
            "share": "85.00 %",
            "run before": "90.00 %",
            "drift": "-5.00",
        },
        {
            "class": "sky",
            "pixels": "1,500",
            "share": "15.00 %",
            "run before": "14.00 %",
            "drift": "+1.00",
        },
    ]
    assert r"| road\|way | 8,500 | 85.00 % | 90.00 % | \-5.00 |" in prediction_page(SUMMARY, [], [])


def test_least_confident_images_are_named_with_their_largest_class() -> None:
    assert weak_spot_rows(SUMMARY) == [
        {"key": "x.jpg", "confidence": "0.310", "mostly": "road|way"}
    ]
    assert "## Least confident images" in prediction_page(SUMMARY, [], [])


def test_slowest_images_are_named_with_their_size_and_what_became_of_them() -> None:
    page = prediction_page(SUMMARY, [], [])
    assert "## Slowest images" in page
    assert "| hangs.jp2 | 20.50 | – | failed |" in page
    assert "| wide.png | 1.25 | 500 x 20,000 | ok |" in page
    idle = dataclasses.replace(SUMMARY, slow_images=())
    assert "Slowest" not in prediction_page(idle, [], [])


def test_first_run_has_nothing_to_be_compared_with() -> None:
    shares = tuple(dataclasses.replace(share, before=None) for share in SUMMARY.class_shares)
    summary = dataclasses.replace(SUMMARY, class_shares=shares, weak_spots=(), segmented=0)
    assert [row["drift"] for row in class_rows(summary)] == ["–", "–"]
    page = prediction_page(summary, [], [])
    assert "Least confident" not in page
    assert "busy" not in page


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
    summary = dataclasses.replace(SUMMARY, deleted=1234)
    assert "No longer in the collection: 1,234 keys." in prediction_page(summary, [], [])
    assert "No longer" not in prediction_page(SUMMARY, [], [])
