"""Scores of a split, from label maps that are known."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from fcn.averaging import AveragedPredictor
from fcn.boundary import boundary_f1
from fcn.classes import Classes
from fcn.errors import EmptyImage, LabelError, TruncatedImage
from fcn.evaluate import Scored, score_samples, score_split
from fcn.masks import encode_mask
from fcn.metrics import Scores, confusion
from fcn.predict import Predictor
from tests.fcn.models import varied_model
from tests.fcn.scenes import Pair, squares
from tests.fcn.test_averaging import brightness

CLASSES = Classes.named(["a", "b", "c", "d"])  # d does not occur


@pytest.fixture
def maps(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Five labels with ignored pixels and their predictions; the last label is all ignored."""
    labels = [rng.choice([0, 1, 2, 255], (12, 10 + i)).astype(np.uint8) for i in range(4)]
    labels.append(np.full((6, 7), 255, np.uint8))
    return [(label, rng.integers(0, 3, label.shape).astype(np.uint8)) for label in labels]


def scored(maps: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[Scored]:
    for label, prediction in maps:
        image = np.zeros((*label.shape, 3), np.uint8)
        yield Scored(image, label, prediction, confusion(label, prediction, len(CLASSES)))


def test_the_split_is_scored_by_one_confusion_matrix(
    maps: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    result = score_split(scored(maps), CLASSES)
    expected = sum(sample.confusion for sample in scored(maps))
    np.testing.assert_array_equal(result.scores.confusion, expected)
    assert result.intervals.mean_iu.low < result.scores.mean_iu < result.intervals.mean_iu.high


def test_every_image_has_its_own_scores(maps: list[tuple[np.ndarray, np.ndarray]]) -> None:
    result = score_split(scored(maps), CLASSES)
    assert len(result.images) == len(maps)
    for image, sample in zip(result.images[:-1], scored(maps), strict=False):
        scores = Scores(sample.confusion)
        assert (image.height, image.width) == sample.label.shape
        assert image.pixels == (sample.label != 255).sum()
        assert (image.mean_iu, image.pixel_accuracy) == (scores.mean_iu, scores.pixel_accuracy)
        assert image.num_present == 3
        boundaries = boundary_f1(sample.label, sample.prediction, 4)
        assert image.boundary_f1 == pytest.approx(np.nanmean(boundaries))


def test_an_image_without_a_counted_pixel_has_no_scores(
    maps: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    last = score_split(scored(maps), CLASSES).images[-1]
    assert (last.pixels, last.num_present) == (0, 0)
    assert np.isnan([last.pixel_accuracy, last.mean_iu, last.boundary_f1]).all()


def test_boundary_f1_of_a_class_is_its_mean_over_the_images_that_have_it(
    maps: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    result = score_split(scored(maps), CLASSES)
    each = np.array([boundary_f1(label, prediction, 4) for label, prediction in maps[:4]])
    np.testing.assert_allclose(result.boundary_f1, [*each[:, :3].mean(axis=0), np.nan])
    assert result.mean_boundary_f1 == pytest.approx(each[:, :3].mean())


def test_a_split_without_samples_has_no_scores() -> None:
    result = score_split(iter(()), CLASSES)
    assert result.images == []
    assert np.isnan([result.scores.mean_iu, result.intervals.mean_iu.low]).all()
    assert np.isnan(result.mean_boundary_f1)


def test_samples_come_in_order_with_the_predictors_labels() -> None:
    trained = varied_model("squeezenet1_1", 2)
    samples = squares(3)
    for predictor in (Predictor(trained), AveragedPredictor(trained, flip=True, scales=(1, 1.5))):
        for sample, found in zip(samples, score_samples(predictor, samples), strict=True):
            (again,) = predictor([found.image])
            assert np.array_equal(found.prediction, again)
            expected = next(score_samples(predictor, [sample]))
            assert np.array_equal(found.confusion, expected.confusion)


def test_a_label_of_another_size_than_its_image_is_refused() -> None:
    first, second = squares(1)[0], squares(1, size=(30, 48))[0]
    mixed = type(first)(first.image, second.label)
    reason = r"sample pair: label map is \(30, 48\), its image \(40, 48\)"
    with pytest.raises(LabelError, match=reason):
        next(score_samples(AveragedPredictor(brightness()), [mixed]))


def test_what_is_wrong_with_a_sample_names_it() -> None:
    good = squares(1)[0]
    stray = encode_mask(np.full((40, 48), 7, np.uint8), [(0, 0, 0)] * 8)
    for sample, error, reason in (
        (Pair(good.image, stray, "0016E5"), LabelError, "label holds class 7 in 1,920 pixels"),
        (Pair(good.image[:99], good.label, "0016E5"), TruncatedImage, "truncated PNG"),
        (Pair(good.image, b"", "0016E5"), EmptyImage, "zero bytes"),
    ):
        with pytest.raises(error, match=f"sample 0016E5: {reason}"):
            next(score_samples(AveragedPredictor(brightness()), [sample]))


def test_every_head_is_scored_by_itself(maps: list[tuple[np.ndarray, np.ndarray]]) -> None:
    geo = Classes.named(["x", "y", "z"])
    other = [
        Scored(s.image, s.label, s.label, confusion(s.label, s.label, 3, 255)) for s in scored(maps)
    ]
    both = [replace(s, further={"geo": o}) for s, o in zip(scored(maps), other, strict=True)]
    result = score_split(both, CLASSES, {"geo": geo})
    alone = score_split(scored(maps), CLASSES)
    np.testing.assert_array_equal(result.scores.confusion, alone.scores.confusion)
    assert result.further["geo"].scores.mean_iu == 1
    assert len(result.further["geo"].images) == len(maps)
