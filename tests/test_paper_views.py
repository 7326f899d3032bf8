"""The views that methods declare for photos, against those of lightly's transforms for the same papers."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from lightly import transforms as lightly
from lightly.transforms.gaussian_blur import GaussianBlur
from lightly.transforms.solarize import RandomSolarization
from torchvision.transforms import v2 as T

from eagleray.augment import View
from eagleray.build import build_method
from eagleray.config import load_run
from method_cases import INFO

PHOTOS = replace(INFO, image_size=224, samples=100_000, batch_size=256)
SIMCLR, BYOL = lightly.SimCLRTransform().transforms, lightly.BYOLTransform().transforms
FIRST = lightly.MoCoV1Transform(cj_prob=1.0).transforms  # the authors jitter every image
PAPERS = {
    "simclr": SIMCLR,
    "dcl": SIMCLR,
    "triplet": SIMCLR,
    "simclr_v2": SIMCLR,
    "npid": FIRST[:1],
    "moco method.version=1": FIRST,
    "moco": lightly.MoCoV2Transform().transforms,
    "moco_v3": BYOL,
    "nnclr": BYOL,
    "swav": lightly.SwaVTransform().transforms,
    "byol": BYOL,
    "simsiam": lightly.SimSiamTransform().transforms,
    "dino method.local_crops=6 method.crop_split=0.4": lightly.DINOTransform().transforms,  # ours are of a longer run
    "ibot": lightly.IBOTTransform().transforms,
    "barlow_twins": BYOL,
    "vicreg": lightly.VICRegTransform().transforms,
    "w_mse": lightly.WMSETransform(gaussian_blur=0.0).transforms,  # of CIFAR-10
}


@pytest.mark.parametrize("method", PAPERS)
def test_views_of_photos_are_those_of_the_paper(method: str):
    ours = build_method(load_run(None, [*f"method={method}".split(), "recipe=paper"]), PHOTOS).views
    assert [described(view) for view in ours] == [seen(view) for view in PAPERS[method]]


def described(view: View) -> dict[str, Any]:
    """A view of ours in the words of `seen`."""
    assert not any([view.shift, view.rotate, view.randaugment, view.cutout])
    return {
        "size": view.size or PHOTOS.image_size,
        "crop": view.crop,
        "flip": view.flip,
        "jitter": pytest.approx([view.jitter * scale for scale in view.jitter_scale]),
        "jitter_probability": view.jitter_probability,
        "grayscale": view.grayscale,
        "blur": view.blur,
        "solarize": view.solarize,
    }


def seen(transform: Any) -> dict[str, Any]:
    """What lightly's transform of one view does to an image."""
    found: dict[str, Any] = {"blur": 0.0, "solarize": 0.0}
    for probability, part in leaves(transform):
        match part:
            case T.RandomResizedCrop():
                found |= {"size": part.size[0], "crop": tuple(part.scale)}
            case T.RandomHorizontalFlip():
                found["flip"] = part.p
            case T.ColorJitter() if part.brightness:  # its SwAV has an empty one too
                shades = [part.brightness, part.contrast, part.saturation]
                found["jitter"] = [*(high - 1 for _, high in shades), part.hue[1]]
                found["jitter_probability"] = probability
            case T.RandomGrayscale():
                found["grayscale"] = part.p
            case GaussianBlur():
                found["blur"] = part.prob
            case RandomSolarization():
                found["solarize"] = part.prob
    return found


def leaves(transform: Any, probability: float = 1.0) -> Iterator[tuple[float, Any]]:
    """The operations of a transform, each with the probability that what holds it is applied."""
    if isinstance(transform, T.Compose | T.RandomApply):
        for part in transform.transforms:
            yield from leaves(part, transform.p if isinstance(transform, T.RandomApply) else probability)
    elif not isinstance(transform, T.Transform) and hasattr(transform, "transform"):  # lightly's, around torchvision's
        yield from leaves(transform.transform, probability)
    else:
        yield probability, transform
