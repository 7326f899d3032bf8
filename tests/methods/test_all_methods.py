"""What every method must fulfil: the checks that `eagleray check FILE.py` asks of a method of a user's own."""

import pytest

from eagleray.config import Run, load_run
from eagleray.runs.method_checks import CHECKS, apart
from method_cases import METHODS, settings

ALONE = [name for name, check in CHECKS.items() if name != "two workers"]


def run(name: str) -> Run:
    return load_run(None, settings(name))


@pytest.mark.parametrize("check", ALONE)
@pytest.mark.parametrize("name", METHODS)
def test_a_method_passes_the_checks(name: str, check: str):
    assert list(CHECKS[check](run(name))) == []


@pytest.fixture(scope="module")
def together(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    """The complaints about the methods that are tested. To start two processes takes longer than a step."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    tests = [item for item in items if item.module is request.module]
    names = [test.callspec.params["name"] for test in tests if "together" in test.fixturenames]
    return dict(zip(names, apart([run(name) for name in names]), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_workers_take_the_step_of_one(name: str, together: dict[str, list[str]]):
    """Value, gradient, teacher and statistics, on asymmetric data."""
    assert together[name] == []
