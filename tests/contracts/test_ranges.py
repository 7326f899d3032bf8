"""Ranges of hyperparameters: samples fill them evenly."""

import math
from typing import Any

import numpy as np
import pytest

from eagleray.contracts.ranges import Choice, IntRange, LogUniform, Uniform, sample


@pytest.mark.parametrize(
    ("span", "mean", "kind"),
    [
        (Uniform(2.0, 4.0), lambda v: v, float),
        (LogUniform(1e-4, 1e-2), math.log10, float),
        (IntRange(3, 5), lambda v: v, int),
    ],
)
def test_samples_fill_their_range_evenly(span: Any, mean: Any, kind: type):
    rng = np.random.default_rng(0)
    values = [sample(span, rng) for _ in range(4000)]
    assert {type(value) for value in values} == {kind}
    assert min(values) >= span.low
    assert max(values) <= span.high
    places = np.array([(mean(v) - mean(span.low)) / (mean(span.high) - mean(span.low)) for v in values])
    assert places.mean() == pytest.approx(0.5, abs=0.03)
    if kind is int:
        assert np.bincount(values).tolist()[3:] == pytest.approx([1333, 1333, 1333], rel=0.1)
    else:
        assert places.var() == pytest.approx(1 / 12, rel=0.1)  # that of a uniform distribution


def test_samples_of_a_choice_are_its_values():
    rng = np.random.default_rng(0)
    values = [sample(Choice("a", None, [1, 2]), rng) for _ in range(300)]
    assert [values.count(each) for each in ("a", None, [1, 2])] == pytest.approx([100, 100, 100], rel=0.3)
