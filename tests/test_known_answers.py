"""docs/known-answers.md is made from runs, and a verdict follows from figures and their interval."""

from pathlib import Path

import pytest
import yaml

from eagleray.config.plugin_files import import_file

ROOT = Path(__file__).parents[1]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_file("benchmark_known_answers", ROOT / "benchmarks/known_answers.py")


def rows_of(*values: tuple[float | None, ...]) -> list[dict[str, str]]:
    return [
        {"trial": str(point), "seed": str(seed), "linear": "" if value is None else str(value)}
        for point, numbers in enumerate(values)
        for seed, value in enumerate(numbers)
    ]


def test_the_page_is_that_of_the_rows(known):
    text = known.PAGE.read_text(encoding="utf-8")
    assert known.page(text) == text, "make docs"


def test_every_sweep_has_a_claim_and_every_claim_a_sweep(known):
    assert {claim.sweep for claim in known.CLAIMS} == {file.stem for file in known.SWEEPS.glob("*.yaml")}
    for claim in known.CLAIMS:
        varied = yaml.safe_load((known.SWEEPS / f"{claim.sweep}.yaml").read_text(encoding="utf-8"))["vary"]
        assert set(claim.better) == set(claim.worse) == set(varied)


@pytest.mark.parametrize(
    ("worse", "verdict"),
    [((0.2, 0.22, 0.24), "agrees"), ((0.8, 0.82, 0.84), "contradicted"), ((0.51, 0.50, 0.52), "not shown")],
)
def test_a_verdict_needs_a_difference_larger_than_its_interval(known, worse: tuple[float, ...], verdict: str):
    rows = rows_of((0.5, 0.52, 0.54), worse, (0.3, 0.33, 0.34))
    difference, found = known.judged(rows, rows[:3], rows[3:6])
    assert found == verdict
    assert difference.startswith(f"{0.52 - sum(worse) / 3:+.3f} ± ")


def test_a_point_that_collapsed_is_worse_than_one_with_a_number(known):
    rows = rows_of((0.5, 0.52, 0.54), (None, None, None))
    assert known.judged(rows, rows[:3], rows[3:]) == ("", "agrees: collapsed")
    assert known.judged(rows, rows[3:], rows[:3]) == ("", "contradicted: collapsed")


def test_a_point_without_a_run_is_an_error(known):
    with pytest.raises(KeyError, match="no run has"):
        known.of_point(rows_of((0.5,)), {"trial": "7"})
