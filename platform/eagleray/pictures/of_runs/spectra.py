"""Spectra of the features over the training: before it, and at each checkpoint that is kept."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from eagleray.contracts.errors import Damaged, Skipped
from eagleray.contracts.features import spectra, stacked
from eagleray.evaluators.collapse import collapse
from eagleray.pictures.drawing import BLUE, GREY, plain, titled
from eagleray.pictures.trained import Trained
from eagleray.runs.assemble import assemble
from eagleray.runs.checkpoint import checkpoints, load_checkpoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHECK = (
    "By eye: a curve that falls off a cliff uses few directions, and one that sinks as a whole has all images near one "
    "point; both are collapse. Not by eye: which of two healthy curves is the better one; noise that ignores the "
    "images has the flattest spectrum of all."
)
CURVES = 8  # of checkpoints, at most
LOWEST = 1e-9  # variance that is drawn: less is rounding, such as the direction that a layer norm takes away
STAGE = "before training"


def draw(trained: Trained) -> "Figure":
    from matplotlib import colormaps

    stages = over_training(trained)
    figure = titled(11, 5, "Spectra of the features over the training", trained.about("rank", "std"))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    shades = iter(colormaps["viridis_r"](np.linspace(0.08, 1, max(2, len(stages) - 1))))
    for stage, (values, rank) in stages.items():
        style = {"color": GREY, "linestyle": "--"} if stage == STAGE else {"color": next(shades)}
        left.loglog(np.arange(1, len(values) + 1), values, label=f"{stage}: effective rank {rank:.1f}", **style)
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")  # matplotlib's own writes powers as mathematics
    left.set_ylim(bottom=max(LOWEST, left.get_ylim()[0]))
    left.set_xlabel("eigenvalue, from the largest")
    left.set_ylabel("variance along it (features of length 1)")
    left.legend(frameon=False, fontsize=9, loc="lower left")
    kept = len(stages) - 1
    left.set_title(f"{kept} kept checkpoint{'s' * (kept > 1)} (checkpoints.keep=N keeps more)", fontsize=10)
    _recorded(right, trained)
    for axes in (left, right):
        plain(axes)
        axes.grid(alpha=0.25, linewidth=0.6)
    return figure


def over_training(trained: Trained) -> dict[str, tuple[np.ndarray, float]]:
    """Return the eigenvalues and the effective rank of the features at each stage of the training.

    The first is before it: those weights are drawn again from the run's seed.
    """
    built = trained.built
    method = assemble(built.run, data=built.data, device=built.device).method.eval()

    def measured() -> tuple[np.ndarray, float]:
        features = built.evaluation.encode(method.encode, trained.images, built.autocast).cpu()
        return eigenvalues(features), collapse(features)["rank"]

    stages, saved = {STAGE: measured()}, checkpoints(trained.record.directory)
    for place in dict.fromkeys(np.linspace(0, len(saved) - 1, CURVES).round().astype(int).tolist()):
        try:
            state = load_checkpoint(saved[place], built.device)
        except Damaged as error:
            warnings.warn(f"{error}. Its spectrum is left out", Skipped, stacklevel=2)
            continue
        method.load_state_dict(state["method"])
        stages[f"epoch {trained.epoch_of(state['step']):g}"] = measured()
    return stages


def eigenvalues(features: Tensor) -> np.ndarray:
    """Return the eigenvalues of the covariance of features of length 1, descending.

    [N, D] -> float64 [at most D]; those that are rounding errors are left out.
    """
    (x,) = stacked([F.normalize(features.double(), dim=1)])
    values = spectra(x)[1].square().sort(descending=True).values / len(x)
    return values[values > 0].numpy()


def _recorded(axes: "Axes", trained: Trained) -> None:
    """Draw the effective rank that the run itself recorded at every evaluation."""
    from matplotlib.ticker import MaxNLocator

    rows = [row for row in trained.record.metrics() if "rank" in row and row["epoch"] is not None]
    ranks = [row["rank"] for row in rows]
    axes.plot([row["epoch"] for row in rows], ranks, "o-", color=BLUE, markersize=4)
    axes.set(xlim=(0, 1.04 * max((row["epoch"] for row in rows), default=1)), ylim=(0, 1.08 * max(ranks, default=1)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_title("effective rank (rank) as recorded by the run", fontsize=10)
