"""The public names: what `import eagleray` offers, and that Python gets what the command line gets."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from textwrap import dedent
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from hatchling.build import build_wheel
from rich.console import Console
from safetensors.torch import save_file

import eagleray
from eagleray.app import cli
from eagleray.app.directories import resumable_run
from eagleray.app.ready import check_sweep
from eagleray.config import Run, Sweep, validated
from eagleray.contracts.report import Report
from eagleray.runs.record import Record

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "platform/eagleray/__init__.py"
NOWHERE = "http://127.0.0.1:1"  # an address where nothing answers
TINY: dict[str, Any] = {
    "data": {"limit": 64}, "batch_size": 16, "epochs": 2, "encoder": {"width": 4, "depth": 2}, "threads": 1,
    "evaluate": {"linear": {"when": "never"}}, "precision": "fp32",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)


# --- names -----------------------------------------------------------------------------------------------------


def in_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.parametrize("name", eagleray.__all__)
def test_a_public_name_is_found_in_its_home(name: str):
    assert getattr(eagleray, name).__name__ == name
    assert name in dir(eagleray)


def test_type_checkers_read_the_homes_that_python_imports_from():
    (block,) = (node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If))
    told = {
        str(alias.asname): str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == eagleray._HOMES
    assert eagleray.__all__ == sorted(told)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'eagleray' has no attribute 'trian'"):
        _ = eagleray.trian


def test_importing_costs_next_to_nothing():
    code = "import time; t = time.process_time(); import eagleray; print(time.process_time() - t)"
    assert min(float(in_python(code)) for _ in range(3)) < 0.05  # seconds of CPU


@pytest.mark.slow
def test_settings_and_declarations_need_no_torch():
    names = "ConfigError Choice Dataset IntRange Recipe Recipes Run Sweep View load_run load_sweep sweep train"
    code = f"import eagleray, sys; [getattr(eagleray, name) for name in {names.split()}]; print(*sys.modules)"
    assert {"torch", "ray", "mlflow", "pandas", "sklearn", "matplotlib"}.isdisjoint(in_python(code).split())


MINE = """
    'A method of my own.'
    import torch
    from eagleray import Batch, DataInfo, Encoder, LogUniform, Method, Progress, Recipe, Recipes, StepResult, View
    from pydantic import BaseModel
    from typing import Annotated

    class Mine(Method):
        'Two views alike.'

        class Config(BaseModel, frozen=True, extra="forbid"):
            weight: Annotated[float, LogUniform(0.1, 10)] = 2.0

        config: Config
        recipes = Recipes(paper=Recipe(name="adamw", lr=0.01))

        @property
        def views(self) -> tuple[View, ...]:
            return View(flip=0.5), View()

        def forward(self, batch: Batch, progress: Progress) -> StepResult:
            first, second = (self.encoder(view) for view in batch.views)
            return StepResult(self.config.weight * (first - second).square().mean(), [first.detach()])
"""


@pytest.mark.slow
def test_a_method_is_written_with_the_public_names_and_declared_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name = f"lab_{tmp_path.name}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.py").write_text(dedent(MINE))
    monkeypatch.syspath_prepend(tmp_path)
    code = f"""
        import sys; sys.path.insert(0, {str(tmp_path)!r})
        from eagleray import load_run
        print(load_run(None, ["method={name}.mine"]).method.config.weight, "torch" in sys.modules)
    """
    assert in_python(dedent(code)) == "2.0 False\n"
    assert "loss" in eagleray.train({**TINY, "method": f"{name}.mine", "epochs": 1}).metrics


@pytest.mark.slow
def test_pyright_sees_the_types(tmp_path: Path):
    (tmp_path / "pyrightconfig.json").write_text(
        json.dumps({"extraPaths": [str(ROOT / "platform"), str(ROOT / "methods")]})
    )
    names = ("Run", "train", "load_encoder", "Method", "View")
    lines = ["import eagleray", *(f"reveal_type(eagleray.{name})" for name in names), "eagleray.train(3)"]
    (tmp_path / "script.py").write_text("\n".join(lines))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    messages = [each["message"] for each in json.loads(done.stdout)["generalDiagnostics"]]
    revealed = [message.split('" is "', 1)[1].rstrip('"') for message in messages if " is " in message[:60]]
    assert [text.partition("(")[0] for text in revealed] == ["type[Run]", "", "", "type[Method]", "type[View]"]
    assert revealed[1].endswith("-> RunResult")
    assert revealed[2].endswith("-> ExportedEncoder")
    assert any('Argument of type "Literal[3]" cannot be assigned' in message for message in messages)


def test_the_wheel_says_that_it_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    with ZipFile(tmp_path / build_wheel(str(tmp_path))) as wheel:
        names = set(wheel.namelist())
    assert {f"eagleray/sweeps/{file.name}" for file in (ROOT / "sweeps").glob("*.yaml")} <= names
    assert {"eagleray/py.typed", "eagleray_methods/py.typed", "eagleray/__main__.py"} <= names


@pytest.mark.slow
def test_the_module_is_the_command():
    said = [
        subprocess.run([*command, "check", "gone.yaml"], capture_output=True, text=True, timeout=60)
        for command in ([sys.executable, "-m", "eagleray"], [str(Path(sys.executable).with_name("eagleray"))])
    ]
    assert [done.returncode for done in said] == [2, 2]
    assert said[0].stderr == said[1].stderr == "eagleray: there is no file gone.yaml\n"


def numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that do not depend on the load of the machine."""
    return {name: value for name, value in metrics.items() if name != "images_per_second"}


# --- train -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_python_trains_what_the_command_line_trains(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    settings = [f"{section}.{key}={value}" for section in ("data", "encoder", "evaluate")
                for key, value in TINY[section].items()]  # fmt: skip
    settings += [f"{key}={value}" for key, value in TINY.items() if not isinstance(value, dict)]
    monkeypatch.setattr(sys, "argv", ["eagleray", "train", *settings])
    with pytest.raises(SystemExit):
        cli.main()
    (by_command,) = Path("runs/eagleray").iterdir()
    capsys.readouterr()

    result = eagleray.train({**TINY, "tracking": {"experiment": "python"}})
    assert capsys.readouterr() == ("", "")
    (directory,) = Path("runs/python").iterdir()
    assert result.directory == directory
    assert numbers(result.metrics) == numbers(Record.open(by_command).summary)
    assert result.unsent is not None
    assert "not yet completely in MLflow" in result.unsent
    files = [
        sorted(
            re.sub(r"-\w{16}\.pt$", ".pt", str(path.relative_to(each)))
            for path in each.rglob("*")
            if path.name != "sent.json"
        )
        for each in (by_command, directory)
    ]
    assert files[0] == files[1]


def test_a_wrong_setting_is_refused_before_anything_starts():
    with pytest.raises(eagleray.ConfigError, match="unknown key epochz; did you mean epochs"):
        eagleray.train({"epochz": 3})
    with pytest.raises(eagleray.ConfigError, match="batch_size=5000 is larger than the data"):
        eagleray.train(eagleray.load_run(None, ["batch_size=5000"]), "somewhere")
    with pytest.raises(eagleray.ConfigError, match=r"there is no file gone\.yaml"):
        eagleray.sweep("gone.yaml")
    with pytest.raises(eagleray.ConfigError, match="vary is missing"):
        eagleray.sweep({"name": "s"})
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.slow
def test_a_run_is_resumed_only_when_asked(monkeypatch: pytest.MonkeyPatch):
    def interrupted(reports: Iterator[Report], name: str, console: Console, data: str) -> Iterator[Report]:
        for report in reports:
            yield report
            if report.epoch_ended:
                raise KeyboardInterrupt

    whole = eagleray.train(TINY, "whole")
    with monkeypatch.context() as patched:
        patched.setattr("eagleray.app.terminal.followed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            eagleray.train(TINY, "parts", console=Console(file=StringIO()))
    assert Record.open("parts").state == "stopped"
    with pytest.raises(
        eagleray.ConfigError, match="parts has a run already; name another directory, or set resume=True"
    ):
        eagleray.train(TINY, "parts")
    with pytest.raises(eagleray.ConfigError, match="not the directory of a run"):
        eagleray.train(TINY, "gone", resume=True)
    assert numbers(eagleray.train(TINY, "parts", resume=True).metrics) == numbers(whole.metrics)


# --- encoders --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_encoder_is_loaded_from_the_run_its_artifacts_or_its_file():
    result = eagleray.train({**TINY, "epochs": 1}, "run")
    images = torch.randint(0, 256, (5, 1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = torch.random.get_rng_state()
    encoders = [
        eagleray.load_encoder(place)
        for place in (result.directory, "run/artifacts", "run/artifacts/encoder.safetensors")
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.no_grad():
        features = [encoder(encoder.prepare(images)) for encoder in (result.encoder(), *encoders)]
    assert features[0].shape == (5, encoders[0].dim)
    assert all(torch.equal(each, features[0]) for each in features)
    assert not any(module.training for module in encoders[0].modules())


def test_what_is_no_exported_encoder_is_refused():
    with pytest.raises(eagleray.ConfigError, match=r"nowhere has no encoder\.safetensors"):
        eagleray.load_encoder("nowhere")
    save_file({"weight": torch.zeros(1)}, "other.safetensors")
    Path("text.safetensors").write_text("no weights")
    for name in ("other", "text"):
        with pytest.raises(eagleray.ConfigError, match=f"{name}.safetensors is not an encoder that Eagleray exported"):
            eagleray.load_encoder(f"{name}.safetensors")


# --- README ----------------------------------------------------------------------------------------------------


def test_the_sweep_file_of_the_readme_can_start():
    Path("sweep.yaml").write_text((ROOT / "README.md").read_text().split("```yaml\n")[1].split("```")[0])
    check_sweep(eagleray.load_sweep(Path("sweep.yaml"), []))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_example_of_the_readme_runs():
    """In its own process, as a user runs it, with fewer epochs, seeds and images and a smaller network."""
    section = (ROOT / "README.md").read_text().split("\n## From Python\n")[1].split("\n## ")[0]
    code = re.sub(r'"(epochs|seeds)": \d+', r'"\1": 1', section.split("```python\n")[1].split("```")[0])
    small = '"data": {"limit": 64}, "batch_size": 16, "encoder": {"width": 4}, "threads": 1'
    assert code.count('"data": "digits"') == 2
    Path("example.py").write_text(code.replace('"data": "digits"', small))
    Path("photo.png").write_bytes((ROOT / "docs/images/quickstart.png").read_bytes())
    done = subprocess.run([sys.executable, "example.py"], capture_output=True, text=True, timeout=390)
    assert done.returncode == 0, done.stderr[-3000:]
    run, shape, finding, *board = done.stdout.splitlines()
    assert run.startswith("runs/eagleray/")
    assert shape == "torch.Size([1, 192])"  # width 4: four cells of 16 and of 32 channels
    assert "augment.flip" in finding
    assert len(board) == 4  # two points, two floors


def test_a_password_is_in_no_file_and_a_resumed_run_uses_the_one_given_again(tmp_path: Path):
    secret, shared = "http://me:secret@host:5000", "http://host:5000"
    tracking = {"tracking": {"uri": secret}}
    run, sweep = validated(Run, tracking), validated(Sweep, {"name": "s", "vary": {"seed": [0, 1]}, "run": tracking})
    assert (run.tracking.uri, sweep.run) == (secret, tracking)  # MLflow gets it
    assert run.file()["tracking"]["uri"] == shared
    assert sweep.model_dump(mode="json")["run"] == {"tracking": {"uri": shared}}
    Record.create(tmp_path, name="r", experiment="e", params={}, run=run.file(), uri=run.tracking.uri)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]
    assert resumable_run(tmp_path, tracking, secret).tracking.uri == secret
    assert resumable_run(tmp_path, {}, None).tracking.uri == shared


@pytest.mark.slow
def test_a_cluster_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The machine that starts the run, often the head without a GPU, only reads the images."""
    from eagleray.app import launch

    def nothing(*_: Any) -> None:
        """Train elsewhere."""

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(launch, "_train", nothing)
    monkeypatch.setattr(launch, "keep_encoder", nothing)
    run = validated(Run, {**TINY, "device": "cuda"})
    launch.launch_run(run, tmp_path / "r", tmp_path, nothing, address="head:6379")  # type: ignore[arg-type]
    assert Record.open(tmp_path / "r").file()["device"] == "cuda"
