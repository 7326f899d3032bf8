"""What files declare is read from their source, is what importing them gives, and is checked against the contract."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from eagleray.config import load_run
from eagleray.config.registry import Declaration, Kind, declared, find
from eagleray.contracts.errors import ConfigError

ALL = [one for kind in get_args(Kind) for one in declared(kind).values()]

FANCY = '''
"""A method of a user's own."""

import torch
from typing import Annotated, ClassVar
from pydantic import BaseModel, Field
from eagleray.contracts.method import Method
from eagleray.contracts.ranges import Uniform
from eagleray.contracts.recipe import Recipe, Recipes


class Fancy(Method):
    """One sentence.

    And more.
    """

    class Config(BaseModel, frozen=True, extra="forbid"):
        strength: Annotated[float, Uniform(0, 2), Field(ge=0, description="how fancy")] = 1.0

    undecided: ClassVar[int]
    recipes = Recipes(paper=Recipe(lr=0.3), small=Recipe(lr=0.1))

    def forward(self, batch, progress):
        return torch.zeros(())
'''
CONFIG = """    class Config(BaseModel, frozen=True, extra="forbid"):
        strength: Annotated[float, Uniform(0, 2), Field(ge=0, description="how fancy")] = 1.0
"""
RECIPES = "    recipes = Recipes(paper=Recipe(lr=0.3), small=Recipe(lr=0.1))\n"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of a user's own, importable under a name that no other test uses."""
    package = tmp_path / f"lab_{tmp_path.name.replace('-', '_')}"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    return package


def read(lab: Path, source: str) -> Declaration:
    (lab / "fancy.py").write_text(source)
    return find("method", f"{lab.name}.fancy")


@pytest.mark.parametrize("one", ALL, ids=[f"{one.kind}-{one.name}" for one in ALL])
def test_a_declaration_is_what_importing_gives(one: Declaration):
    real = one.load()
    assert one.Config.model_json_schema() == real.Config.model_json_schema()
    ours, theirs = (
        re.sub(r" at 0x\w+", "", repr(each.model_fields))  # with the ranges, which schemas leave out
        for each in (one.Config, real.Config)
    )
    assert ours == theirs
    assert one.doc == real.__doc__
    assert one.values
    for name, value in one.values.items():
        assert getattr(real, name) == value


@pytest.mark.parametrize("one", ALL, ids=[f"{one.kind}-{one.name}" for one in ALL])
def test_every_setting_says_what_it_means(one: Declaration):
    assert one.summary.endswith(".")
    assert [key for key, field in one.Config.model_fields.items() if not field.description] == []


@pytest.mark.slow
def test_reading_declarations_imports_nothing_slow():
    code = (
        "import sys; from eagleray.config.registry import declared; "
        "assert len(declared('method')) > 20; [declared(kind) for kind in ('method', 'encoder', 'data')]; "
        "print({'torch', 'timm', 'torchvision', 'sklearn', 'ray', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_dotted_name_reaches_a_file_of_the_users_own(lab: Path):
    one = read(lab, FANCY)
    assert (one.name, one.summary) == (f"{lab.name}.fancy", "One sentence.")
    run = load_run(None, [f"method={one.name}", "method.strength=2"])
    assert (run.method.name, run.optimizer.lr) == (one.name, 0.1)
    assert run.method.declaration.load().__name__ == "Fancy"


def test_a_mistake_in_the_settings_of_a_users_own_method_is_said(lab: Path):
    one = read(lab, FANCY)
    with pytest.raises(ConfigError, match=r"unknown key method\.strenth; did you mean method\.strength\?"):
        load_run(None, [f"method={one.name}", "method.strenth=2"])


def test_a_users_own_method_gets_the_vit_it_needs(lab: Path):
    one = read(lab, FANCY.replace("    undecided: ClassVar[int]", '    needs = frozenset({"tokens"})'))
    assert load_run(None, [f"method={one.name}"]).encoder.name == "vit_tiny"


def test_a_class_may_do_without_settings(lab: Path):
    assert read(lab, FANCY.replace(CONFIG, "")).Config.model_fields == {}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1", "must define exactly one Method, and defines 0"),
        (FANCY + FANCY.replace("class Fancy", "class Fancier"), "and defines 2: Fancy, Fancier"),
        (FANCY.replace("class Fancy(Method):", "class Fancy(Method:"), "line 12: "),
        (FANCY.replace("Recipe(lr=0.3)", "PAPER"), "the declaration uses 'PAPER', which fancy.py does not define"),
        (FANCY.replace("Recipe(lr=0.3)", "torch.tensor(1)"), "the declaration uses 'torch' of torch, which is not"),
        (FANCY.replace("Uniform(0, 2)", "Uniform(2, 0)"), "a range goes from a lower to a higher number"),
        (FANCY.replace(RECIPES, ""), "Fancy declares no recipes"),
    ],
)
def test_a_file_that_declares_nothing_usable_is_named(lab: Path, source: str, said: str):
    with pytest.raises(ConfigError) as caught:
        read(lab, source)
    assert str(caught.value).startswith(str(lab / "fancy.py"))
    assert said in str(caught.value)


MISSPELT = {
    'needs = frozenset({"onyl"})': "needs=onyl is not one of tokens, trained_encoder, labels, only_labels",
    'needs = frozenset({"token"})': "did you mean tokens?",
    'needs = frozenset({"only_label"})': "did you mean only_labels?",
    'needs = "tokens"': "needs=tokens",
    "need_tokens = True": "Fancy declares need_tokens, which nothing reads; did you mean needs?",
    'metric = {"a": "b"}': "did you mean metrics?",
    'metrics = {"a": 3}': "metrics.a=3: must be an instance of Metric",
    "small_setting = {}": "did you mean recipes=Recipes(small_settings=…)?",
    "recipe = Recipe()": "did you mean recipes?",
    "class Confg(BaseModel): ...": "Fancy declares Confg, which nothing reads; did you mean Config?",
    "config = None": None,  # an attribute of the contract, which may have a default
    "BLOCK = 3": None,
    "_need = 3": None,
    "activation = torch.nn.ReLU": None,
}


@pytest.mark.parametrize("line", MISSPELT)
def test_a_misspelt_declaration_is_answered_with_the_nearest_right_name(lab: Path, line: str):
    source = FANCY.replace("    undecided: ClassVar[int]", f"    {line}")
    if said := MISSPELT[line]:
        with pytest.raises(ConfigError) as caught:
            read(lab, source)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    else:
        assert read(lab, source).values["recipes"].small.lr == 0.1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (RECIPES, "    recipes = Recipe(lr=0.3)\n", "recipes must be Recipes(…), not Recipe("),
        ("small=Recipe(lr=0.1)", "smal=Recipe(lr=0.1)", "unknown key smal; did you mean small?"),
        ("lr=0.1", "lr=-0.1", "lr=-0.1 is out of range (allowed: > 0)"),
        ("small=Recipe", 'small_settings={"strenth": 1}, small=Recipe', "no such setting; did you mean strength?"),
        (
            CONFIG,
            "    class Config:\n        strength = 1.0\n",
            "the Config of Fancy is not a pydantic model; write class",
        ),
        (', extra="forbid"', "", "the Config of Fancy would silently ignore misspelt settings; write class"),
        ("strength: Annotated[float", 'strength: Annotated["Flaot"', "'Flaot' is not defined"),
    ],
)
def test_a_declaration_that_does_not_keep_to_the_contract_is_refused(lab: Path, old: str, new: str, said: str):
    assert old in FANCY
    with pytest.raises(ConfigError) as caught:
        read(lab, FANCY.replace(old, new))
    assert said in str(caught.value)


def test_a_name_that_is_not_there_is_answered_with_the_nearest():
    with pytest.raises(
        ConfigError, match=r"there is no encoder 'resnet81'; did you mean resnet18\? \(there are: convnet, "
    ):
        find("encoder", "resnet81")
