"""Pictures of sweeps: lines over the settings, and the Pareto front of metric and compute."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eagleray.app.picturing import swept
from eagleray.pictures.catalogue import Absent
from eagleray.pictures.of_sweeps import compute, settings
from eagleray.pictures.of_sweeps.compute import course, front
from eagleray.report.leaderboard import Mode
from eagleray.report.recorded import Recorded, from_directory
from eagleray.runs.record import Record
from recorded_runs import recorded_sweep


def sweep_with_speed(directory: Path, **changes: Any) -> Record:
    """Record a sweep whose runs have images and speeds: the first point is the slowest."""
    _, parent = recorded_sweep(directory, **changes)
    for number, child in enumerate(parent.children()):
        child.keep_data({"images": {"train": 1000}, "digest": "d"})
        for row in child.metrics():
            numbers = {name: value for name, value in row.items() if name not in ("step", "epoch", "time")}
            child.append(row["step"], {**numbers, "images_per_second": 100.0 + 10 * number}, row["epoch"])
    return parent


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_front_is_that_of_a_slow_search(mode: Mode):
    noise = np.random.default_rng(0)
    sign = 1 if mode == "max" else -1
    for _ in range(50):
        points = [(float(x), float(y)) for x, y in noise.integers(0, 6, (12, 2))]

        def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
            return one != other and one[0] <= other[0] and sign * one[1] >= sign * other[1]

        wanted = [n for n, point in enumerate(points) if not any(beats(other, point) for other in points)]
        found = front(points, mode)
        assert sorted(found) == wanted
        assert [points[place][0] for place in found] == sorted(points[place][0] for place in found)


def test_a_course_has_seconds_images_and_the_metric_of_each_evaluation(tmp_path: Path):
    record = sweep_with_speed(tmp_path / "s").children()[0]
    run = from_directory(record)
    batch = run.params["batch_size"]
    images = 1000 // batch * batch
    found = course(run, "knn")
    rows = [row for row in record.metrics() if row["epoch"]]
    assert len(found) == len(rows) > 1
    for (seconds, seen, knn), row in zip(found, rows, strict=True):
        assert seen == row["epoch"] * images
        assert seconds == pytest.approx(seen / row["images_per_second"])
        assert knn == row["knn"]


def test_points_are_means_over_seeds_and_the_front_is_marked(tmp_path: Path):
    subject = swept(sweep_with_speed(tmp_path / "s"))
    figure = compute.draw(subject)
    rows, runs = subject.analysis.tried, {run.name: run for run in subject.comparison.runs}
    for kind, axes in enumerate(figure.axes):
        ends = {row.name: np.mean([course(runs[name], "knn")[-1] for name in row.runs], 0) for row in rows}
        wanted = [(end[kind], end[2]) for end in ends.values()]
        np.testing.assert_allclose(axes.collections[0].get_offsets(), wanted)
        (line,) = [line for line in axes.lines if line.get_label() == "Pareto front"]
        np.testing.assert_allclose(line.get_xydata(), [wanted[place] for place in front(wanted, "max")])
        assert {text.get_text() for text in axes.texts} >= {"raw pixels"}
    texts = {text.get_text() for text in figure.axes[1].texts}
    assert rows[0].name in texts  # all saw as many images, so the best alone is on that front
    assert not texts & {row.name for row in rows[1:]}


def test_a_line_goes_through_a_points_settings_to_its_metric_and_the_best_is_thick(tmp_path: Path):
    subject = swept(sweep_with_speed(tmp_path / "s"))
    axes = settings.draw(subject).axes[0]
    lines = {line.get_gid(): line for line in axes.lines if line.get_gid()}
    rows = subject.analysis.tried
    means = [row.mean for row in rows if row.mean is not None]
    assert set(lines) == {row.name for row in rows}
    for row in rows:
        assert row.mean is not None
        wanted = [
            [0.1, 0.2].index(row.params["method.temperature"]), [0, 0.5].index(row.params["augment.flip"]),
            (row.mean - min(means)) / (max(means) - min(means)),
        ]  # fmt: skip
        assert list(lines[row.name].get_ydata()) == pytest.approx(wanted)
    thick = max(lines.values(), key=lambda line: line.get_linewidth())
    assert thick.get_gid() == rows[0].name
    assert [label.get_text() for label in axes.get_xticklabels()][:2] == ["method.temperature", "augment.flip"]


def test_what_sweeps_lack_is_said(tmp_path: Path):
    subject = swept(recorded_sweep(tmp_path / "s")[1])  # without speeds
    with pytest.raises(Absent, match="no run of the sweep recorded knn beside its speed"):
        compute.draw(subject)
    one = swept(recorded_sweep(tmp_path / "one", vary={"augment.flip": [0]})[1])
    with pytest.raises(Absent, match="settings are compared between two points or more"):
        settings.draw(one)


def test_a_run_whose_images_are_unknown_has_no_course(tmp_path: Path):
    recorded = from_directory(recorded_sweep(tmp_path / "s")[1].children()[0])
    assert isinstance(recorded, Recorded)
    assert course(recorded, "knn") == []
