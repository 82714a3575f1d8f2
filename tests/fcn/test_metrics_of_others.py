"""The figures of `fcn.Scores` beside those of scikit-learn and torchmetrics."""

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.classification as tm

from fcn.metrics import Scores, confusion

NUM_CLASSES, IGNORE = 6, 255


@pytest.fixture
def maps(rng) -> tuple[np.ndarray, np.ndarray]:
    """Labels with ignored pixels and predictions; class 4 is only predicted, 5 is absent."""
    label = rng.choice([0, 1, 2, 3, IGNORE], (4, 30, 40), p=[0.5, 0.3, 0.1, 0.02, 0.08])
    guess = rng.integers(0, 5, label.shape)
    wrong = rng.random(label.shape) < 0.3
    return label, np.where(wrong | (label == IGNORE), guess, label)


def test_scikit_learn_has_the_same_figures(maps) -> None:
    label, prediction = maps
    counted = label != IGNORE
    true, predicted = label[counted], prediction[counted]
    scores = Scores(confusion(label, prediction, NUM_CLASSES))
    every = range(NUM_CLASSES)
    matrix = sklearn.metrics.confusion_matrix(true, predicted, labels=every)
    np.testing.assert_array_equal(scores.confusion, matrix)
    accuracy = sklearn.metrics.accuracy_score(true, predicted)
    assert scores.pixel_accuracy == pytest.approx(accuracy, abs=1e-12)
    recall = sklearn.metrics.recall_score(true, predicted, labels=[0, 1, 2, 3], average=None)
    np.testing.assert_allclose(scores.accuracy, [*recall, np.nan, np.nan], atol=1e-12)
    assert scores.mean_accuracy == pytest.approx(recall.mean(), abs=1e-12)
    # Without labels, scikit-learn means over the classes in truth or prediction, as we do.
    mean_iu = sklearn.metrics.jaccard_score(true, predicted, average="macro")
    assert scores.mean_iu == pytest.approx(mean_iu, abs=1e-12)
    weighted = sklearn.metrics.jaccard_score(true, predicted, average="weighted")
    assert scores.frequency_weighted_iu == pytest.approx(weighted, abs=1e-12)


def test_torchmetrics_has_the_same_figures(maps) -> None:
    label, prediction = map(torch.from_numpy, maps)
    scores = Scores(confusion(label, prediction, NUM_CLASSES))

    def figure(metric, **options):
        return metric(NUM_CLASSES, ignore_index=IGNORE, **options)(prediction, label).numpy()

    np.testing.assert_array_equal(scores.confusion, figure(tm.MulticlassConfusionMatrix))
    accuracy = figure(tm.MulticlassAccuracy, average="micro")
    assert scores.pixel_accuracy == pytest.approx(accuracy, abs=1e-6)  # in float32
    ius = figure(tm.MulticlassJaccardIndex, average=None)
    np.testing.assert_allclose(np.nan_to_num(scores.iu), ius, atol=1e-6)
    assert scores.mean_iu == pytest.approx(ius[:5].mean(), abs=1e-6)  # class 5 is absent
    recalls = figure(tm.MulticlassRecall, average=None)
    assert scores.mean_accuracy == pytest.approx(recalls[:4].mean(), abs=1e-6)
    weighted = figure(tm.MulticlassJaccardIndex, average="weighted")
    assert scores.frequency_weighted_iu == pytest.approx(weighted, abs=1e-6)
