"""A sweep that is extended runs the new cells alone."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import eagleray
from eagleray.config import Sweep, validated
from eagleray.config.search_points import points
from eagleray.contracts.errors import ConfigError
from eagleray.ray_backend.callbacks import TrialFollower
from eagleray.ray_backend.sweep import _check_images
from eagleray.runs.assemble import images_of
from eagleray.runs.checkpoint import checkpoints, load_checkpoint
from eagleray.runs.record import Record
from eagleray.runs.writer import keep_data
from eagleray.tracking import rows
from ray_sessions import two_cores
from recorded_runs import recorded_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

TINY = {"data": {"limit": 120}, "batch_size": 40, "encoder": {"name": "convnet", "width": 4}, "epochs": 1,
        "evaluate": {"linear": {"when": "never"}}}  # fmt: skip
FLIPS, CROPS = [0, 0.25, 0.5, 1], [0.2, 0.5, 0.8]


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with two_cores():
        yield


def a_sweep(crops: list[float], **changes: Any) -> Sweep:
    vary = {"augment.flip": FLIPS, "augment.crop_min": crops}
    return validated(Sweep, {"name": "s", "run": TINY, "vary": vary, "floor": [], **changes})


def trials(directory: Path) -> dict[str, Record]:
    return {record.name: record for record in Record.open(directory).children()}


def has_all(record: Record) -> bool:
    """Return whether the whole checkpoints of a trial and its encoder are there."""
    states = [load_checkpoint(path) for path in checkpoints(record.directory)]
    return all("optimizer" in state for state in states) and (record.artifacts / "encoder.safetensors").exists()


def size(record: Record) -> int:
    """Return the bytes of a trial's weights."""
    files = [*record.directory.glob("checkpoints/*"), *record.artifacts.glob("encoder*")]
    return sum(path.stat().st_size for path in files)


def test_trials_on_other_images_are_not_added(tmp_path: Path):
    runs = [point.run(sweep) for sweep in [a_sweep(CROPS)] for point in points(sweep)]
    record = Record.create(tmp_path / "trials/000", name="000", experiment="s", params={}, run=runs[0].file())
    data = images_of(runs[0])
    keep_data(runs[0], record, data)
    _check_images(tmp_path, runs)
    record.keep_data({**(record.data() or {}), "digest": "0a1b"})
    with pytest.raises(ConfigError, match="000 began with other images than there are now"):
        _check_images(tmp_path, runs)


def test_a_grid_extended_by_a_value_runs_exactly_the_new_cells(
    session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    first = eagleray.sweep(a_sweep(CROPS))
    directory = first.directory
    before = {name: (record.key, record.status["time"]) for name, record in trials(directory).items()}
    assert len(before) == 12
    whole = {name for name, record in trials(directory).items() if has_all(record)}
    best = [row.runs[0] for row in first.leaderboard[:3]]
    assert whole == set(best), "keep=best: of the others there are the weights"
    assert first.best is not None
    assert first.best.runs[0] in whole
    sizes = {name: size(record) for name, record in trials(directory).items()}
    assert max(sizes[name] for name in set(sizes) - whole) < 0.5 * min(sizes[name] for name in whole)
    assert all((record.artifacts / "views.png").exists() for record in trials(directory).values())

    with pytest.raises(ConfigError, match="has all 12 runs already"):
        eagleray.sweep(a_sweep(CROPS), extend=True)
    with pytest.raises(
        ConfigError, match=r"was started with metric=knn, and now it is metric=rankme; with run\.epochs=1"
    ):
        eagleray.sweep(a_sweep([*CROPS, 0.9], run={**TINY, "epochs": 2}, metric="rankme"), extend=True)
    with pytest.raises(ConfigError, match=r"vary\.augment\.crop_min=\[0\.2, 0\.5, 0\.8\], and now it is"):
        eagleray.sweep(a_sweep([0.2, 0.5, 0.9]), extend=True)
    assert {name: record.key for name, record in trials(directory).items()} == {
        n: key for n, (key, _) in before.items()
    }

    extended = eagleray.sweep(a_sweep([0.1, *CROPS]), extend=True)  # first in the list, but numbered last
    assert extended.directory == directory
    after = trials(directory)
    assert sorted(set(after) - set(before)) == ["012", "013", "014", "015"]
    assert [after[name].params["augment.crop_min"] for name in sorted(set(after) - set(before))] == [0.1] * 4
    assert {name: (after[name].key, after[name].status["time"]) for name in before} == before
    assert {row.name for row in extended.leaderboard} == set(after)
    assert Record.open(directory).state == "finished"
    assert [r.tags["winner"] for r in after.values() if "winner" in r.tags].count("yes") == 1
    keys = [run["tags"]["eagleray.key"] for run in rows("s", f"sqlite:///{tmp_path}/mlflow.db")]
    assert len(keys) == len(set(keys)) == 17

    seeded = eagleray.sweep(a_sweep([0.1, *CROPS], seeds=2), extend=True)
    names = set(trials(directory)) - set(after)
    assert names == {f"{number:03d}-seed1" for number in range(16)}
    assert {row.seeds for row in seeded.leaderboard} == {(0, 1)}
    assert seeded.best is not None
    winners = [trials(directory)[name] for name in seeded.best.runs]
    assert all("test_knn" in record.summary for record in winners), "the weights suffice to test a new winner"


def test_a_trial_that_has_ended_is_not_shown_as_started_while_its_epochs_are_replayed(tmp_path: Path):
    shown: list[tuple[str, str]] = []
    watch: Any = SimpleNamespace(trial=lambda label, params, state, *rest: shown.append((label, state)))
    follower = TrialFollower(watch, 2)
    for name in ("ended", "running"):
        record = recorded_run(tmp_path / name)
        config = {"directory": str(record.directory), "run": record.file(), "varied": {}}
        trial: Any = SimpleNamespace(config={"trial": config}, run_metadata=SimpleNamespace(num_failures=0))
        if name == "running":
            (record.directory / "status.json").unlink()
        follower.on_trial_start(0, [], trial)
        follower.on_trial_result(0, [], trial, {"done": False, "epoch": 1, "metrics": {}})
    assert shown == [("running", "running"), ("running", "running")]
