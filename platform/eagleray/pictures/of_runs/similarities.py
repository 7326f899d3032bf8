"""Energies of pairs: two views of one image, and views of different images.

The views are SimCLR's for every method, as for the metrics of `evaluators/pairs.py`. The energy of a pair is the cosine
of its features with the sign turned.
"""

from copy import copy
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from eagleray.augment.papers import simclr_view
from eagleray.evaluators.pairs import PAIRED, separability, similarities
from eagleray.pictures.drawing import BLUE, ORANGE, plain, titled
from eagleray.pictures.trained import Trained
from eagleray.report.numbers import number
from eagleray.runs.evaluation import Encoded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECK = (
    "By eye: compatible pairs (two views of one image) should lie left of, which is below, most incompatible ones "
    "(different images); one narrow peak of both at -1 is a network that sees all images alike. Not by eye: whether "
    "what views share is what matters to you; a network can tell all images apart and know nothing of their classes."
)
EDGES = np.linspace(-1, 1, 101)


def draw(trained: Trained) -> "Figure":
    cosines = pairs(trained)
    gap, area = (cosines[0].mean() - cosines[1].mean()).item(), separability(*cosines)
    images = min(PAIRED, len(trained.images))
    about = f"{trained.about()}, {images:,} of them; gap {number(gap)}, separability (AUROC) {number(area)}"
    figure = titled(9, 4.6, "Energies of pairs", about)
    axes = figure.add_subplot()
    kinds = (("two views of one image", BLUE, "-"), ("views of different images", ORANGE, "--"))
    for values, (name, colour, line) in zip(cosines, kinds, strict=True):
        energies = -values.numpy()
        axes.stairs(shares(energies), EDGES, fill=True, color=colour, alpha=0.35)
        label = f"{name}: {len(energies):,} pairs, mean {energies.mean():.3f}"
        axes.stairs(shares(energies), EDGES, color=colour, linewidth=1.6, linestyle=line, label=label)
        axes.axvline(energies.mean(), color=colour, linestyle=line, linewidth=1.2)
    axes.set_xlabel("energy of a pair: -cosine of its features (low: compatible)")
    axes.set_ylabel("share of the pairs")
    axes.set_xlim(-1.02, max(-each.min().item() for each in cosines) + 0.05)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    plain(axes)
    return figure


def pairs(trained: Trained) -> tuple[Tensor, Tensor]:
    """Return the cosines of pairs of one image [P] and of different images [Q], float64."""
    built, view = trained.built, simclr_view(trained.built.loader.info.image_size)
    images = copy(trained.images)
    images.labels = None  # so that none is left out because its class is unknown
    encoded = Encoded(built.evaluation, built.method.encode, built.method, built.autocast, built.data, images)
    compatible, incompatible = similarities([one.features.cpu() for one in encoded.views([view, view], PAIRED)])
    return compatible, incompatible


def shares(values: np.ndarray) -> np.ndarray:
    """Return the share of the values in each bin."""
    return np.histogram(values.clip(-1, 1), EDGES)[0] / len(values)
