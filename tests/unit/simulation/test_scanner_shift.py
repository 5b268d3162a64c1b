"""The probe's least squares, solved another way, and a shift that a probe can't miss."""

import numpy as np

from simulation.scanner_shift import RIDGE, ridge_probe


def test_the_probe_is_ridge_regression_on_one_hot_answers():
    rng = np.random.default_rng(0)
    x, asked = rng.normal(2, 3, (40, 5)), rng.normal(2, 3, (30, 5))
    answers = [str(one) for one in rng.choice(["few", "many", "some"], 40)]
    # Ridge as ordinary least squares with one row sqrt(ridge) for each feature.
    deviation = x.std(0) + 1e-6
    scaled = np.vstack([(x - x.mean(0)) / deviation, np.sqrt(RIDGE) * np.eye(5)])
    hot = np.array([[one == name for name in ("few", "many", "some")] for one in answers], float)
    targets = np.vstack([hot - hot.mean(0), np.zeros((5, 3))])
    weights = np.linalg.lstsq(scaled, targets, rcond=None)[0]
    scores = (asked - x.mean(0)) / deviation @ weights + hot.mean(0)
    expected: list[str] = [("few", "many", "some")[place] for place in scores.argmax(1).tolist()]
    assert ridge_probe(x, answers, asked) == expected


def test_features_that_are_moved_are_answered_wrongly():
    rng = np.random.default_rng(1)
    dark, bright = rng.normal(-2, 0.5, (50, 3)), rng.normal(2, 0.5, (50, 3))
    features, answers = np.vstack([dark, bright]), ["dark"] * 50 + ["bright"] * 50
    assert ridge_probe(features, answers, features) == answers
    assert ridge_probe(features, answers, features + 8) == ["bright"] * 100
