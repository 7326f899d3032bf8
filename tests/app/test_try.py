"""`eagleray try`: one command that ends with three facts and a page to open."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eagleray.app.commands import trying
from eagleray.config import validated
from eagleray.config.sweep import Sweep
from eagleray.contracts.errors import ConfigError
from eagleray.runs.record import Record

TINY = ["trials=2", "epochs=1", "metric=knn", "floor=[]", "data.limit=300", "encoder.width=4", "seeds=1",
        "evaluate.linear.when=never"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_it_runs_the_quickstart_and_says_what_came_of_it(tmp_path: Path):
    """Without an account, a store that answers, or a file of one's own."""
    own = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}
    command = [sys.executable, "-m", "eagleray", "try", *TINY]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=380, env=own)
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "runs/quickstart").iterdir()
    best = Record.open(directory).summary["knn"]
    wanted = rf"classifies {best:.1%} of the images rightly \(knn\), ([\d.]+) times chance \(1 of 10 classes\)"
    found = re.search(wanted, done.stdout)
    assert found is not None, done.stdout
    assert float(found[1]) == round(best * 10, 1)
    assert "Collapse: none of 2 trials collapsed. The least spread of their embeddings is " in done.stdout
    (page,) = re.findall(r"^report +(.*)$", done.stdout, re.MULTILINE)
    assert (tmp_path / page).is_file()


@pytest.mark.parametrize("in_the_package", [True, False])
def test_the_quickstart_is_found_in_a_package_and_in_a_checkout(
    in_the_package: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trying.api, "__file__", str(tmp_path / "platform/eagleray/app/api.py"))
    with pytest.raises(ConfigError, match="install eagleray again"):
        trying.shipped("quickstart")
    file = tmp_path / ("platform/eagleray/sweeps" if in_the_package else "sweeps") / "quickstart.yaml"
    file.parent.mkdir(parents=True)
    file.touch()
    assert trying.shipped("quickstart") == file


def test_chance_is_named_for_metrics_of_labels_alone():
    def said(metric: str, mean: float | None) -> str:
        sweep = validated(Sweep, {"name": "s", "search": "grid", "vary": {"augment.flip": [0, 1]}, "metric": metric})
        result: Any = SimpleNamespace(best=SimpleNamespace(mean=mean))
        return trying.against_chance(sweep, result)

    assert said("knn", 0.55).endswith("(knn), 5.5 times chance (1 of 10 classes).")
    assert said("rankme", 3.25) == "The best trial reached rankme 3.250."
    assert said("knn", None) == "No trial measured knn."


def test_collapsed_trials_are_named(tmp_path: Path):
    def ended(name: str, state: str, spread: float) -> Record:
        record = Record.create(tmp_path / name, name=name, experiment="s", params={}, run={})
        record.finish(state, summary={"z_std": spread})
        return record

    good = [ended("000", "finished", 0.8), ended("001", "finished", 0.66)]
    assert trying.verdict(good).endswith("none of 2 trials collapsed. The least spread of their embeddings is 0.66 "
                                         "(1: even, 0: a point).")  # fmt: skip
    bad = ended("002", "collapsed", 0.01)
    assert trying.verdict([*good, bad]) == "Collapse: 1 of 3 trials collapsed to a point: 002."
