"""Evaluations that change images or train: two workers measure what one does."""

from pathlib import Path

import pytest
import torch

from eagleray.blocks import distributed
from eagleray.config import load_run
from eagleray.runs.assemble import assemble
from eagleray.runs.evaluation import Encoded
from eagleray.runs.processes import processes

RUN = ["encoder.width=8", "data.limit=240", "batch_size=40", "threads=1", "device=cpu", "precision=fp32"]
MEASURED = {
    "corruptions": ["images=37", "severities=[3]"],
    "transfer": ["data=digits", "data.limit=200"],
    "stages": [],
    "finetune": ["labels=[all,few]", "epochs=1", "lr=0.02"],
}
SETTINGS = [f"evaluate.{name}.{setting}" for name, more in MEASURED.items() for setting in ("when=end", *more)]

Found = tuple[dict[str, float], torch.Tensor]


def measured(cache: str) -> Found:
    """Return the metrics of an untrained network, and features of changed images."""
    torch.set_num_threads(1)
    built = assemble(load_run(None, [*RUN, *SETTINGS, f"workers={distributed.world_size()}", f"data.cache={cache}"]))
    metrics = dict(built.evaluation(built.method, built.autocast, final=True))
    encoded = Encoded(built.evaluation, built.method.eval().encode, None, built.autocast, built.data, built.data.train)
    changed = encoded.changed(lambda pixels, places: pixels + 0.01 * places.view(-1, 1, 1, 1), 37)
    return metrics, changed.features


@pytest.mark.slow
def test_two_workers_measure_what_one_does(tmp_path: Path):
    metrics, features = measured(str(tmp_path))
    assert {"corrupted", "fine_tuned_few", "test_fine_tuned"} <= set(metrics)
    for found, changed in processes(2, measured, str(tmp_path), timeout=300):
        torch.testing.assert_close(changed, features, atol=1e-5, rtol=1e-5)
        assert found == pytest.approx(metrics, abs=0.03, rel=1e-3)
