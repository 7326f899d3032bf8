"""A sweep whose cluster is lost, with its head and its driver, continues on a new one."""

import os
import random
from pathlib import Path

import pytest
import ray
import yaml
from commands import finished_trials, next_row, start, sweep_directory
from heads import Clusters
from observed import repeated

from eagleray.config import Sweep, validated
from eagleray.config.search_points import points
from eagleray.loop import train
from eagleray.ray_backend.cluster import SETTINGS
from eagleray.ray_backend.sweep import sweep
from eagleray.runs.record import Record

RUN = {"data": {"limit": 160}, "batch_size": 40, "epochs": 8, "encoder": {"width": 4}, "threads": 1, "device": "cpu",
       "precision": "fp32", "evaluate": {"linear": {"when": "never"}, "test": False}}  # fmt: skip
SWEEP = {"name": "s", "run": RUN, "search": "grid", "floor": [], "vary": {"method.temperature": [0.1, 0.5]}, "seeds": 2}


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_sweep_whose_head_is_lost_ends_on_a_new_cluster_as_on_one_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    question = validated(Sweep, SWEEP)
    with Clusters(["all"]) as clusters:
        lost = clusters.address
        driver = start(tmp_path, "sweep", "sweep.yaml", "--address", lost)
        next_row(driver, tmp_path)
        assert driver.poll() is None, (tmp_path / "log").read_text()
        clusters.lose(driver, tmp_path, random.Random(0))
        directory, finished = sweep_directory(tmp_path), finished_trials(tmp_path)
        assert len(finished) < 4
        assert clusters.address != lost
        trials = sweep(question, directory, resume=True, address=clusters.address)
        ray.shutdown()
    assert [trial.state for trial in trials] == ["finished"] * 4
    for point in points(question):
        *_, last = train(point.run(question), tmp_path / point.name)
        trial = Record.open(directory / "trials" / point.name)
        assert [row["epoch"] for row in trial.metrics()] == list(range(1, 9))
        assert repeated(trial.directory) == 0
        for name in ("loss", "knn"):
            assert trial.metrics()[-1][name] == last.metrics[name], (point.name, name)
