"""How well a classifier does on documents that it was not trained on, and the calibration of its probabilities.

Calibration scales the logits by one number and adds one to each label's (for two labels Platt's method; for more
bias-corrected temperature scaling, Alexandari and others, "Maximum likelihood with bias-corrected calibration is
hard-to-beat at label shift adaptation", 2020), so that probabilities mean what they say for documents as they are
mixed in the labelled sources: where one label is rarer than there, its probability is too high.
"""

from collections.abc import Sequence

import numpy as np

from data_prep.quality.classifier import softmax

VERSION = 1
BINS = 10
# Instead of the logarithm of 0.
TINY = 1e-300


def calibrate(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Scale and biases [labels], the first 0, by which documents with logits float64 [documents, labels] are likeliest.

    The logarithm of the scale and the biases have a standard normal prior, without which labels that never mix would be
    scaled without end. Measured against Platt's smoothed targets, which know no label to be right in more than (n + 1)
    of (n + 2) cases: calibration error 0.003 for 0.010 of two labels, 0.002 for 0.013 of six.
    """
    from scipy.optimize import minimize

    classes = logits.shape[1]

    def loss(settings: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = np.exp(settings[0]) * logits
        scaled[:, 1:] += settings[1:]
        sure = softmax(scaled)
        right = sure[np.arange(len(labels)), labels]
        errors = sure - np.eye(classes)[labels]
        slopes = np.append(np.exp(settings[0]) * (errors * logits).sum(), errors[:, 1:].sum(0)) + settings
        return (settings @ settings / 2 - np.log(np.maximum(right, TINY)).sum()) / len(labels), slopes / len(labels)

    found = minimize(loss, np.zeros(classes), jac=True, method="L-BFGS-B", bounds=[(-10, 10)] * classes).x
    return float(np.exp(found[0])), np.append(0, found[1:])


def measure(probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict:
    """What is said of documents with probabilities float64 [documents, labels] and labels int64 [documents].

    accuracy: share whose likeliest label is right. auc: area under the ROC curve, of two labels for the first, of more
    the mean of each against the others. brier: mean squared distance of the probabilities from 0 and 1, of two labels
    for the first, of more summed over them. calibration_error: mean distance between probability and frequency, by
    bins of equal width (ECE). reliability: those bins, of the first of two labels' probability, else the largest one.
    labels: documents, precision, recall and auc of each. Null where it is not defined.
    """
    if not len(labels):
        return {"documents": 0}
    truth = np.eye(len(names))[labels]
    guesses = probabilities.argmax(1)
    areas = [auc(probabilities[:, index], truth[:, index] > 0) for index in range(len(names))]
    found = [area for area in areas if area is not None]
    squares = (probabilities - truth) ** 2
    binary = len(names) == 2
    reliability = _reliability(*_sure(probabilities, labels, binary))
    gaps = [abs(one["probability"] - one["frequency"]) * one["documents"] for one in reliability]
    return {
        "documents": len(labels),
        "accuracy": float((guesses == labels).mean()),
        "auc": (areas[0] if binary else float(np.mean(found))) if found else None,
        "brier": float(squares[:, 0].mean() if binary else squares.sum(1).mean()),
        "calibration_error": sum(gaps) / len(labels),
        "reliability": reliability,
        "labels": {
            name: {
                "documents": int((labels == index).sum()),
                "precision": _share(guesses == index, labels == index),
                "recall": _share(labels == index, guesses == index),
                "auc": areas[index],
            }
            for index, name in enumerate(names)
        },
    }


def of_group(probabilities: np.ndarray, labels: np.ndarray, group: np.ndarray) -> dict:
    """Accuracy of the documents of a `group`, bool [documents], and its auc: how often a document of one of its labels
    is told from one of another label, which may stand outside of the group, as all of a source have one label."""
    areas = []
    for label in np.unique(labels[group]):
        inside = group & (labels == label)
        area = auc(probabilities[:, label][inside | (labels != label)], inside[inside | (labels != label)])
        areas += [] if area is None else [area]
    right = (probabilities.argmax(1) == labels)[group]
    return {
        "documents": int(group.sum()),
        "accuracy": float(right.mean()),
        "auc": float(np.mean(areas)) if areas else None,
    }


def auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Share of pairs of a positive and another document in which the positive has the larger score, ties half."""
    from scipy.stats import rankdata

    count = int(positive.sum())
    others = len(positive) - count
    if not count or not others:
        return None
    return float((rankdata(scores)[positive].sum() - count * (count + 1) / 2) / (count * others))


def _sure(probabilities: np.ndarray, labels: np.ndarray, binary: bool) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities that reliability is about, and what came true, float64 and bool [documents]."""
    if binary:
        return probabilities[:, 0], labels == 0
    return probabilities.max(1), probabilities.argmax(1) == labels


def _reliability(scores: np.ndarray, true: np.ndarray) -> list[dict]:
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    return [
        {
            "from": number / BINS,
            "documents": int(inside.sum()),
            "probability": float(scores[inside].mean()),
            "frequency": float(true[inside].mean()),
        }
        for number in range(BINS)
        if (inside := bins == number).any()
    ]


def _share(of: np.ndarray, part: np.ndarray) -> float | None:
    return float((of & part).sum() / of.sum()) if of.any() else None
