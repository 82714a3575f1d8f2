"""The page of a prediction: counts, stages, classes, and what to label next."""

import dataclasses

from tasks.predict_pages import class_rows, prediction_page, weak_spot_rows
from tasks.shards import PredictSummary
from tasks.weak_spots import ClassShare, WeakSpot

SUMMARY = PredictSummary(
    output_url="out",
    run=3,
    rows=10,
    ok=9,
    partial=0,
    failed=1,
    segmented=10,
    seconds=4.0,
    stages={"read": 0.5, "decode": 1.0, "network": 3.0, "encode": 0.0, "write": 0.1},
    class_shares=(
        ClassShare(name="sky", pixels=1500, share=0.15, before=0.14),
        ClassShare(name="road|way", pixels=8500, share=0.85, before=0.9),
    ),
    weak_spots=(WeakSpot(confidence=0.31, key="x.jpg", class_pixels=(10, 30)),),
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


def test_first_run_has_nothing_to_be_compared_with() -> None:
    shares = tuple(dataclasses.replace(share, before=None) for share in SUMMARY.class_shares)
    summary = dataclasses.replace(SUMMARY, class_shares=shares, weak_spots=(), segmented=0)
    assert [row["drift"] for row in class_rows(summary)] == ["–", "–"]
    page = prediction_page(summary, [], [])
    assert "Least confident" not in page
    assert "busy" not in page
