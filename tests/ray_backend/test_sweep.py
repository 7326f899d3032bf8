"""Sweeps: actors are reused, schedulers end and change trials, killed and stopped sweeps continue where they were."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from eagleray.app.conclude import conclude
from eagleray.config import Sweep, validated
from eagleray.contracts.errors import ConfigError
from eagleray.ray_backend import sweep as ray_tune
from eagleray.ray_backend.sweep import sweep
from eagleray.runs.record import Record
from ray_sessions import two_cores

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
]

TINY = {"data": {"limit": 120}, "batch_size": 40, "epochs": 2,
        "encoder": {"name": "convnet", "width": 4, "grid": 1, "last": 1},
        "evaluate": {"linear": {"when": "never"}}}  # fmt: skip
TEMPERATURES = {"method.temperature": [1.0, 0.5, 0.3, 0.2, 0.1, 0.05]}  # `rank` grows from left to right


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with two_cores(gpus=1):
        yield


def a_sweep(run: Mapping[str, Any] = TINY, **settings: Any) -> Sweep:
    tree = {"name": "test", "run": dict(run), "search": "grid", "vary": TEMPERATURES, "floor": [], **settings}
    return validated(Sweep, tree)


def longer(epochs: int, **more: Any) -> dict[str, Any]:
    return {**TINY, "epochs": epochs, **more}


class Seen:
    """Keeps all states of the trials."""

    def __init__(self):
        self.states: list[tuple[str, str, int]] = []
        self.floors: dict[str, list[Mapping[str, float]]] = {}
        self.done: dict[str, tuple[int, int]] = {}  # work after the trials
        self.most = 0  # trials that ran at once

    def trial(self, label: str, params: Mapping, state: str, epoch: int, epochs: int, metrics: Mapping) -> None:
        self.states.append((label, state, epoch))
        self.most = max(self.most, list(self.now().values()).count("running"))

    def data(self, read: Sequence[str]) -> None:
        self.read = list(read)

    def floor(self, name: str, metrics: Sequence[Mapping[str, float]]) -> None:
        self.floors[name] = list(metrics)

    def work(self, what: str, done: int, total: int) -> None:
        self.done = {**self.done, what: (done, total)}

    def now(self) -> dict[str, str]:
        return {label: state for label, state, _ in self.states}


def by_name(records: list[Record]) -> dict[str, Record]:
    return {record.name: record for record in sorted(records, key=lambda record: record.name)}


def steps(record: Record) -> list[int]:
    """Return the steps that have metrics of an epoch, as they were written: none twice."""
    return [row["step"] for row in record.read()[0] if "loss" in row["metrics"]]


# --- nothing is started ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"metric": "kn"}, "metric=kn: simclr reports no such number; did you mean knn"),
        ({"metric": "test_knn"}, "used once, by the winner"),
        ({"metric": "linear"}, "not measured with run.evaluate.linear.when=never"),
        ({"metric": "accuracy"}, "simclr has no classifier"),
        ({"run": {**TINY, "evaluate": {}}, "metric": "linear", "scheduler": "asha"}, "run.evaluate.linear.when=always"),
        ({"run": {**TINY, "evaluate": {"every": 2}}, "scheduler": "asha"}, "run.evaluate.every=2; set it to 1"),
        ({"run": {**TINY, "data": {"limit": 120, "validation": 0}}}, "run.data.validation=0.1"),
        ({"vary": {"batch_size": [40, 4000]}}, "batch_size=4000 is larger than the data"),
        ({"run": {**TINY, "device": "cuda"}}, "gpus_per_trial=1"),
        ({"run": {**TINY, "workers": 2}, "gpus_per_trial": 0.5}, "need a whole GPU each"),
        ({"run": {**TINY, "workers": 2}, "scheduler": "pbt"}, "workers=2"),
        ({"scheduler": "asha", "grace": 3}, "grace=3 is longer than a trial: run.epochs=2"),
        ({"scheduler": "pbt", "vary": {"method.hidden": [64, 128]}}, "vary.method.hidden changes the network's shape"),
        (
            {"scheduler": "pbt", "vary": {"optimizer.name": ["adamw", "sgd"], "optimizer.lr": [0.1]}},
            "vary.optimizer.name",
        ),
        (
            {"vary": {"optimizer.name": ["muon", "sgd"]}},
            "optimizer.lr is missing: the recipe's 0.005 is for muon, not for sgd",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_ray_is_started(
    settings: dict, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def connects(*_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray_tune, "connected", connects)
    with pytest.raises(ConfigError, match=words):
        sweep(a_sweep(**settings), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_a_metric_that_needs_labels_is_refused_without_them(tmp_path: Path):
    (tmp_path / "images").mkdir()
    for number in range(30):
        Image.effect_noise((12, 12), 50 + number).save(tmp_path / f"images/{number}.png")
    folder = {"name": "folder", "root": str(tmp_path / "images"), "cache": str(tmp_path / "cache")}
    run = {**TINY, "batch_size": 8, "data": folder}
    with pytest.raises(ConfigError, match=r"metric=knn: these images have no labels; .*rankme") as refused:
        sweep(a_sweep(run), tmp_path / "sweep")
    assert not re.search("loss|dead|alignment|uniformity", str(refused.value))


# --- killed and stopped drivers (each with a Ray of its own) ---------------------------------------------------


def in_a_process(settings: Mapping[str, Any], directory: Path, log: Path) -> subprocess.Popen:
    """Start a driver in its own process group, as a shell does."""
    code = """
        import json, sys, pathlib
        from eagleray.config import Sweep, validated
        from eagleray.ray_backend.sweep import sweep
        from eagleray.runs.signals import as_interrupts
        as_interrupts()
        try:
            sweep(validated(Sweep, json.loads(sys.argv[1])), pathlib.Path(sys.argv[2]))
        except KeyboardInterrupt:
            sys.exit(130)
    """
    tree = a_sweep(**settings).model_dump(mode="json")
    command = [sys.executable, "-c", textwrap.dedent(code), json.dumps(tree), str(directory)]
    with log.open("wb") as file:
        return subprocess.Popen(command, start_new_session=True, stdout=file, stderr=file)


def until(condition: Callable[[], object], what: str, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.1)


def of_session(leader: int) -> dict[int, str]:
    """Return the living processes of a session (setsid), each with its command."""
    alive = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                alive[int(place.name)] = (place / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return alive


def epochs_done(directory: Path) -> list[int]:
    return [len(steps(Record.open(place.parent))) for place in directory.glob("trials/*/record.json")]


@pytest.mark.parametrize(
    ("sent", "settings"),
    [
        (signal.SIGKILL, {"vary": {"method.temperature": [0.2, 0.5]}, "seeds": 2}),
        (signal.SIGTERM, {"vary": {"method.temperature": [0.2, 0.5]}, "seeds": 2}),
        (signal.SIGINT, {"vary": {"method.temperature": {"uniform": [0.1, 1]}}, "search": "tpe", "trials": 4}),
    ],
)
def test_a_sweep_continues_where_it_was(
    sent: signal.Signals, settings: dict, tmp_path: Path, request: pytest.FixtureRequest
):
    """End it while some trials have finished, some have started and some have not."""
    # An epoch takes long enough for a signal to come in the middle of a trial.
    settings = {**settings, "run": longer(4, data={}, batch_size=64)}
    directory, log = tmp_path / "sweep", tmp_path / "log"
    driver = in_a_process(settings, directory, log)
    until(lambda: any(0 < n < 4 for n in epochs_done(directory)) or driver.poll() is not None, "a first epoch")
    assert driver.poll() is None, log.read_text()
    # Ctrl-C in a terminal goes to all of them.
    (os.killpg if sent == signal.SIGINT else os.kill)(driver.pid, sent)
    assert driver.wait(60) == (-signal.SIGKILL if sent == signal.SIGKILL else 130), log.read_text()
    assert "SIGTERM received" not in log.read_text()  # Ray's stack trace
    # Two of Ray's processes that neither train nor schedule notice a minute late that they are alone.
    until(lambda: all("Agent" in name for name in of_session(driver.pid).values()), "Ray to be gone", 60)
    for pid in of_session(driver.pid):
        os.kill(pid, signal.SIGKILL)

    before = {r.name: (steps(r), dict(r.params)) for r in Record.open(directory).children()}
    assert before
    request.getfixturevalue("session")
    records = sweep(a_sweep(**settings), directory, resume=True)
    assert len(records) == 4
    for record in records:
        expected, _ = before.get(record.name, ([], {}))
        assert record.state == "finished"
        assert len(steps(record)) == 4 == len(set(steps(record))), "an epoch is missing or was counted twice"
        assert steps(record)[: len(expected)] == expected
        assert before.get(record.name, (0, dict(record.params)))[1] == dict(record.params)
    assert sum(record.tags.get("winner") == "yes" for record in records) == settings.get("seeds", 1)


# --- in one Ray ------------------------------------------------------------------------------------------------


def test_trials_run_in_kept_actors_the_winner_is_tested_and_the_floor_measured(
    session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pids, seen = set(), Seen()
    original = ray_tune.TrialFollower.on_trial_result

    def with_pid(self, *args: Any, result: dict, **info: Any) -> None:
        pids.add(result["pid"])
        original(self, *args, result=result, **info)

    monkeypatch.setattr(ray_tune.TrialFollower, "on_trial_result", with_pid)
    question = a_sweep(floor=["random", "pixels"], gpus_per_trial=0.5, cpus_per_trial=0.2)
    records = sweep(question, tmp_path / "sweep", watch=seen)
    (read,) = seen.read
    assert read.startswith("622 of 1,797 images (data.limit), 10 classes (0 ")
    assert "; train 120, validation 143, test 359; " in read  # a tenth and a fifth of all, and data.limit
    assert Record.open(tmp_path / "sweep").tags["data"] == read
    trials = {r.name: r for r in records if r.kind == "trial"}
    floors = {r.name: r for r in records if r.kind == "floor"}
    assert sorted(trials) == [f"{n:03d}" for n in range(6)]
    assert [trials[label].params["method.temperature"] for label in sorted(trials)] == TEMPERATURES[
        "method.temperature"
    ]
    assert {r.state for r in records} == {"finished"}
    assert len(pids) <= 2, "six trials need two actors, and the GPU has room for two at once"
    assert seen.most <= 2
    best = max(r.summary["knn"] for r in trials.values())
    winners = [r for r in trials.values() if r.tags.get("winner")]
    assert [r.summary["knn"] for r in winners] == [best]
    assert [r for r in trials.values() if any(name.startswith("test_") for name in r.summary)] == winners
    pixels, random = "raw pixels digits seed0", "random init convnet digits seed0"
    assert set(floors) == {pixels, random}
    assert floors[pixels].summary["knn"] > floors[random].summary["knn"]
    assert all("test_knn" in r.summary for r in floors.values())
    file = yaml.safe_load((trials["000"].directory / "run.yaml").read_text())
    assert file["method"]["temperature"] == 1.0
    assert trials["000"].params["threads"] == 1
    assert (file["threads"], file["device"], file["evaluate"]["test"]) == (None, "auto", True), "imposed by the sweep"
    assert seen.now() == dict.fromkeys(trials, "finished")
    assert seen.floors == {record.tags["point"]: [record.summary] for record in floors.values()}
    assert [epoch for label, _, epoch in seen.states if label == "003"] == [0, 0, 1, 2]  # waits, runs, two epochs
    assert not (tmp_path / "sweep/ray").exists()


@pytest.mark.parametrize("search", [{"search": "grid"}, {"search": "tpe", "trials": 2}])
def test_floors_are_measured_with_the_seeds_of_the_trials(session: None, tmp_path: Path, search: dict):
    """Each once for every seed, with that seed's validation images; the report shows all seeds as one row."""
    seen, kinds = Seen(), ["random", "pixels", "kmeans"]
    run = longer(1, data={"limit": 120, "validation": 0.2}, seed=3)
    question = a_sweep(run, vary={"method.temperature": [0.2, 0.5]}, seeds=2, floor=kinds, **search)
    records = sweep(question, tmp_path / "sweep", watch=seen)
    floors = [record for record in records if record.kind == "floor"]
    assert sorted((r.tags["floor"], r.params["seed"]) for r in floors) == sorted(itertools.product(kinds, (3, 4)))
    trials = [record for record in records if record.kind == "trial"]
    assert sorted((r.tags["point"], r.params["seed"]) for r in trials) == [("0", 3), ("0", 4), ("1", 3), ("1", 4)]
    assert len(seen.floors) == 3
    for name, metrics in seen.floors.items():
        assert metrics == [r.summary for seed in (3, 4) for r in floors if r.name == f"{name} seed{seed}"]
        assert metrics[0] != metrics[1]
    (best,) = {record.tags["point"] for record in records if record.tags.get("winner")}

    found = conclude(question, Record.open(tmp_path / "sweep"))
    assert found.winner is not None
    assert found.winner.name == f"00{best}"
    assert {(row.floor, row.seeds) for row in found.floors} == {(kind, (3, 4)) for kind in kinds}
    assert {row.name for row in found.floors} == {"random init", "raw pixels", "k-means patches"}
    page = (tmp_path / "sweep/artifacts/report.md").read_text()
    assert all(f"| {row.name} |  | {row.measured} | 2 |" in page for row in found.floors)

    before = {record.name: (record.directory / "metrics.jsonl").read_bytes() for record in records}
    again = sweep(question, tmp_path / "sweep", resume=True)
    assert {record.name: (record.directory / "metrics.jsonl").read_bytes() for record in again} == before


def test_asha_stops_the_worse_a_resumed_sweep_keeps_that_and_whole_gpus_are_not_shared(session: None, tmp_path: Path):
    seen = Seen()
    question = a_sweep(longer(4), metric="rank", mode="min", scheduler="asha", gpus_per_trial=1)
    records = by_name(sweep(question, tmp_path / "sweep", watch=seen))
    assert seen.most == 1, "there is one GPU"
    epochs = {label: len(steps(record)) for label, record in records.items()}
    assert epochs == {"000": 4, "001": 1, "002": 1, "003": 1, "004": 1, "005": 1}
    assert {label: r.state for label, r in records.items()} == {
        label: "finished" if label == "000" else "stopped" for label in records
    }
    assert records["001"].status["message"] == "by the scheduler"
    assert records["001"].summary["rank"] == records["001"].metrics()[-1]["rank"]

    lines = {label: (r.directory / "metrics.jsonl").read_bytes() for label, r in records.items()}
    again = by_name(sweep(question, tmp_path / "sweep", resume=True))
    assert {label: r.state for label, r in again.items()} == {label: r.state for label, r in records.items()}
    assert {label: (r.directory / "metrics.jsonl").read_bytes() for label, r in again.items()} == lines

    with pytest.raises(ConfigError, match="has trials already"):
        sweep(question, tmp_path / "sweep")
    with pytest.raises(ConfigError, match="of another sweep"):
        sweep(a_sweep(vary={"method.temperature": [0.7, 0.8]}), tmp_path / "sweep", resume=True)


def test_a_sweep_of_two_worker_trials_with_asha_finishes(session: None, tmp_path: Path):
    question = a_sweep(
        longer(4, workers=2), vary={"method.temperature": [1.0, 0.05]}, metric="rank", mode="min", scheduler="asha"
    )
    good, bad = by_name(sweep(question, tmp_path / "sweep")).values()
    assert (good.state, len(steps(good))) == ("finished", 4)
    assert (bad.state, len(steps(bad))) == ("stopped", 1)
    assert good.tags["winner"] == "yes"
    assert "test_knn" in good.summary


def test_a_population_copies_the_best_and_changes_its_settings(session: None, tmp_path: Path):
    """Stop it by Ctrl-C in its third epoch, and resume it."""

    class Stops(Seen):
        def trial(self, label: str, params: Mapping, state: str, epoch: int, *more: Any) -> None:
            super().trial(label, params, state, epoch, *more)
            if epoch == 3 and sum(each[2] == 3 for each in self.states) == 1:
                os.kill(os.getpid(), signal.SIGINT)

    vary = {"optimizer.lr": {"log_uniform": [1e-5, 1e-2]}, "augment.flip": [0.0, 0.5]}
    question = a_sweep(longer(6), vary=vary, search="random", trials=4, scheduler="pbt", grace=2)
    with pytest.raises(KeyboardInterrupt):
        sweep(question, tmp_path / "sweep", watch=Stops())
    assert {r.state for r in Record.open(tmp_path / "sweep").children()} == {"running"}
    records = sweep(question, tmp_path / "sweep", resume=True)
    assert [r.state for r in records] == ["finished"] * 4
    changed = 0
    for record in records:
        rows = record.metrics()
        assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
        notes = {int(k.rpartition("_")[2]): v for k, v in record.tags.items() if k.startswith("changed_after_epoch_")}
        changed += len(notes)
        for before, after in itertools.pairwise(rows):
            note = notes.get(before["epoch"], "")
            assert note or all(before[key] == after[key] for key in vary), "a change that is not noted"
            assert not note or f"optimizer.lr={after['optimizer.lr']}" in note
            assert not note or note.rpartition(" from ")[2] in {r.name for r in records} - {record.name}
            assert 1e-5 <= after["optimizer.lr"] <= 1e-2
        file = yaml.safe_load((record.directory / "run.yaml").read_text())
        assert file["optimizer"]["lr"] == rows[-1]["optimizer.lr"]
    assert changed >= 1


def test_a_failing_trial_is_recorded_and_the_others_go_on(session: None, tmp_path: Path):
    """A learning rate that makes the loss diverge ends its trial with the reason; no weights of it are kept."""
    question = a_sweep(vary={"optimizer.lr": [1e-3, 1e30]}, run=longer(3))
    good, bad = by_name(sweep(question, tmp_path / "sweep")).values()
    assert good.state == "finished"
    assert bad.state == "failed"
    assert "the loss is" in bad.status["message"]
    assert good.tags["winner"] == "yes"
