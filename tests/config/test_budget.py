"""When a sweep's budget ends, however it is written."""

from datetime import datetime, timedelta
from typing import Any

import pytest
import yaml

from eagleray.config import Sweep, validated
from eagleray.config.budget import Budget
from eagleray.contracts.errors import ConfigError
from eagleray.runs.preflight import check_sweep

NOON = datetime.fromisoformat("2030-01-01T12:00+00:00")


def budget_of(text: str) -> Budget:
    tree = {"name": "s", "vary": {"seed": [0, 1]}, "budget": yaml.safe_load(text)}
    return validated(Sweep, tree).budget


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("{hours: 1.5}", "2030-01-01T13:30+00:00"),
        ("{until: 18:00}", "2030-01-01T18:00+00:00"),  # YAML reads 1080
        ("{until: 18}", "2030-01-01T18:00+00:00"),
        ("{until: 09:30}", "2030-01-02T09:30+00:00"),
        ("{until: 9:30}", "2030-01-02T09:30+00:00"),
        ("{until: '18:00+02:00'}", "2030-01-01T16:00+00:00"),
        ("{until: 2030-01-03}", "2030-01-03T00:00+00:00"),
        ("{until: 2030-01-03 18:00:00}", "2030-01-03T18:00+00:00"),
        ("{until: 2030-01-03T18:00+02:00}", "2030-01-03T16:00+00:00"),
        ("{hours: 24, until: 18:00}", "2030-01-01T18:00+00:00"),
        ("{hours: 1, until: 18:00}", "2030-01-01T13:00+00:00"),
    ],
)
def test_the_end_is_the_earlier_one(text: str, end: str):
    assert budget_of(text).end(NOON) == datetime.fromisoformat(end)


def test_without_a_budget_there_is_no_end():
    assert Budget().end(NOON) - NOON > timedelta(days=1_000_000)


@pytest.mark.parametrize("until", ["tonight", "25:00", "'2030-13-01'"])
def test_what_is_no_time_is_refused(until: str):
    with pytest.raises(ConfigError, match=r"budget\.until=.* is no time; write 18:00, 2030-12-31 or"):
        budget_of(f"{{until: {until}}}")


def test_a_recorded_budget_is_read_again_as_it_was():
    written = budget_of("{until: 18:00, hours: 2}").model_dump(mode="json")
    assert written == {"hours": 2.0, "until": "18:00"}
    assert Budget.model_validate(written) == budget_of("{until: 18:00, hours: 2}")


@pytest.mark.parametrize(("budget", "said"), [({"until": "2020-01-01"}, "budget.until=2020-01-01 is past")])
def test_a_budget_that_is_past_is_refused_before_anything_starts(budget: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        check_sweep(validated(Sweep, {"name": "s", "vary": {"seed": [0, 1]}, "budget": budget}))
