"""Weights of two runs that differ by rounding alone."""

from pathlib import Path

import torch

from eagleray.runs.checkpoint import checkpoints, load_checkpoint


def assert_same_weights(one: Path, two: Path) -> None:
    """Compare the last checkpoints' tensors, each as a whole.

    AdamW makes a whole step of a gradient that is nothing but a rounding error. One thread in place of two moves a
    vector of biases by up to 2 %, a learning rate that is 2.5 % higher by 11 %.
    """
    weights, others = (load_checkpoint(checkpoints(run)[-1])["method"] for run in (one, two))
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        differs, size = (torch.linalg.vector_norm(each.double()) for each in (others[name] - value, value))
        assert differs <= 5e-2 * size, f"{name} differs by {differs / size:.1%}"
