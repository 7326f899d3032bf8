"""What every method must fulfil: the checks that `eagleray check FILE.py` asks of a method of a user's own."""

import pytest

from eagleray.config import Run, load_run
from eagleray.runs.method_checks import CHECKS, apart
from method_cases import METHODS, settings, variants

ALONE = [name for name, check in CHECKS.items() if name != "two workers"]
# Each method; each with another value of one setting; and what needs two settings.
CASES = [
    *METHODS,
    *(f"{name} {setting}" for name in METHODS for setting in variants(name) if setting != "method.grid=3"),
    "jigsaw method.grid=3 method.tile=0.8",
    "msn method.local_size=4",
]
# Its whitening is not defined where a direction has no variance, as its docstring says.
UNDEFINED = {("w_mse method.shrinkage=0", "finite numbers")}


def run(case: str) -> Run:
    name, *more = case.split()
    return load_run(None, [*settings(name), *more])


@pytest.mark.parametrize("check", ALONE)
@pytest.mark.parametrize("case", CASES)
def test_a_method_passes_the_checks(case: str, check: str):
    complaints = list(CHECKS[check](run(case)))
    assert bool(complaints) == ((case, check) in UNDEFINED), complaints


@pytest.fixture(scope="module")
def together(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    """The complaints about the methods that are tested. To start two processes takes longer than a step."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    tests = [item for item in items if item.module is request.module]
    cases = [test.callspec.params["case"] for test in tests if "together" in test.fixturenames]
    return dict(zip(cases, apart([run(case) for case in cases]), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_workers_take_the_step_of_one(case: str, together: dict[str, list[str]]):
    """Value, gradient, teacher and statistics, on asymmetric data."""
    assert together[case] == []
