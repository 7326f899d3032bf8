"""The declaration of a view: what is out of range, and what follows from its fields."""

from dataclasses import fields

import pytest

from eagleray.contracts.errors import ConfigError
from eagleray.contracts.view import OPERATIONS, SETTINGS, View


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"flip": 1.5}, "flip must be from 0 to 1"),
        ({"blur": -0.1}, "blur must be"),
        ({"grayscale": float("nan")}, "grayscale"),
        ({"crop": (0.0, 1.0)}, "crop takes two numbers above 0 up to 1"),
        ({"crop": (0.5, 0.2)}, "lower one first"),
        ({"crop": ()}, "crop takes 2 numbers"),
        ({"crop_ratio": (2.0, 1.0)}, "crop_ratio"),
        ({"blur_sigma": (0.0, 1.0)}, "blur_sigma"),
        ({"jitter": -1.0}, "jitter must be from 0 to 2"),
        ({"jitter": 2.0, "jitter_scale": (0.8, 0.8, 0.8, 0.3)}, "hue"),
        ({"jitter_scale": (0.8, 0.8)}, "jitter_scale takes 4 numbers"),
        ({"jitter_scale": (-0.8, 0.8, 0.8, 0.2)}, "jitter_scale"),
        ({"size": 0}, "size must be 1 or more"),
        ({"size": 32.5}, "size must be a whole number"),
        ({"randaugment": (0, 10)}, "operations"),
        ({"randaugment": (2, 31)}, "magnitude"),
        ({"cutout": 1.1}, "cutout"),
        ({"shift": -0.1}, "shift"),
        ({"interpolation": "nearest"}, "interpolation is bilinear or bicubic, not 'nearest'"),
        ({"shift_border": "white"}, "shift_border is reflect or black"),
    ],
)
def test_a_view_out_of_range_is_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        View(**settings)


def test_a_view_without_settings_has_every_operation_off():
    assert {name: getattr(View(), name) for name in OPERATIONS} == OPERATIONS
    assert set(OPERATIONS) <= {field.name for field in fields(View)}


def test_the_lower_end_of_a_crop_keeps_its_upper_end():
    assert View(crop=(0.5, 0.8), crop_min=0.2).crop == (0.2, 0.8)
    assert View(crop_min=0.2).crop == (0.2, 1.0)
    assert View(crop=(0.1, 0.3), crop_min=0.9).crop == (0.3, 0.3)
    assert "crop_min" in SETTINGS
