"""Ordinary Python in a file of one's own works from run file to built method, or the true reason is said."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eagleray.app.directories import resumable_run
from eagleray.config import Run, read_run, validated
from eagleray.config.plugin_files import HERE
from eagleray.runs.record import Record

# Every file is `{head}`, then a class Fancy(Method) with `{config}` and `{body}`.
FILE = '''"""A method of a user's own."""
{head}
from typing import Annotated, ClassVar

import torch
from pydantic import AfterValidator, BaseModel, Field, field_validator
from torch import Tensor, nn

from eagleray.augment import View
from eagleray.contracts.batch import StepResult
from eagleray.contracts.method import Method
from eagleray.contracts.ranges import Choice, Uniform
from eagleray.contracts.recipe import Recipe, Recipes
{top}

class Fancy({base}):
    """One sentence."""

{body}
'''
BODY = """    recipes = Recipes(paper=Recipe())

    @property
    def views(self):
        return (View(),)

    def forward(self, batch, progress):
        return StepResult(self.encoder(batch.views[0]).sum(), [])
"""
STRENGTH = """    class Config(BaseModel, frozen=True, extra="forbid"):
        strength: {kind} = {default}

    config: Config
"""


def file(
    kind: str = "float", default: str = "0.5", *, top: str = "", body: str = BODY, base: str = "Method", head: str = ""
) -> str:
    config = STRENGTH.format(kind=kind, default=default) if kind else ""
    return FILE.format(head=head, top=top, base=base, body=config + body)


SHARED = """
import torch
from enum import Enum
from pydantic import BaseModel
from eagleray.contracts.method import Method as Base

LOW = 0.25
Mode = Enum("Mode", {"mild": "mild", "wild": "wild"})

class Shared(BaseModel, frozen=True, extra="forbid"):
    strength: float = LOW

class Heavy(BaseModel, frozen=True, extra="forbid", arbitrary_types_allowed=True):
    strength: torch.Tensor | None = None

class Clever(Base):
    needs = frozenset({"tokens"})

    def helped(self):
        return torch.ones(1)
"""
ONE_OF_TWO = "class Plain(Method):\n" + BODY.replace("Recipe()", "Recipe(lr=0.3)")

# name -> (file, settings, what config.strength then is), or what the error says
CASES: dict[str, tuple[str, list[str], object] | tuple[str, str]] = {
    "a constant in a range": (
        file("Annotated[float, Uniform(0, LARGEST), Field(le=LARGEST)]", "LARGEST / 2", top="LARGEST = 2 * 4.0"),
        ["method.strength=8"],
        8.0,
    ),
    "a dict shared by two fields": (
        file("Annotated[float, Field(**POSITIVE)]", top="POSITIVE = dict(gt=0)\nPOSITIVE['lt'] = 3"),
        ["method.strength=2"],
        2.0,
    ),
    "an enum": (
        file(
            "Mode",
            "Mode.mild",
            top="class Mode(StrEnum):\n    mild = 'mild'\n    wild = 'wild'",
            head="from enum import StrEnum",
        ),
        ["method.strength=wild"],
        "wild",
    ),
    "a type alias": (file("Share", top="Share = Annotated[float, Field(ge=0, le=1)]"), ["method.strength=1"], 1.0),
    "torch as a class variable": (file(body="    activation = nn.ReLU\n" + BODY), [], 0.5),
    "a tensor as the type of a class variable": (
        file(body="    bank: Tensor\n    mean: ClassVar[Tensor | None] = None\n" + BODY),
        [],
        0.5,
    ),
    "a Config in the author's own module": (
        file("", top="from .shared import Shared", body="    Config = Shared\n" + BODY),
        ["method.strength=0.3"],
        0.3,
    ),
    "a Config built on one in the author's own module": (
        file(
            "",
            top="from LAB import shared",
            body="    class Config(shared.Shared, frozen=True):\n        mode: shared.Mode = shared.Mode.mild\n" + BODY,
        ),
        ["method.mode=wild"],
        0.25,
    ),
    "numpy": (file("float", "float(np.sqrt(0.25))", head="import numpy as np"), [], 0.5),
    "a subclass of SimCLR": (
        file(
            "", top="from eagleray_methods.simclr import SimCLR", base="SimCLR", body="    recipes = SimCLR.recipes\n"
        ),
        ["method.temperature=0.7"],
        None,
    ),
    "a subclass of SimCLR with a setting more": (
        file(
            "",
            top="import eagleray_methods.simclr as theirs",
            base="theirs.SimCLR",
            body="    class Config(theirs.SimCLR.Config, frozen=True):\n        strength: float = 2\n",
        ),
        ["method.strength=3"],
        3.0,
    ),
    "an aliased contract": (file(base="Base", top="from eagleray.contracts.method import Method as Base"), [], 0.5),
    "a base class of the author's own": (
        file(base="Clever", top="from LAB.shared import Clever"),
        ["encoder.dim=16", "encoder.depth=1"],
        0.5,
    ),
    "an abstract class": (file(base="Method, ABC", head="from abc import ABC"), [], 0.5),
    "two classes, one on top of the other": (file(top=ONE_OF_TWO + "\n", base="Plain", body=""), [], 0.5),
    "a validator that uses torch": (
        file(
            "Annotated[float, AfterValidator(rounded)]",
            top="def rounded(v: float | Tensor) -> float:\n    return float(torch.tensor(v).round())",
        ),
        ["method.strength=1.75"],
        2.0,
    ),
    "a validator in the Config": (
        file(
            "float",
            "0.5\n        _half = field_validator('strength')(lambda v: v / 2)",
        ),
        ["method.strength=8"],
        4.0,
    ),
    "annotations of the future": (
        file("Share", top="Share = float", head="from __future__ import annotations"),
        [],
        0.5,
    ),
    "two methods in one file": (file(top=ONE_OF_TWO), "must define exactly one Method, and defines 2: Plain, Fancy"),
    "a Config of torch types": (
        file("Tensor | None", "None"),
        "the declaration uses 'Tensor' of torch, which is not imported to read a declaration",
    ),
    "a Config of torch types in the author's own module": (
        file("", top="from LAB.shared import Heavy", body="    Config = Heavy\n" + BODY),
        "the declaration uses 'torch' of torch, which is not",
    ),
    "a base class of another library": (
        file(base="Module", top="from sklearn.base import BaseEstimator as Module"),
        "defines 0; Fancy inherits from 'Module' of sklearn.base, which is not imported to read a declaration",
    ),
    "a name that nothing defines": (
        file("float", "HALF"),
        "the declaration uses 'HALF', which fancy.py does not define",
    ),
    "a recipe of torch": (
        file(body=BODY.replace("Recipe()", "Recipe(lr=float(torch.tensor(0.1)))")),
        "the declaration uses 'torch' of torch, which",
    ),
}

CHECK = """
import json, sys
from eagleray.config import load_run, read_run
from eagleray.contracts.errors import ConfigError
runs, said = {}, {}
for name, settings in json.loads(sys.argv[1]).items():
    assert not {"torch", "sklearn"} & set(sys.modules), name
    try:
        runs[name] = load_run(None, [f"method={name}.fancy", *settings])
    except ConfigError as error:
        said[name] = str(error)
import torch, yaml
from eagleray.contracts.batch import Batch, DataInfo, Progress
from eagleray.runs.assemble import blueprint, build_method, from_blueprint
info = DataInfo(image_size=8, channels=3, samples=8, classes=2, batch_size=4)
for name, run in runs.items():
    for each in (run, read_run(yaml.safe_load(yaml.safe_dump(run.file())))):
        method = build_method(each, info)
        assert type(method.config) is type(method).Config
        assert method.config.model_dump(mode="json") == run.method.config.model_dump(mode="json")
        assert from_blueprint(blueprint(each, method)).config == method.config
    views = [torch.randn(4, 3, 8, 8)] * len(method.views)
    method(Batch(views, torch.arange(4)), Progress(0, 1, 0, 1)).loss.backward()
    said[name] = run.file()["method"].get("strength")
print(json.dumps(said))
"""


def settings(expected: list[Any]) -> list[str]:
    """What is typed beside the method's name, a small encoder among it."""
    own = expected[0] if len(expected) == 2 else []
    return own if any(each.startswith("encoder") for each in own) else ["encoder.width=4", *own]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What becomes of each file; torch is imported once for all of them."""
    folder = tmp_path_factory.mktemp("labs")
    labs = {name: f"lab{number}" for number, name in enumerate(sorted(CASES, key=lambda name: "uses torch" in name))}
    for name, lab in labs.items():
        (folder / lab).mkdir()
        (folder / lab / "__init__.py").write_text("")
        (folder / lab / "shared.py").write_text(SHARED)
        (folder / lab / "fancy.py").write_text(CASES[name][0].replace("LAB", lab))
    typed = json.dumps({lab: settings(list(CASES[name][1:])) for name, lab in labs.items()})
    done = subprocess.run([sys.executable, "-c", CHECK, typed], cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    return {name: said[lab] for name, lab in labs.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_ordinary_python_works_or_is_refused_for_the_true_reason(name: str, answers: dict[str, Any]):
    _, *expected = CASES[name]
    if len(expected) == 1:
        assert str(expected[0]) in answers[name]
        assert "fancy.py: " in answers[name]
    else:
        assert answers[name] == expected[1]


@pytest.mark.parametrize("is_left", [True, False], ids=["the old folder is left", "it is gone"])
def test_a_job_that_is_sent_again_has_the_same_plugin(is_left: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(HERE, raising=False)
    settings = {"method": "./fancy.py", "data": "digits", "tracking": {"runs": str(tmp_path / "runs")}}
    jobs = [tmp_path / "_ray_pkg_0a1b", tmp_path / "_ray_pkg_9f8e", tmp_path / "laptop"]
    for job in jobs:
        job.mkdir()
        (job / "fancy.py").write_text(file())
    monkeypatch.chdir(jobs[0])
    run = validated(Run, settings)
    Record.create(tmp_path / "run", name="r", experiment="e", params={}, run=run.file())
    if not is_left:
        shutil.rmtree(jobs[0])
    monkeypatch.chdir(jobs[1])
    resumed = resumable_run(tmp_path / "run", settings)
    assert resumed.method.name == str(jobs[1] / "fancy.py")
    monkeypatch.chdir(jobs[2])
    elsewhere = read_run(Record.open(tmp_path / "run").file())
    assert elsewhere.method.name == str(jobs[0 if is_left else 2] / "fancy.py")
