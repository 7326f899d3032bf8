"""What lies in the working directory is not run, unless somebody names it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eagleray.runs.environment import environment

# Imported by what we import, if it is there; none is a dependency of ours, or another is found first.
PLANTED = (
    *(
        "psutil",
        "dill",
        "tabulate",
        "brotli",
        "wandb",
        "colorama",
        "ipywidgets",
        "h5py",
        "IPython",
        "comet_ml",
        "boto3",
    ),
    *("gcsfs", "s3fs", "orjson", "ujson", "simplejson", "setproctitle", "uvloop", "cupy", "numexpr", "bottleneck"),
    *("torch", "numpy", "yaml", "rich", "typing_extensions", "sitecustomize", "usercustomize", "json", "code"),
)
METHOD = '''"""A method of a user's own."""
import torch
from eagleray.augment import View
from eagleray.contracts.batch import StepResult
from eagleray.contracts.method import Method
from eagleray.contracts.recipe import Recipe, Recipes
from pydantic import BaseModel

from my_lab.layers import centred


class Fancy(Method):
    """One sentence."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        """Nothing to set."""

    recipes = Recipes(paper=Recipe())

    @property
    def views(self):
        return (View(),)

    def forward(self, batch, progress):
        z = self.encoder(batch.views[0])
        return StepResult(centred(z).square().mean(), [z.detach()])
'''


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder in which each planted file, if it is run, leaves a mark."""
    for name in PLANTED:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / f'RUN-{name}')!r}, 'w')\n")
    (tmp_path / "r.yaml").write_text("epochs: 1\n")
    package = tmp_path / "my_lab"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "layers.py").write_text("def centred(z):\n    return z - z.mean(0)\n")
    (package / "fancy.py").write_text(METHOD)
    return tmp_path


def run(here: Path, *words: str) -> subprocess.CompletedProcess[str]:
    own = {
        **os.environ,
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path[1:])),
    }
    command = [sys.executable, "-m", "eagleray", *words]
    return subprocess.run(command, cwd=here, env=own, capture_output=True, text=True, timeout=200, check=False)


def marks(here: Path) -> list[str]:
    return sorted(path.name for path in here.glob("RUN-*"))


@pytest.mark.slow
@pytest.mark.parametrize("line", ["check r.yaml", "methods", "schema", "check --full r.yaml"])
def test_planted_files_are_not_run(here: Path, line: str):
    done = run(here, *line.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert marks(here) == []


@pytest.mark.slow
def test_a_named_plugin_is_found_here_by_workers_too_and_nothing_else_is(here: Path):
    small = ["epochs=1", "data.limit=64", "batch_size=32", "evaluate.linear.when=never", "encoder.width=8"]
    done = run(here, "train", "method=my_lab.fancy", "workers=2", f"data.cache={here / 'cache'}", *small)
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: running code of ")]
    told = ", to read what it declares (see `eagleray docs security`)"
    assert notes == [f"note: running code of {here / 'my_lab/fancy.py'}{told}"]
    assert marks(here) == []


@pytest.mark.parametrize("setting", ["core.fsmonitor", "filter.x.clean", "filter.x.process"])
def test_programs_that_a_repository_names_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str):
    """The settings of a repository that somebody else has made come with its files."""
    monkeypatch.chdir(tmp_path)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "x")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "x@y")
    (tmp_path / "file").write_text("1")
    (tmp_path / ".gitattributes").write_text("* filter=x\n")
    for words in ("init -q", "add .", "commit -qm first"):
        subprocess.run(["git", *words.split()], check=True)
    (tmp_path / "file").write_text("2")
    subprocess.run(["git", "config", setting, f"touch {tmp_path / 'RUN-it'}; false"], check=True)
    facts = environment()
    assert facts["commit"]
    assert facts["uncommitted_changes"] is (True if setting == "core.fsmonitor" else None)
    assert marks(tmp_path) == []
    subprocess.run(["git", "status"], check=False, capture_output=True)
    assert marks(tmp_path) == ["RUN-it"]
