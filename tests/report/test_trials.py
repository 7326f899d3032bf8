"""Which runs are compared: read from directories and from MLflow's rows."""

from pathlib import Path
from typing import Any

from eagleray.report.analysis import TrialResult, analyse
from eagleray.report.trials import trials_of, trials_of_rows
from eagleray.runs.record import Record


def test_the_trials_of_a_sweep_are_read_from_its_directory(tmp_path: Path):
    parent = Record.create(tmp_path, name="s", experiment="s", params={}, run={})

    def child(name: str, **more: Any) -> Record:
        tags = {"kind": "trial", "point": str(int(name)), "label": name} if "tags" not in more else more.pop("tags")
        return Record.create(
            tmp_path / "trials" / name, name=name, experiment="s", run={}, parent=parent, tags=tags, **more
        )

    done = child("000", params={"batch_size": 64, "seed": 0})
    done.append(10, {"knn": 0.7, "loss": float("nan")}, 1)
    done.append(20, {"knn": 0.8}, 2)
    done.finish("finished", summary={"knn": 0.8, "test_knn": 0.75})
    child("001", params={"batch_size": 128, "seed": 0}).append(10, {"knn": 0.6}, 1)
    child("002", params={"batch_size": 256, "seed": 0}).finish("failed", "no room")
    pixels = {"kind": "floor", "floor": "pixels", "point": "raw pixels digits", "label": "raw pixels"}
    child("raw pixels digits seed3", params={"seed": 3}, tags=pixels).finish("finished", summary={"knn": 0.9})
    assert {one.name: one for one in trials_of(parent, ["batch_size"])} == {
        "000": TrialResult("000", {"batch_size": 64}, "0", "000", 0, metrics={"knn": 0.8, "test_knn": 0.75}),
        "001": TrialResult("001", {"batch_size": 128}, "1", "001", 0, state="running", metrics={"knn": 0.6}),
        "002": TrialResult("002", {"batch_size": 256}, "2", "002", 0, state="failed", message="no room"),
        "raw pixels digits seed3": TrialResult(
            "raw pixels digits seed3", {}, "raw pixels digits", "raw pixels", 3, "pixels", metrics={"knn": 0.9}
        ),
    }


def test_the_trials_of_an_experiment_are_read_from_mlflows_rows():
    def row(name: str, parent: str | None, knn: float, tags: dict[str, str], **params: str) -> dict[str, Any]:
        return {
            "name": name,
            "run_id": f"id-{name}",
            "parent": parent,
            "state": "finished",
            "tags": tags,
            "params": params,
            "metrics": {"knn": knn},
        }

    def trial_tags(number: int) -> dict[str, str]:
        return {"kind": "trial", "point": str(number), "label": f"{number:03d}"}

    pixels = {"kind": "floor", "floor": "pixels", "point": "raw pixels digits", "label": "raw pixels"}
    rows = [
        row("sweep", None, 0.9, {"kind": "sweep"}),
        row("000-seed0", "id-sweep", 0.8, trial_tags(0), batch_size="64", lr="1e-3", seed="0", same="x"),
        row("000-seed1", "id-sweep", 0.7, trial_tags(0), batch_size="64", lr="1e-3", seed="1", same="x"),
        row("001-seed0", "id-sweep", float("nan"), trial_tags(1), batch_size="128", lr="1e-3", seed="0", same="x"),
        row("raw pixels digits seed0", "id-sweep", 0.9, pixels, seed="0"),
        row("raw pixels digits seed1", "id-sweep", 0.8, pixels, seed="1"),
        row("alone", None, 0.6, {}, batch_size="256", lr="1e-3", seed="5", same="x"),
        row("again", None, 0.5, {}, batch_size="256", lr="1e-3", seed="6", same="x"),
    ]
    board = analyse(trials_of_rows(rows), ["batch_size"], "knn", "max").rows
    assert [(one.name, dict(one.params), one.values, one.seeds, one.floor) for one in board] == [
        ("raw pixels", {}, (0.9, 0.8), (0, 1), "pixels"),
        ("000", {"batch_size": 64}, (0.8, 0.7), (0, 1), ""),
        ("alone", {"batch_size": 256}, (0.6, 0.5), (5, 6), ""),
        ("001", {"batch_size": 128}, (), (), ""),
    ]
