"""Spectra over the training: eigenvalues as numpy has them, of the weights of each stage."""

from pathlib import Path

import numpy as np
import pytest
import torch

from eagleray.contracts.errors import Skipped
from eagleray.pictures.of_runs.spectra import STAGE, draw, eigenvalues, over_training
from eagleray.runs.checkpoint import checkpoints, save_checkpoint
from pictures.subjects import trained


def test_eigenvalues_are_those_of_the_covariance_of_features_of_length_one():
    features = torch.randn(80, 12, generator=torch.Generator().manual_seed(0)) + 1
    units = features.double().numpy() / np.linalg.norm(features.double().numpy(), axis=1, keepdims=True)
    wanted = np.linalg.eigvalsh(np.cov(units.T, bias=True))[::-1]
    np.testing.assert_allclose(eigenvalues(features), wanted, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("used", [0, 1, 3])
def test_directions_that_are_not_used_have_no_eigenvalue(used: int):
    draw_ = torch.Generator().manual_seed(0)
    plane = torch.randn(200, used, generator=draw_) @ torch.randn(used, 16, generator=draw_)
    scaled = torch.cat([torch.full((200, 1), 9.0), plane], 1)  # length 1 bends it a little
    assert used <= len(eigenvalues(scaled)) <= used + 1


def test_each_stage_has_the_weights_of_its_checkpoint(tmp_path: Path):
    run = trained(tmp_path / "run")
    directory, steps = run.record.directory, run.built.loader.steps_per_epoch
    (first,) = checkpoints(directory)
    state = torch.load(first, weights_only=True)
    state["method"] = {name: torch.zeros_like(value) for name, value in state["method"].items()}
    save_checkpoint(directory, {**state, "step": 3 * steps}, keep=3)
    state["method"] = {name: value + 0.01 for name, value in state["method"].items() if value.is_floating_point()} | {
        name: value for name, value in state["method"].items() if not value.is_floating_point()
    }
    damaged = save_checkpoint(directory, {**state, "step": 4 * steps}, keep=3)
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.warns(Skipped, match="Its spectrum is left out"):
        stages = over_training(run)
    assert list(stages) == [STAGE, f"epoch {run.epoch_of(1):g}", "epoch 3"]
    np.testing.assert_allclose(stages[STAGE][0], eigenvalues(run.features))  # the run was not trained
    np.testing.assert_allclose(stages[f"epoch {run.epoch_of(1):g}"][0], stages[STAGE][0])
    assert len(stages["epoch 3"][0]) == 0  # all weights are 0: collapse
    assert stages["epoch 3"][1] == 0


def test_the_curves_are_drawn_on_logarithmic_axes(tmp_path: Path):
    run = trained(tmp_path / "run")
    for epoch, rank in ((1, 5.0), (2, 7.0)):
        run.record.append(100 * epoch, {"rank": rank}, epoch)
    left, right = draw(run).axes
    assert (left.get_xscale(), left.get_yscale()) == ("log", "log")
    np.testing.assert_allclose(left.lines[0].get_ydata(), eigenvalues(run.features))
    assert right.lines[0].get_xydata().tolist() == [[1, 5], [2, 7]]
