"""The one definition of the operations: what a run may set, and what it then changes in a method's views."""

from dataclasses import fields, replace

import pytest

from eagleray.augment import View, byol_views
from eagleray.augment.override import overridden
from eagleray.config.sections import Augment
from eagleray.contracts.ranges import Choice, Uniform
from eagleray.contracts.view import OPERATIONS, SETTINGS

FULL = View(
    crop=(0.2, 0.9), shift=0.1, flip=0.5, jitter=0.5, grayscale=0.2, blur=0.5, solarize=0.2, rotate=0.1,
    randaugment=(2, 10), cutout=0.3,
)  # fmt: skip


def test_every_operation_is_on_in_one_view_and_off_in_the_empty_one():
    assert list(OPERATIONS) == [
        "crop", "shift", "flip", "jitter", "grayscale", "blur", "solarize", "rotate", "randaugment", "cutout",
    ]  # fmt: skip
    for name, off in OPERATIONS.items():
        assert getattr(View(), name) == off != getattr(FULL, name)


def test_what_a_run_sets_replaces_what_the_method_has_and_the_rest_stays():
    views = byol_views(96)
    assert overridden(views, Augment()) == views
    changed = overridden(views, Augment(flip=0.1, interpolation="bicubic", blur=0.0))
    assert changed == tuple(replace(view, flip=0.1, interpolation="bicubic", blur=0.0) for view in views)


@pytest.mark.parametrize(
    ("crop", "crop_min", "expected"),
    [((0.2, 0.9), 0.5, (0.5, 0.9)), ((0.2, 0.4), 0.5, (0.4, 0.4)), (None, 0.5, (0.5, 1.0))],
)
def test_the_smallest_crop_leaves_the_largest(crop, crop_min, expected):
    (view,) = overridden([View(crop=crop)], Augment(crop_min=crop_min))
    assert view == View(crop=expected)


def test_only_switches_off_all_others():
    (view,) = overridden([FULL], Augment(only=("flip", "cutout"), flip=1.0, crop_min=0.5))
    assert view == View(flip=1.0, cutout=0.3)
    assert overridden([FULL], Augment(only=())) == (View(),)


def test_every_setting_is_a_field_with_a_range_and_none_changes_nothing():
    known = {field.name for field in fields(View)} | {"crop_min"}
    for name in SETTINGS:
        field = Augment.model_fields[name]
        assert name in known
        assert field.default is None
        assert field.description
        assert any(isinstance(part, Uniform | Choice) for part in field.metadata), name
    assert set(Augment.model_fields) == {*SETTINGS, "only", "exact"}
