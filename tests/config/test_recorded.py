"""A value is validated once: whoever reads a run file trains with exactly what it says."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from eagleray.config import Run, Sweep, changed, load_run, read_run, validated
from eagleray.config.recorded import lost, settings_of
from eagleray.config.search_points import points
from eagleray.contracts.errors import ConfigError
from eagleray.runs.assemble import blueprint, build_method, from_blueprint
from method_cases import INFO

PERCENT = '''
"""A method whose user types percent."""
from enum import Enum
from pathlib import Path
from typing import Annotated
from pydantic import AfterValidator, BaseModel, Field
from eagleray_methods.simclr import SimCLR

class Mode(Enum):
    MILD = "mild"
    WILD = "wild"

class Part(BaseModel, frozen=True):
    share: Annotated[float, AfterValidator(lambda v: v / 10)] = 0.5

class Percent(SimCLR):
    """SimCLR with a share in percent."""

    class Config(SimCLR.Config, frozen=True):
        percent: Annotated[float, AfterValidator(lambda v: v / 100), Field(ge=0)] = 50
        mode: Mode = Mode.MILD
        place: Path | None = None
        part: Part = Part()
        pair: tuple[int, int] = (1, 2)
'''


@pytest.fixture
def method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    lab = f"lab_{tmp_path.name}"
    (tmp_path / lab).mkdir()
    (tmp_path / lab / "__init__.py").touch()
    (tmp_path / lab / "percent.py").write_text(PERCENT)
    monkeypatch.syspath_prepend(tmp_path)
    return f"method={lab}.percent"


def recorded(run: Run) -> dict[str, Any]:
    """Its settings, as they are written to a file and come back."""
    return yaml.safe_load(yaml.safe_dump(run.file()))


@pytest.mark.parametrize(("typed", "kept"), [(["method.percent=50"], 0.5), ([], 50)])
def test_the_value_in_the_run_file_is_the_one_trained_with(method: str, typed: list[str], kept: float):
    run = load_run(None, [method, "encoder.width=4", "method.mode=wild", "method.part={share: 3}", *typed])
    as_worker = read_run(recorded(run))
    as_trial = changed(as_worker, {"seed": 3, "method.temperature": 0.7})
    for each in (run, as_worker, read_run(recorded(as_worker)), as_trial):
        assert each.file()["method"]["percent"] == kept
        built = build_method(each, INFO)
        config: Any = built.config
        assert (config.percent, config.part.share, config.mode.value, config.pair) == (kept, 0.3, "wild", (1, 2))
        assert isinstance(config, type(built).Config)
        assert isinstance(config.mode, Enum)
        plan = yaml.safe_load(yaml.safe_dump(blueprint(each, built)))
        assert plan["method"]["percent"] == kept
        assert from_blueprint(plan).config == config
    assert as_worker == run
    assert as_trial.file()["method"]["temperature"] == 0.7


def test_a_value_that_is_given_beside_recorded_ones_is_validated_as_a_typed_one(method: str):
    run = read_run(recorded(load_run(None, [method, "method.percent=50"])))
    assert changed(run, {"method.percent": 20, "seed": 1}).file()["method"]["percent"] == 0.2
    with pytest.raises(ConfigError, match=r"method\.percent=-1 .*>= 0"):
        changed(run, {"method.percent": -1})
    with pytest.raises(ConfigError, match=r"unknown key method\.percnt; did you mean method\.percent\?"):
        changed(run, {"method.percnt": 1})
    again = changed(run, {"method": "simclr", "method.temperature": 0.3})
    assert (again.method.name, again.file()["method"]["temperature"]) == ("simclr", 0.3)
    file = recorded(run)
    file["method"]["percent"] = "many"
    with pytest.raises(ConfigError, match=r"method\.percent=many is not a number"):
        read_run(file)


def test_the_trials_of_a_sweep_train_with_what_was_typed(method: str):
    vary = {"method.percent": [10, 20], "method.temperature": [0.1]}
    sweep = validated(Sweep, {"name": "s", "run": {"method": method.partition("=")[2]}, "vary": vary, "search": "grid"})
    runs = [read_run(recorded(point.run(sweep))) for point in points(sweep)]
    assert [run.file()["method"]["percent"] for run in runs] == [0.1, 0.2]


class Shouted(BaseModel, extra="forbid"):
    word: Annotated[str, BeforeValidator(lambda v: f"{v}!")] = "hm"
    both: Annotated[list[Annotated[int, AfterValidator(lambda v: v + 1)]], Field(max_length=2)] = []
    half: float = 1.0

    @field_validator("half")
    @classmethod
    def _half(cls, value: float) -> float:
        return value / 2

    @model_validator(mode="after")
    def _short(self) -> "Shouted":
        if len(self.word) > 9:
            raise ValueError("too long a word")
        return self


def test_validators_run_for_what_is_typed_alone():
    values = {"word": "oh", "both": [1, 2], "half": 8}
    assert settings_of(Shouted, values, recorded=()) == Shouted.model_construct(word="oh!", both=[2, 3], half=4.0)
    assert settings_of(Shouted, values) == Shouted.model_construct(word="oh", both=[1, 2], half=8.0)
    mixed = settings_of(Shouted, values, recorded={"word", "both"})
    assert mixed == Shouted.model_construct(word="oh", both=[1, 2], half=4.0)
    for wrong in ({"word": 3}, {"both": [1, 2, 3]}, {"half": "x"}, {"hafl": 1, "half": 2}, {"word": "abcdefghij"}):
        with pytest.raises(ValidationError):
            settings_of(Shouted, wrong)
    assert lost(Shouted(word="oh", both=[1], half=3)) == []


def test_settings_that_a_file_cannot_give_back_are_refused():
    class Size(BaseModel):
        size: Annotated[str, AfterValidator(lambda v: tuple(map(int, v.split("x"))))] = "1x1"

    class Halving(BaseModel):
        value: float = 1

        @model_validator(mode="before")
        @classmethod
        def _half(cls, values: Any) -> Any:
            return {"value": values["value"] / 2}

    assert lost(Size(size="3x3")) != []
    assert lost(Halving(value=2)) == ["value"]
