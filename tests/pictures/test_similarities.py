"""The picture of the energies of pairs has the pairs that the metrics are made of."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.patches import StepPatch

from eagleray.evaluators.pairs import Pairs
from eagleray.pictures.of_runs.similarities import EDGES, draw, pairs, shares
from eagleray.runs.evaluation import Encoded
from pictures.subjects import trained


def test_a_bin_has_the_share_of_the_energies_in_it():
    values = np.array([-1, -0.995, -0.5, 0.2, 0.2001, 1.0000001])
    found = shares(values)
    assert found.sum() == pytest.approx(1)
    for count, low, high in zip(found * 6, EDGES[:-1], EDGES[1:], strict=True):
        last = high == EDGES[-1]
        inside = [low <= value < high or (last and value >= low) for value in values]
        assert count == pytest.approx(sum(inside))


def test_the_histograms_and_the_title_are_those_of_the_metrics(tmp_path: Path):
    run = trained(tmp_path / "run")
    built = run.built
    encoded = Encoded(built.evaluation, built.method.encode, built.method, built.autocast, built.data, run.images)
    measured = Pairs(Pairs.Config())(encoded).numbers
    compatible, incompatible = pairs(run)
    count = len(run.images)
    assert (len(compatible), len(incompatible)) == (count, 2 * count * (count - 1))
    assert (compatible.mean() - incompatible.mean()).item() == pytest.approx(measured["gap"], abs=1e-6)
    figure = draw(run)
    assert (
        f"gap {measured['gap']:.3f}, separability (AUROC) {measured['separability']:.3f}"
        in figure.get_suptitle().replace("\n", " ")
    )
    outlines = [patch for patch in figure.axes[0].patches if isinstance(patch, StepPatch)]
    for outline, energies in zip(outlines[::2], (-compatible, -incompatible), strict=True):
        counts = torch.histogram(energies.clamp(-1, 1), torch.from_numpy(EDGES)).hist
        np.testing.assert_allclose(outline.get_data().values * len(energies), counts, atol=1e-6)
