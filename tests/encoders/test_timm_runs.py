"""Runs with networks of timm: resumed, they end in the weights of one that was never stopped."""

from pathlib import Path

import pytest
import torch

from eagleray.config import Run, load_run
from eagleray.loop import train
from eagleray.runs.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow


def run_of(encoder: str) -> Run:
    small = ["image_size=32", "data.limit=64", "batch_size=16", "epochs=2", "threads=1", "evaluate.linear.when=never"]
    return load_run(None, [f"encoder={encoder}", *small])


@pytest.mark.parametrize("encoder", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit2"])
def test_a_resumed_run_ends_bitwise_in_the_same_weights(encoder: str, tmp_path: Path):
    run = run_of(encoder)
    *_, whole = train(run, tmp_path / "whole")
    next(report for report in train(run, tmp_path / "parts") if report.epoch_ended)
    *_, parts = train(run, tmp_path / "parts")
    assert whole.checkpoint is not None
    assert parts.checkpoint is not None
    weights = load_checkpoint(whole.checkpoint)["method"]
    again = load_checkpoint(parts.checkpoint)["method"]
    assert weights.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
