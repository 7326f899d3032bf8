"""What was read, in one line for people.

It is printed at every start and kept with the run.
"""

import numpy as np

from eagleray.config.sections import Labels
from eagleray.data.cautions import choosing
from eagleray.data.images import Data, Images

NAMED = 12  # classes that are listed one by one


def described(data: Data, view: int | None = None) -> str:
    """Return one line on the images: how many, classes, parts, sizes, what was left out.

    Args:
        data: the images.
        view: side of the views in pixels, if the run does not keep the data's own.
    """
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    present = {name: images for name, images in parts.items() if images is not None}
    unused = data.stored - sum(map(len, present.values()))
    sizes = f"stored at {_sides(*data.sides)}, views of {_sides(*2 * [view or data.info.image_size])}"
    facts = [
        f"{_counted(data, unused)}, {_classes(data, present)}",
        ", ".join(f"{name} {_part(images)}" for name, images in present.items()),
        f"{sizes} pixels, {'grey' if data.info.channels == 1 else 'RGB'}",
        *(
            [f"{data.skipped:,} damaged file{'s' * (data.skipped > 1)} left out (data.bad_images=skip)"]
            if data.skipped
            else []
        ),
        *data.notes,
    ]
    return "; ".join(facts)


def cautioned(data: Data, labels: Labels | None) -> str:
    """Return a sentence on what these images do not show of a method that needs labels; empty: there is nothing."""
    if labels is None or data.validation is None or data.validation.labels is None:
        return ""
    held = int((data.validation.labels >= 0).sum())
    return choosing(len(data.labelled(labels, seed=0)), held, len(data.class_names or ()))


def _counted(data: Data, unused: int) -> str:
    if not unused:
        return f"{data.stored:,} images"
    return f"{data.stored - unused:,} of {data.stored:,} images ({', '.join(data.cut)})"


def _classes(data: Data, parts: dict[str, Images]) -> str:
    if data.class_names is None:
        return "no classes"
    known = np.concatenate([images.labels for images in parts.values() if images.labels is not None])
    counts = np.bincount(known[known >= 0], minlength=len(data.class_names))
    each = ", ".join(f"{name} {count:,}" for name, count in zip(data.class_names, counts, strict=True))
    listed = each if len(counts) <= NAMED else f"{counts.min():,} to {counts.max():,} labelled images each"
    return f"{len(counts)} classes ({listed})"


def _part(images: Images) -> str:
    unknown = 0 if images.labels is None else int((images.labels < 0).sum())
    return f"{len(images):,}" + (f" ({unknown:,} unlabelled)" if unknown else "")


def _sides(shortest: int, longest: int) -> str:
    return f"{shortest}x{longest}" if shortest == longest else f"sides of {shortest} to {longest}"
