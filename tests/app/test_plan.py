"""What a sweep costs: the arithmetic with a fake probe, and one real probe."""

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.app import cli
from eagleray.app import plan as plans
from eagleray.app.plan import STARTUP, Cost, kind, lines, makespan, packing, plan, size_of
from eagleray.config import Run, Sweep, load_sweep, validated
from eagleray.config.run import changed
from eagleray.runs.preflight import planned

LARGE = {
    "start": 3.0,
    "step": 0.5,
    "steps": 10,
    "saving": 0.25,
    "evaluation": 2.0,
    "ending": 7.0,
    "checkpoint": 3_000_000,
    "images": 40_000_000,
}


def a_sweep(**more: Any) -> Sweep:
    tree = {"name": "s", "run": {"epochs": 4}, "vary": {"batch_size": [64, 128]}, "seeds": 2, **more}
    return validated(Sweep, tree)


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "cores", lambda: 2)


class Probe:
    """Measures nothing; a batch of 128 is twice as slow a step as one of 64."""

    def __init__(self):
        self.seen: list[Run] = []

    def __call__(self, run: Run) -> Cost:
        self.seen.append(run)
        return Cost(**{**LARGE, "step": run.batch_size / 64})


def test_a_run_costs_its_start_its_steps_its_checkpoints_and_its_evaluations():
    run = validated(Run, {"epochs": 5, "evaluate": {"every": 2}, "checkpoints": {"every_epochs": 2}})
    assert Cost(**LARGE).seconds(run) == 3 + 5 * 10 * 0.5 + 2 * 0.25 + 2 * 2 + 7  # after epochs 2 and 4, and at the end


def test_a_run_of_steps_costs_these_and_the_epochs_that_they_take():
    run = validated(Run, {"steps": 43, "evaluate": {"every": 2}, "checkpoints": {"every_epochs": 2}})
    cost = Cost(**LARGE)
    assert cost.epochs(run) == 5
    assert cost.seconds(run) == 3 + 43 * 0.5 + 2 * 0.25 + 2 * 2 + 7


def test_a_plan_of_steps_counts_them(two_cores: None):
    made = plan(a_sweep(run={"steps": 15, "checkpoints": {"keep": 3}}), Probe())
    assert lines(made)["runs"] == "2 points x 2 seeds = 4 runs, 60 steps"
    assert made.checkpoints == 4 * 2 * 3_000_000, "15 steps take two epochs of 10"
    mixed = a_sweep(vary={"run": [{"epochs": 3}, {"steps": 7}]}, run={}, seeds=1)
    assert plans.size(mixed, planned(mixed)) == "2 runs, 3 epochs and 7 steps"
    assert plans.length(validated(Run, {"steps": 1000})) == "1,000 steps"


def test_a_plan_is_the_sum_of_its_runs_packed_onto_the_machine(two_cores: None):
    probe = Probe()
    made = plan(a_sweep(), probe, price=6.0, floors=2)
    assert [run.batch_size for run in probe.seen] == [64, 128], "seeds and temperatures cost the same"
    slow, fast = 3 + 4 * 10 * 2 + 4 * 0.25 + 3 * 2 + 7, 3 + 4 * 10 * 1 + 4 * 0.25 + 3 * 2 + 7
    # Two at a time: both seeds of the small batch, then both of the large; each floor once encoded twice.
    assert made.seconds == STARTUP + fast + slow + 2 * (3 + 2 * 7)
    assert made.at_once == 2
    assert made.checkpoints == 4 * 2 * 3_000_000
    assert made.images == 40_000_000
    assert made.gpu_hours == 0
    assert made.price == pytest.approx(6.0 * made.seconds / 3600)


def test_gpus_are_shared_and_paid_by_the_hour(two_cores: None):
    made = plan(a_sweep(gpus_per_trial=0.5, cpus_per_trial=0.1), Probe(), gpus=1, price=2.0)
    assert made.at_once == 2
    assert made.gpu_hours == pytest.approx((2 * 97 + 2 * 57) / 3600 / 2)
    assert made.price == pytest.approx(2 * made.gpu_hours)
    assert lines(made)["GPU hours"] == "about 0.043"


def test_an_unknown_search_takes_the_mean_of_its_ends_and_asha_is_an_upper_bound(two_cores: None):
    made = plan(a_sweep(search="tpe", trials=10, seeds=1, scheduler="asha"), Probe())
    assert made.seconds == pytest.approx(STARTUP + 10 / 2 * (57 + 97) / 2)
    assert lines(made)["time"].startswith("at most about 0:06:")
    assert lines(made)["runs"] == "10 runs, at most 40 epochs"


@pytest.mark.parametrize(
    ("settings", "at_once"),
    [
        ({}, 2),
        ({"cpus_per_trial": 2}, 1),
        ({"concurrent": 1}, 1),
        ({"run": {"workers": 2}}, 1),
        ({"cpus_per_trial": 0.5}, 4),
    ],
)
def test_as_many_runs_train_at_once_as_fit(two_cores: None, settings: dict[str, Any], at_once: int):
    sweep = a_sweep(**settings)
    assert packing(sweep, max(run.workers for run in planned(sweep)), gpus=0) == at_once


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=30), st.integers(1, 5))
def test_the_time_is_that_of_a_queue_of_workers(seconds: list[float], at_once: int):
    ends = [0.0] * at_once
    for each in seconds:  # the queue, simulated event by event
        place = ends.index(min(ends))
        ends[place] += each
    assert makespan(seconds, at_once) == pytest.approx(max(ends))


def test_numbers_that_cost_nothing_are_one_kind():
    run = validated(Run, {})
    same = {"method.temperature": 0.3, "optimizer.lr": 0.1, "seed": 4, "epochs": 70, "augment.flip": 0.5}
    assert all(kind(changed(run, {key: value})) == kind(run) for key, value in same.items())
    by_steps = changed(run, {"epochs": None, "steps": 7})
    assert kind(changed(by_steps, {"steps": 9})) == kind(by_steps) == kind(run)
    assert kind(changed(run, {"data.imbalance": 10})) != kind(run), "its epochs are shorter"
    for key, value in {"batch_size": 64, "encoder.width": 16, "precision": "bf16", "augment.only": ["crop"]}.items():
        assert kind(changed(run, {key: value})) != kind(run)


def test_sizes_are_short():
    assert [size_of(n) for n in (0, 999, 1000, 3_100_000, 4.2e9, 5e15)] == [
        "0 bytes", "999 bytes", "1 kB", "3.1 MB", "4.2 GB", "5e+03 TB"]  # fmt: skip


FILE = (
    "name: s\nrun: {data: {limit: 120}, batch_size: 40, epochs: 2, encoder: {width: 4}}\n"
    "vary: {augment.flip: [0, 0.5]}\nfloor: [pixels]\n"
)


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["eagleray", *arguments])
    cli.main()


def test_no_probe_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(FILE)
    with pytest.raises(SystemExit):
        typed(monkeypatch, "sweep", "s.yaml", "--plan", "--no-probe")
    told = capsys.readouterr().out
    assert "runs       2 runs, 4 epochs" in told
    assert "unknown without probing 1 kind of run" in told
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


@pytest.mark.slow
def test_a_real_probe_measures_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from eagleray.app.probe import probe
    from eagleray.loop import train
    from eagleray.runs.checkpoint import checkpoints

    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(FILE)
    with pytest.raises(SystemExit):
        typed(monkeypatch, "sweep", "s.yaml", "--plan", "--price", "1.5")
    told = capsys.readouterr().out
    assert all(word in told for word in ("time       about 0:00:", "disk ", "price      about "))
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]

    run = planned(load_sweep(Path("s.yaml"), []))[0]
    cost = probe(run)
    *_, last = train(run, tmp_path / "run")
    assert last.done
    sizes = {path.stat().st_size for path in checkpoints(tmp_path / "run")}
    assert cost.steps == 3
    assert cost.checkpoint == pytest.approx(max(sizes), rel=0.01)
    assert 0 < cost.step < 2
    short = probe(changed(run, {"epochs": None, "steps": 4}))
    assert (short.steps, short.epochs(changed(run, {"epochs": None, "steps": 4}))) == (3, 2)
    assert cost.ending > 0
