"""However a run or a sweep ends: its directory and MLflow say so, a person reads a sentence, and --resume goes on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from command_line import command_line
from eagleray.app.directories import check_extends, newest_unfinished
from eagleray.config import Sweep
from eagleray.config.budget import OVER
from eagleray.config.search_points import points
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.report import Failed
from eagleray.ray_backend.callbacks import TrialFollower
from eagleray.ray_backend.trial import RecordedEpochs, results
from eagleray.runs.failures import close_unfinished, failure_in, keep_end, reopen_unfinished
from eagleray.runs.record import INTERRUPTED, METRICS, Record
from eagleray.tracking import rows
from recorded_runs import recorded_sweep

TINY = ["data.limit=64", "batch_size=16", "epochs=2", "encoder.width=4", "threads=1", "evaluate.linear.when=never",
        "precision=fp32"]  # fmt: skip


@pytest.fixture
def eagleray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    return command_line(monkeypatch, capsys)


def raises(error: BaseException) -> Any:
    def fail(*_: Any, **more: Any) -> None:
        raise error

    return fail


# --- a run -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("place", ["launch.preview", "conclude.export_encoder"])
def test_a_bug_before_or_after_the_training_is_told_with_its_place_and_the_run_resumes(
    place: str, eagleray: Any, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patched:
        patched.setattr(f"eagleray.app.{place}", raises(KeyError("a font")))
        ended = eagleray("train", *TINY)
    (directory,) = Path("runs/eagleray").iterdir()
    record = Record.open(directory)
    sentence, where, log, following = ended.err.splitlines()
    assert ended.code == 1
    assert sentence == f"eagleray: {record.name} failed (bug): KeyError: 'a font'"
    assert where.startswith(f"  at {__file__}:")
    assert "Traceback" in Path(log.removeprefix("log: ")).read_text()
    assert record.state == "failed"

    resumed = eagleray(*following.rpartition("then: eagleray ")[2].split())
    assert resumed.code == 0, resumed.err
    assert record.state == "finished"
    assert (record.artifacts / "encoder.safetensors").is_file()
    assert [row["state"] for row in rows("eagleray")] == ["finished"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::eagleray.contracts.errors.Skipped")
def test_a_run_whose_files_are_damaged_fails_in_a_sentence(eagleray: Any, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patched:
        patched.setattr("eagleray.app.conclude.export_encoder", raises(KeyError("x")))
        assert eagleray("train", *TINY).code == 1
    record = Record.open(newest_unfinished(Path("runs/eagleray")))
    kept = {path: path.read_bytes() for path in (record.directory / "checkpoints").iterdir()}
    lines = (record.directory / METRICS).read_bytes()
    for path in kept:
        path.write_bytes(b"")
    ended = eagleray("train", *TINY, "--resume")
    assert (ended.code, record.state) == (2, "failed")
    assert ended.err.splitlines()[-1].endswith("are damaged: train it again, without --resume")
    assert "Traceback" not in ended.err
    for path, content in kept.items():
        path.write_bytes(content)

    (record.directory / METRICS).write_bytes(lines.replace(b"loss", b"lost", 1))
    ended = eagleray("train", *TINY, "--resume")
    assert (ended.code, record.state) == (2, "failed")
    assert f"{METRICS} is damaged in line 1: " in ended.err
    (record.directory / METRICS).write_bytes(lines)
    assert eagleray("train", *TINY, "--resume").code == 0
    assert [row["state"] for row in rows("eagleray")] == ["finished"]


# --- a sweep ---------------------------------------------------------------------------------------------------

SWEEP = """
name: s
question: Which?
run: {data: {name: digits, limit: 64}, batch_size: 16, epochs: 2, encoder: {width: 4}}
vary: {augment.flip: [0, 0.5, 1]}
floor: [pixels]
"""


def begins(ending: BaseException | None) -> Any:
    """Return what stands for Ray: one trial ends, one and a floor are in the middle, one was not begun."""

    def on_ray(sweep: Sweep, directory: Path, *, resume: bool, address: str | None, watch: Any) -> list[Record]:
        parent = Record.create(directory, name="s", experiment="s", params={}, run=sweep.model_dump(mode="json"),
                               tags={"kind": "sweep", "varied": "augment.flip"})  # fmt: skip
        reopen_unfinished(parent)
        for point in points(sweep)[: 3 if ending is None else 2]:
            place = directory / "trials" / point.name
            if (place / "status.json").exists():
                continue
            record = Record.create(
                place, name=point.name, experiment="s", params=point.params(sweep), run=point.alone(sweep).file(),
                parent=parent, tags=point.tags,
            )  # fmt: skip
            record.append(1, {"knn": 0.5}, 1)
            watch.trial(point.name, point.varied, "running", 1, 2, {"knn": 0.5})
            if ending is None or point.number == 0:
                record.append(2, {"knn": 0.6}, 2)
                record.finish("finished", summary={"knn": 0.6})
        floor = Record.create(
            directory / "trials/raw-pixels", name="raw pixels", experiment="s", params={"seed": 0}, parent=parent,
            run=points(sweep)[0].alone(sweep).file(),
            tags={"kind": "floor", "floor": "pixels", "point": "raw pixels", "label": "raw pixels"},
        )  # fmt: skip
        if ending is not None:
            raise ending
        floor.finish("finished", summary={"knn": 0.4})
        return parent.children()

    return on_ray


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "code", "state", "says"),
    [
        (KeyboardInterrupt(), 130, "stopped", "eagleray: stopped; nothing is lost. To continue: "),
        (IndexError("a search"), 1, "failed", "failed (bug): IndexError: a search"),
    ],
    ids=["Ctrl-C", "a bug"],
)
def test_the_trials_and_floors_of_a_sweep_end_with_it_and_go_on_with_it(
    ending: BaseException, code: int, state: str, says: str, eagleray: Any, monkeypatch: pytest.MonkeyPatch
):
    Path("s.yaml").write_text(SWEEP)
    for name in ("_reduce", "keep_encoder"):  # no checkpoint is there
        monkeypatch.setattr(f"eagleray.app.conclude.{name}", lambda *_: None)
    monkeypatch.setattr("eagleray.ray_backend.sweep.sweep", begins(ending))
    ended = eagleray("sweep", "s.yaml")
    assert ended.code == code
    assert says in ended.err
    assert "Traceback" not in ended.err
    (directory,) = Path("runs/s").iterdir()
    parent = Record.open(directory)
    assert parent.state == state
    assert {each.name: (each.state, each.status["message"]) for each in parent.children()} == {
        "000": ("finished", ""), "001": ("stopped", INTERRUPTED), "raw pixels": ("stopped", INTERRUPTED)
    }  # fmt: skip
    assert sorted(row["state"] for row in rows("s")) == sorted([state, "finished", "stopped", "stopped"])

    monkeypatch.setattr("eagleray.ray_backend.sweep.sweep", begins(None))
    resumed = eagleray("sweep", "s.yaml", "--resume")
    assert resumed.code == 0, resumed.err
    assert {row["state"] for row in rows("s")} == {"finished"}
    assert len(rows("s")) == 5


def test_what_stopped_with_its_sweep_has_not_ended(tmp_path: Path):
    question, parent = recorded_sweep(tmp_path)
    trial, *others = [each for each in parent.children() if each.kind == "trial"]
    with pytest.raises(ConfigError, match="has all 8 runs already"):
        check_extends(question, tmp_path)
    for why in (INTERRUPTED, OVER):
        trial.reopen()
        close_unfinished(parent, why)
        assert (trial.state, trial.summary) == ("stopped", trial.last)
        assert not RecordedEpochs.of(trial.directory).ended
        check_extends(question, tmp_path)  # it may go on
        reopen_unfinished(parent)
        assert trial.state == "running"
        assert {each.state for each in others} == {"finished"}
        trial.finish("stopped", "by the scheduler")
        reopen_unfinished(parent)
        assert trial.state == "stopped"


def test_a_trial_without_an_epoch_is_left_again_if_the_budget_is_over_before_it_starts(tmp_path: Path):
    _, parent = recorded_sweep(tmp_path)
    trial = Record.create(tmp_path / "trials/new", name="new", experiment="s", params={}, run={}, parent=parent)
    given = {"directory": str(trial.directory), "replay": True, "end": 0.0}
    assert [each["done"] for each in results(given)] == [True]
    assert (trial.state, trial.status["message"]) == ("stopped", OVER)


def test_a_trial_whose_tries_are_used_up_is_recorded_where_its_record_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its directory may be full: only status.json, for which room is kept, is written."""
    _, parent = recorded_sweep(tmp_path)
    trial = Record.create(tmp_path / "trials/new", name="new", experiment="s", params={}, run={}, parent=parent)
    monkeypatch.setattr(Record, "create", raises(Failed("no room", "infrastructure")))
    (tmp_path / "error").write_text("the worker died")
    lost = SimpleNamespace(
        config={"trial": {"directory": str(trial.directory), "varied": {}, "run": {"epochs": 1}}},
        pickled_error_file=None, error_file=str(tmp_path / "error"), last_result=None,
    )  # fmt: skip
    follower = TrialFollower(None, 9)
    follower.on_trial_error(0, [], lost)  # type: ignore[arg-type]
    failure = failure_in(trial)
    assert failure is not None
    assert (trial.state, failure.reason) == ("failed", "TuneError: the worker died")
    assert follower.ended == {"new"}


def test_a_failure_that_cannot_be_kept_is_still_told(tmp_path: Path):
    record = Record.create(tmp_path / "r", name="r", experiment="e", params={}, run={})
    (tmp_path / "r/status.json").mkdir()
    told = keep_end(record, IndexError("5"))
    assert told.startswith("r failed (bug): IndexError: 5. That could not be kept: ")
    assert "Is a directory" in told


def test_a_secret_in_an_error_is_not_kept(tmp_path: Path):
    record = Record.create(tmp_path, name="r", experiment="e", params={}, run={})
    keep_end(record, ConnectionError("no answer of http://me:canary@host/x?token=canary"))
    failure = failure_in(record)
    assert failure is not None
    assert failure.reason == "ConnectionError: no answer of http://host/x?token="
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"canary" in path.read_bytes()]
