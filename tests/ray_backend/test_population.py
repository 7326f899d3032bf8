"""What a population has set is kept as it was set, and validated once."""

from pathlib import Path
from typing import Any

import pytest

from eagleray.app.directories import check_extends
from eagleray.config import Sweep, validated
from eagleray.config.search_points import points, sweep_params
from eagleray.contracts.errors import ConfigError
from eagleray.ray_backend.sweep import trial_config
from eagleray.ray_backend.trial import started
from eagleray.runs.record import Record

pytestmark = pytest.mark.slow  # imports Ray

PERCENT = """
from typing import Annotated
from pydantic import AfterValidator
from eagleray_methods.simclr import SimCLR

class Percent(SimCLR):
    'SimCLR with a share in percent.'

    class Config(SimCLR.Config, frozen=True):
        percent: Annotated[float, AfterValidator(lambda v: v / 100)] = 50
"""


@pytest.fixture
def population(tmp_path: Path) -> Sweep:
    (tmp_path / "percent.py").write_text(PERCENT)
    vary = {"method.percent": {"uniform": [10, 60]}}
    own = {"method": str(tmp_path / "percent.py"), "epochs": 4}
    sweep = validated(Sweep, {"name": "s", "run": own, "vary": vary, "scheduler": "pbt", "trials": 2})
    Record.create(
        tmp_path / "s", name="s", experiment="s", params=sweep_params(sweep), run=sweep.model_dump(mode="json")
    )
    return sweep


def test_a_resumed_trial_trains_with_the_values_of_its_run_file(population: Sweep, tmp_path: Path):
    point = points(population)[0]

    def percent(trial: dict[str, Any]) -> float:
        run, record = started(trial)
        assert run.file()["method"] == record.file()["method"]
        return record.file()["method"]["percent"]

    first = trial_config(population, tmp_path / "s", point)
    assert percent(first) == point.values["method.percent"] / 100
    assert percent(trial_config(population, tmp_path / "s", point)) == point.values["method.percent"] / 100
    assert percent({**first, "values": {"method.percent": 30}}) == 0.3  # the population changes it
    resumed = trial_config(population, tmp_path / "s", point)
    assert resumed["values"] == {"method.percent": 30}  # in the numbers of its range, which changes go by
    assert percent(resumed) == 0.3


def test_a_population_cannot_be_extended(population: Sweep, tmp_path: Path):
    more = population.model_copy(update={"trials": 3})
    with pytest.raises(ConfigError, match=r"^--extend: trials of scheduler=pbt learn from each other; start a new"):
        check_extends(more, tmp_path / "s")
