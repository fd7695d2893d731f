"""The classifier by itself: its features, its sums, its training, its calibration, and what is said of it."""

import numpy as np
import pytest

from data_prep.quality import classifier, evaluate, features
from data_prep.quality.classifier import Classifier
from data_prep.quality.plot import calibration_plot, interval
from data_prep.text.texts import Texts

NAMES = ("a", "b")


def features_of(text, ngram=2, count=2**20):
    found, bounds = features.buckets(features.hashed(Texts.from_strings([text])), ngram, count)
    assert bounds.tolist() == [0, len(found)] and (found >= 0).all() and (found < count).all()
    return sorted(found.tolist())


def test_features_are_the_words_and_their_sequences():
    one, two, three = (features_of("The cat sat .", n) for n in (1, 2, 3))
    assert (len(one), len(two), len(three)) == (4, 7, 9) and set(one) < set(two) < set(three)
    assert set(features_of("the cat", 2)) < set(two) and not set(features_of("cat the", 2)) <= set(two)
    assert features_of("") == [] and len(features_of("cat", 3)) == 1
    assert max(features_of("The cat sat .", 3, 1024)) < 1024


@pytest.mark.parametrize("same", [("The CAT", "the cat"), ("圖書館", "图书馆"), ("Ａｂｃ １", "abc 1")])
def test_case_script_and_compatibility_forms_make_no_difference(same):
    assert features_of(same[0]) == features_of(same[1])


def test_han_characters_are_words():
    assert len(features_of("图书馆", 2)) == 5 and set(features_of("书馆", 2)) < set(features_of("图书馆", 2))


def test_features_of_a_document_do_not_depend_on_its_neighbours():
    together, bounds = features.buckets(features.hashed(Texts.from_strings(["a b", "", "b c d"])), 2, 2**12)
    alone = [features_of(text, 2, 2**12) for text in ("a b", "", "b c d")]
    assert [sorted(together[a:b].tolist()) for a, b in zip(bounds, bounds[1:], strict=False)] == alone


def random_documents(count, generator, buckets=50):
    sizes = generator.integers(0, 9, count)
    return generator.integers(0, buckets, sizes.sum()).astype(np.int32), np.append(0, np.cumsum(sizes))


def test_sums_are_weights_by_the_root_of_the_length():
    generator = np.random.default_rng(0)
    found, bounds = random_documents(20, generator)
    weights = generator.normal(size=(50, 2)).astype(np.float32)
    for row, start, stop in zip(classifier.sums(found, bounds, weights), bounds, bounds[1:], strict=False):
        expected = weights[found[start:stop]].astype(float).sum(0) / np.sqrt(max(1, stop - start))
        np.testing.assert_allclose(row, [*expected, 0], rtol=1e-12)


def test_training_is_adagrad_on_the_likelihood_document_by_document():
    generator = np.random.default_rng(1)
    found, bounds = random_documents(30, generator, 8)
    labels = generator.integers(0, 3, 30)
    orders = np.stack([generator.permutation(30) for _ in range(2)])
    weights, squares = np.zeros((8, 2)), np.zeros((8, 2))
    for document in orders.ravel():
        features_here = found[bounds[document] : bounds[document + 1]]
        share = 1 / np.sqrt(max(1, len(features_here)))
        sure = classifier.softmax(np.append(weights[features_here].sum(0) * share, 0)[None])[0]
        slope = (sure - np.eye(3)[labels[document]])[:2] * share
        for feature in features_here:
            squares[feature] += slope**2
            weights[feature] -= 0.5 * slope / np.sqrt(squares[feature])
    trained = classifier.train(found, bounds, labels, orders, (8, 2), 0.5)
    np.testing.assert_allclose(trained, weights, rtol=1e-3, atol=1e-5)
    again = classifier.train(found, bounds, labels, orders, (8, 2), 0.5)
    assert trained.dtype == np.float32 and trained.tobytes() == again.tobytes()


def test_probabilities_are_calibrated_sums():
    texts = features.hashed(Texts.from_strings(["x x", ""]))
    weights = np.zeros((1024, 1), np.float32)
    weights[features_of("x", 1, 1024)[0]] = 3
    model = Classifier(("yes", "no"), 1, weights, 0.5, np.array([0, 0.2]))
    logit = 0.5 * 3 * 2 / np.sqrt(2) - 0.2
    expected = [1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(0.2))]
    np.testing.assert_allclose(classifier.softmax(model.logits(texts))[:, 0], expected)
    np.testing.assert_allclose(classifier.softmax(model.logits(texts)).sum(1), 1)


@pytest.mark.parametrize("classes", [2, 4])
def test_calibration_finds_the_scale_and_biases_that_made_the_labels(classes):
    generator = np.random.default_rng(2)
    logits = np.c_[generator.normal(0, 2, (40_000, classes - 1)), np.zeros(40_000)]
    biases = np.append(0, np.linspace(-0.5, 0.7, classes - 1))
    sure = classifier.softmax(1.7 * logits + biases)
    labels = (generator.random(40_000)[:, None] > np.cumsum(sure, 1)).sum(1)
    scale, found = evaluate.calibrate(logits, labels)
    assert scale == pytest.approx(1.7, rel=0.05) and found == pytest.approx(biases, abs=0.08)
    after = evaluate.measure(classifier.softmax(scale * logits + found), labels, list(map(str, range(classes))))
    before = evaluate.measure(classifier.softmax(logits), labels, list(map(str, range(classes))))
    assert after["calibration_error"] < 0.01 < before["calibration_error"]


def test_labels_that_never_mix_are_not_scaled_without_end():
    logits = np.array([[4.0, 0], [5, 0], [-4, 0], [-6, 0]])
    scale, biases = evaluate.calibrate(logits, np.array([0, 0, 1, 1]))
    assert 0.5 < scale < 3 and np.abs(biases).max() < 1


def test_measures_of_a_known_case():
    sure = np.array([0.95, 0.85, 0.65, 0.35, 0.15, 0.05])
    labels = np.array([0, 0, 1, 0, 1, 1])
    found = evaluate.measure(np.c_[sure, 1 - sure], labels, NAMES)
    assert found["documents"] == 6 and found["accuracy"] == pytest.approx(4 / 6)
    assert found["auc"] == pytest.approx(8 / 9), "of nine pairs one is in the wrong order"
    assert found["brier"] == pytest.approx(np.mean((sure - (labels == 0)) ** 2))
    assert found["calibration_error"] == pytest.approx(np.mean([0.05, 0.15, 0.65, 0.65, 0.15, 0.05]))
    assert found["labels"]["a"] == {"documents": 3, "precision": 2 / 3, "recall": 2 / 3, "auc": found["auc"]}
    assert [one["from"] for one in found["reliability"]] == [0, 0.1, 0.3, 0.6, 0.8, 0.9]


def test_measures_of_topics_are_of_the_likeliest_label():
    sure = np.array([[0.7, 0.2, 0.1], [0.1, 0.85, 0.05], [0.3, 0.3, 0.4]])
    found = evaluate.measure(sure, np.array([0, 1, 0]), ("a", "b", "c"))
    assert found["accuracy"] == pytest.approx(2 / 3) and found["labels"]["c"]["precision"] == 0
    assert found["labels"]["c"]["recall"] is None and found["labels"]["c"]["auc"] is None
    assert [(one["probability"], one["frequency"]) for one in found["reliability"]] == [(0.4, 0), (0.7, 1), (0.85, 1)]


def test_a_source_is_told_from_the_documents_of_other_labels():
    sure = np.array([0.9, 0.4, 0.6, 0.1])
    labels, group = np.array([0, 0, 1, 1]), np.array([True, False, False, False])
    found = evaluate.of_group(np.c_[sure, 1 - sure], labels, group)
    assert found == {"documents": 1, "accuracy": 1, "auc": 1}
    weaker = evaluate.of_group(np.c_[sure, 1 - sure], labels, group[[1, 0, 2, 3]])
    assert weaker == {"documents": 1, "accuracy": 0, "auc": 0.5}
    assert evaluate.of_group(np.c_[sure, 1 - sure][:2], labels[:2], group[:2])["auc"] is None


def test_equal_scores_are_half_a_pair():
    assert evaluate.auc(np.array([1.0, 1, 1, 1]), np.array([True, False, True, False])) == 0.5
    assert evaluate.auc(np.array([1.0, 2]), np.array([True, True])) is None


def test_the_plot_has_a_point_for_every_bin():
    bins = [{"from": 0.0, "documents": 9, "probability": 0.02, "frequency": 0.0},
            {"from": 0.9, "documents": 1, "probability": 0.97, "frequency": 1.0}]  # fmt: skip
    plot = calibration_plot("a & b", "'<x>'", bins)
    assert plot.count("<circle") == 2 and "a &amp; b" in plot and "&lt;x&gt;" in plot
    low, high = interval(0.5, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert interval(0.0, 5)[0] == 0 and interval(1.0, 5)[1] == pytest.approx(1)
