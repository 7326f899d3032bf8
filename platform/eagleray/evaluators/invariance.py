"""How much of the features stays when one operation of the augmentation changes the image."""

from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from eagleray.contracts.evaluator import Encodings, Evaluator, Found
from eagleray.contracts.features import intervals, squares, stacked
from eagleray.contracts.metric import Metric, When
from eagleray.contracts.view import View

TASK = "which invariance is of use depends on the task, and a collapsed network has all"
VIEWS = {  # one operation each, always performed
    "crop": View(crop=(0.2, 1.0)),
    "shift": View(shift=0.125),
    "flip": View(flip=1.0),
    "rotate": View(rotate=1.0),
    "jitter": View(jitter=1.0, jitter_probability=1.0),
    "grayscale": View(grayscale=1.0),
    "blur": View(blur=1.0),
    "solarize": View(solarize=1.0),
}


class Invariance(Evaluator):
    """Invariance of the features to each operation of the augmentation alone."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        """How many images are changed."""

        images: Annotated[int, Field(ge=2, description="at most, evenly spaced")] = 1024

    config: Config
    when: ClassVar[When] = "never"  # it encodes each image nine times

    metrics: ClassVar[dict[str, Metric]] = {
        "invariant_crop": Metric(
            "1: a crop of 20 to 100 % of the area changes nothing; 0: as another image",
            "higher",
            no_goal=TASK,
            interval="own",
        ),
        "invariant_shift": Metric(
            "the same of a shift by up to an eighth of the side", "higher", no_goal=TASK, interval="own"
        ),
        "invariant_flip": Metric("the same of a horizontal flip", "higher", no_goal=TASK, interval="own"),
        "invariant_rotate": Metric(
            "the same of a turn by 90, 180 or 270 degrees", "higher", no_goal=TASK, interval="own"
        ),
        "invariant_jitter": Metric(
            "the same of SimCLR's colour jitter at full strength", "higher", no_goal=TASK, interval="own"
        ),
        "invariant_grayscale": Metric("the same of dropping the colour", "higher", no_goal=TASK, interval="own"),
        "invariant_blur": Metric(
            "the same of a Gaussian blur of 0.1 to 2 pixels", "higher", no_goal=TASK, interval="own"
        ),
        "invariant_solarize": Metric("the same of solarizing", "higher", no_goal=TASK, interval="own"),
    }

    def __call__(self, encodings: Encodings) -> Found:
        views = encodings.views([View(), *VIEWS.values()], self.config.images)
        clean, *changed = (one.features for one in views)
        numbers, shares = dict[str, float](), dict[str, Tensor]()
        for name, one in zip(self.metrics, changed, strict=True):
            if (number := invariance(clean, one)) is not None:
                moved, apart = distances(clean, one)
                numbers[name], shares[name] = number, -(moved - (1 - number) * apart) / apart.mean()
        return Found(numbers, images=len(clean), intervals=intervals(numbers, shares))


def invariance(clean: Tensor, changed: Tensor) -> float | None:
    """Compare how far a change moves the features with how far images lie from each other.

        1 - mean over images of ‖x_i' - x_i‖²  /  mean over pairs of different images of ‖x_i - x_j‖²

    1: the change moves nothing; 0: as far as another image; below 0: farther. Scale and a common mean do not matter.

    Args:
        clean: features of at least two images as they are, [N, D].
        changed: of the same images, changed, [N, D].

    Returns:
        The number; None if the features of all images are the same.

    Raises:
        ConfigError: no images, NaN or infinite features, or different shapes.
    """
    moved, apart = distances(clean, changed)
    if apart.mean() <= torch.finfo(torch.float32).eps * squares(clean.double()).mean():
        return None
    return 1 - (moved.mean() / apart.mean()).item()


def distances(clean: Tensor, changed: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far the change moves each image, squared, and values with the mean over pairs of images as mean, [N].

    Args and errors as `invariance`.
    """
    x, changed = stacked([clean, changed], least=2)
    return squares(changed - x), 2 * squares(x - x.mean(0)) * len(x) / max(1, len(x) - 1)
