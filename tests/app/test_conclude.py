"""What stays of a sweep's trials when it has ended."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from eagleray.app import conclude
from eagleray.app.conclude import best_runs, concluded
from eagleray.config import Sweep
from eagleray.config.search_points import Point
from eagleray.contracts.errors import Skipped
from eagleray.runs.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from eagleray.runs.record import Record
from recorded_runs import recorded_sweep

TEMPERATURES = {"method.temperature": [0.1, 0.2, 0.3, 0.4, 0.5]}  # the higher, the better here


class Watch:
    """Keeps what it is shown of the work at the end."""

    def __init__(self):
        self.done: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None

    def work(self, what: str, done: int, total: int) -> None:
        self.done.append((done, total))


def watching() -> Any:
    return Watch()


def by_temperature(point: Point) -> float:
    return point.values["method.temperature"]


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Record a sweep of five points and two seeds whose trials have two checkpoints each."""

    def exported(record: Record, form: str, folder: Path) -> None:
        (folder / "encoder.safetensors").write_bytes(b"weights")

    def of(**changes: Any) -> tuple[Sweep, Record]:
        sweep, parent = recorded_sweep(tmp_path / "sweep", by_temperature, vary=TEMPERATURES, **changes)
        for trial in trials(parent).values():
            (trial.artifacts / "views.png").touch()
            for step in (1, 2):
                save_checkpoint(trial.directory, {"step": step, **state()}, keep=2)
        return sweep, parent

    monkeypatch.setattr(conclude, "export_encoder", exported)
    return of


def state() -> dict[str, Any]:
    weights, mean, square = torch.arange(30_000.0).split(10_000)
    return {
        "method": {"weights": weights.clone()},
        "optimizer": {"state": {0: {"mean": mean.clone(), "square": square.clone()}}},
    }


def trials(parent: Record) -> dict[str, Record]:
    return {record.name: record for record in parent.children() if record.kind == "trial"}


def sizes(parent: Record) -> Mapping[str, int]:
    """Return the bytes of each trial's checkpoints and encoder."""
    files = {name: [*each.directory.glob("checkpoints/*"), *each.artifacts.glob("*.safetensors")]
             for name, each in trials(parent).items()}  # fmt: skip
    return {name: sum(path.stat().st_size for path in paths) for name, paths in files.items()}


def is_whole(record: Record) -> bool:
    saved = [load_checkpoint(path) for path in checkpoints(record.directory)]
    has_encoder = (record.artifacts / "encoder.safetensors").exists()
    return len(saved) == 2 and all("optimizer" in each for each in saved) and has_encoder


def test_the_best_three_points_keep_everything_and_the_others_their_weights(ended: Any):
    sweep, parent = ended()
    before, watch = sizes(parent), watching()
    analysis = concluded(sweep, parent.directory, watch)
    whole = {name for name, record in trials(parent).items() if is_whole(record)}
    assert whole == best_runs(analysis) == {f"00{point}-seed{seed}" for point in (2, 3, 4) for seed in (0, 1)}
    for name in {*trials(parent)} - whole:
        (saved,) = checkpoints(trials(parent)[name].directory)
        kept = load_checkpoint(saved)
        assert (kept["step"], kept.keys()) == (2, {"step", "method"})
        assert torch.equal(kept["method"]["weights"], torch.arange(10_000.0))
        assert sizes(parent)[name] < before[name] / 5, "of two checkpoints with two moments, one with weights"
        assert trials(parent)[name].tags["checkpoint"] == str(saved)
    assert watch.done == [(number, 13) for number in range(1, 14)], "ten trials, two floors, and the report"
    assert parent.state == "finished"


def test_all_keep_everything_if_that_is_asked(ended: Any):
    sweep, parent = ended(keep="all")
    concluded(sweep, parent.directory, watching())
    assert all(map(is_whole, trials(parent).values()))


def test_nothing_is_removed_while_runs_are_left(ended: Any):
    sweep, parent = ended()
    trials(parent)["000-seed0"].finish("stopped", "by the budget")
    trials(parent)["001-seed0"].reopen()
    before = sizes(parent)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(conclude, "left", lambda *_: ["1 not started by the budget"])
        concluded(sweep, parent.directory, watching())
    assert all(sizes(parent)[name] >= before[name] for name in before)


def test_a_failed_trial_may_go_on_and_a_damaged_one_stops_nobody(ended: Any):
    sweep, parent = ended()
    records = trials(parent)
    records["000-seed0"].finish("failed", "no room")
    for path in checkpoints(records["001-seed1"].directory):
        path.write_bytes(b"damaged")
    with pytest.warns(Skipped, match="damaged"):
        concluded(sweep, parent.directory, watching())
    assert len(checkpoints(records["000-seed0"].directory)) == 2
    assert len(checkpoints(records["001-seed1"].directory)) == 2
    assert len(checkpoints(records["000-seed1"].directory)) == 1
