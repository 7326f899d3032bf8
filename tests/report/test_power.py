"""Findings are right as often as they should be: `benchmarks/power.py`, with fewer sweeps and fixed seeds."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import optuna
import pytest

SWEEPS = 100


@pytest.fixture(scope="module")
def power() -> ModuleType:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = Path(__file__).parents[2] / "benchmarks/power.py"
    spec = spec_from_file_location("benchmark_power", file)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "seeds", "effect", "least"),
    [
        ("2x2 grid", 3, 2.0, 0.6),  # 0.72 in theory, with a standard error of 0.045
        ("2x2 grid", 3, 4.0, 0.99),
        ("one key, split sd 3", 5, 2.0, 0.6),
    ],
)
def test_what_matters_is_found(power: ModuleType, name: str, seeds: int, effect: float, least: float):
    (case,) = (one for one in power.power_cases() if (one.name, one.seeds, one.effect) == (name, seeds, effect))
    ours, theirs = power.rates(case, SWEEPS)
    assert ours >= least
    assert abs(ours - theirs) <= 0.03  # what an ordinary blocked analysis of variance finds in the same sweeps


@pytest.mark.slow
def test_what_has_no_effect_is_seldom_found(power: ModuleType):
    """5 % of sweeps at most, in each design; the bound allows for three standard errors."""
    few = {
        case.name: power.rates(case, 40)[0] for case in power.null_cases() if case.seeds <= 3 and "tpe" not in case.name
    }
    assert len(few) >= 8
    assert max(few.values()) <= 0.05 + 3 * (0.05 * 0.95 / 40) ** 0.5
    assert sum(few.values()) / len(few) <= 0.05 + 3 * (0.05 * 0.95 / 40 / len(few)) ** 0.5


def test_a_hundred_sweeps_of_identical_cells_have_no_winner(power: ModuleType):
    (case,) = (one for one in power.null_cases() if (one.name, one.seeds) == ("2x2 grid", 5))
    assert power.rates(case, 100)[0] <= 0.05


@pytest.mark.slow
def test_the_best_of_many_seldom_beats_an_equal_floor(power: ModuleType):
    assert power.best_of_many(100, 3) <= 0.05


@pytest.mark.parametrize("name", ["3x + y + 0z", "2x + 6(y - 0.5)² + 0.7 exp z", "sin 2πx + 1.5y"])
def test_shares_are_the_sobol_indices_of_a_known_function(power: ModuleType, name: str):
    errors, held = power.share_errors(power.FUNCTIONS[name], 60, 4)
    assert max(errors) <= 0.1
    assert held >= 0.8
    assert sum(errors) / len(errors) > 0  # something was compared


def test_too_few_trials_are_not_ranked(power: ModuleType):
    errors, _ = power.share_errors(power.FUNCTIONS["3x + y + 0z"], 36, 1)
    assert errors == []
    assert power.share_errors(power.FUNCTIONS["3x + y + 0z"], 37, 1)[0]
