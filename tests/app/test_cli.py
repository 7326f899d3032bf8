"""The command line as a person meets it."""

import csv
import fcntl
import json
import os
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import StringIO
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from command_line import command_line
from eagleray.app import directories
from eagleray.app.live import SweepDisplay
from eagleray.app.terminal import Pace, followed, short
from eagleray.config import Sweep, load_run
from eagleray.config.registry import declared
from eagleray.config.schema import run_schema, sweep_schema
from eagleray.config.search_points import points
from eagleray.contracts.batch import DataInfo, Progress
from eagleray.contracts.report import Report
from eagleray.runs.record import Record
from eagleray.runs.restore import restored
from eagleray_methods.simclr import SimCLR
from method_cases import finished_run, needed

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").rglob("*.yaml"))
NOWHERE = "http://127.0.0.1:1"  # an address where nothing answers
TINY = [
    "data.limit=64", "batch_size=16", "epochs=2", "encoder.width=4", "encoder.depth=2", "threads=1",
    "evaluate.linear.when=never", "precision=fp32",
]  # fmt: skip


@pytest.fixture
def eagleray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in an empty directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)

    return command_line(monkeypatch, capsys)


def written(path: Path) -> list[str]:
    return sorted(str(each.relative_to(path)) for each in path.rglob("*"))


# --- what answers at once --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"], ["train", "--help"], ["methods"], ["encoders"], ["datasets"], ["evaluators"], ["methods", "simclr"],
        ["schema", "run"], ["schema", "sweep"], ["check", str(SWEEPS[0])], ["train", "epochz=3"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_must_answer_at_once_imports_nothing_slow(arguments: list[str]):
    code = (
        f"import sys; sys.argv = ['eagleray', *{arguments!r}]\n"
        "from eagleray.app.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "slow = {'torch', 'ray', 'mlflow', 'pandas', 'matplotlib', 'sklearn', 'scipy', 'timm'} & set(sys.modules)\n"
        "print('slow:', sorted(slow), file=sys.stderr)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "slow: []"
    assert time.monotonic() - began < 20  # about a second, on a machine that has nothing else to do


def test_the_lists_name_all_there_is(eagleray: Any):
    for command, kind in (
        ("methods", "method"),
        ("encoders", "encoder"),
        ("datasets", "data"),
        ("evaluators", "evaluator"),
    ):
        outcome = eagleray(command)
        assert outcome.code == 0
        firsts = {line.split()[0] for line in outcome.out.splitlines() if line.strip()}
        assert set(declared(kind)) <= firsts


def test_one_of_a_list_is_shown_with_its_settings(eagleray: Any):
    outcome = eagleray("datasets", "folder")
    assert re.search(r"data\.root +needed +the folder", outcome.out)
    assert re.search(r"data\.channels +auto", outcome.out)


def test_a_method_is_shown_with_both_recipes_values_and_the_ranges_of_a_sweep(eagleray: Any):
    outcome = eagleray("methods", "simclr")
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert "method.temperature 0.1 0.2 0.05 to 1, by factors how sharply near negatives are pushed away" in lines
    assert "recipe=small: muon, lr 0.005, lr_scaling sqrt, warmup_epochs 0.5" in lines
    assert lines[-1].startswith("recipe=paper: lars, lr 0.3")
    assert "recipe=small: muon" in eagleray("methods", "rotnet").out  # has no setting


# --- schema and check ------------------------------------------------------------------------------------------


@cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    schema = {"run": run_schema, "sweep": sweep_schema}[kind]()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def errors(kind: str, tree: Any) -> list[str]:
    return [error.message for error in validator(kind).iter_errors(tree)]


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with enough colour images for the batches of shipped sweeps, in two classes."""
    folder = tmp_path_factory.mktemp("coloured")
    for kind in "ab":
        (folder / kind).mkdir()
        for number in range(800):
            Image.new("RGB", (32, 32), (number % 256, number // 256, 0)).save(folder / kind / f"{number}.png")
    return folder


@pytest.mark.parametrize("file", SWEEPS, ids=[file.stem for file in SWEEPS])
def test_shipped_sweeps_are_valid(eagleray: Any, file: Path, coloured: Path, tmp_path: Path):
    text, more = file.read_text(), []
    if "encoder: pretrained" in text:
        info = DataInfo(image_size=8, channels=1, samples=100, classes=10)
        more = [f"encoder.run={finished_run(tmp_path / 'trained', info, 'encoder.width=8')}"]
    if "data: {name: folder, root: images" in text:
        more = [f"data.root={coloured}"]
    outcome = eagleray("check", str(file), *more)
    assert (outcome.code, outcome.err) == (0, "")
    assert "is a valid sweep" in outcome.out
    assert errors("sweep", yaml.safe_load(file.read_text())) == []


@pytest.mark.parametrize("file", SWEEPS, ids=[file.stem for file in SWEEPS])
def test_a_shipped_sweep_says_its_question_its_cost_and_its_finding(file: Path):
    comments = "\n".join(line for line in file.read_text().splitlines() if line.startswith("#"))
    assert comments.startswith("# Question: ")
    assert "\n# Cost: " in comments
    assert "\n# Finding: " in comments
    above = "known_" if file.parent.name == "known" else ""
    assert yaml.safe_load(file.read_text())["name"] == f"{above}{file.stem}"


def test_the_quick_start_is_at_least_eight_trials():
    file = next(file for file in SWEEPS if file.stem == "quickstart")
    assert len(points(Sweep.model_validate(yaml.safe_load(file.read_text())))) >= 8


@pytest.mark.parametrize("method", sorted(declared("method")))
def test_resolved_runs_fit_the_schema(method: str):
    assert errors("run", load_run(None, [f"method={method}", *needed(method)]).file()) == []


@pytest.mark.parametrize(
    ("tree", "is_valid"),
    [
        ({}, True),
        ({"method": "byol", "encoder": "resnet18"}, True),
        ({"encoder": "efficientnet_b0"}, True),
        ({"encoder": {"name": "convnext_atto", "stem": "small"}}, True),
        ({"encoder": {"name": "deit3_small_patch16_224", "depth": 2}}, True),
        ({"encoder": {"name": "convnext_atto", "depth": 2}}, False),
        ({"encoder": "efficientnet_b00"}, False),
        ({"method": {"temperature": 0.1}}, True),
        ({"method": "mae", "encoder": {"patch_size": 4}}, True),
        ({"method": {"name": "my_lab.fancy", "anything": 1}}, True),
        ({"data": {"name": "folder", "root": "images", "memory_limit": "1 GiB"}}, True),
        ({"data": {"name": "folder"}}, False),
        ({"method": "simclrr"}, False),
        ({"method": {"name": "byol", "temperature": 0.1}}, False),
        ({"method": {"temperature": -1}}, False),
        ({"epochz": 1}, False),
        ({"augment": {"flip": 2}}, False),
    ],
)
def test_the_schema_knows_right_from_wrong(tree: Any, is_valid: bool):
    assert (errors("run", tree) == []) is is_valid
    assert (errors("sweep", {"name": "s", "run": tree, "vary": {"seed": [0]}}) == []) is is_valid


@pytest.mark.parametrize("vary", [{"seed": 3}, {"optimizer.lr": {"uniform": [1]}}, {"optimizer.lr": "declard"}, {}])
def test_the_schema_knows_what_a_range_is(vary: Any):
    assert errors("sweep", {"name": "s", "vary": vary})


def test_schema_prints_json(eagleray: Any):
    assert json.loads(eagleray("schema", "sweep").out)["properties"].keys() >= {"run", "vary"}


def test_check_distinguishes_runs_and_sweeps(eagleray: Any):
    Path("run.yaml").write_text("method: byol\n")
    assert "is a valid run: byol with convnet on digits" in eagleray("check", "run.yaml").out
    assert eagleray("check", "run.yaml", "method.temperature=1").code == 2


# --- mistakes --------------------------------------------------------------------------------------------------

FILES = {
    "bad.yaml": "epochs: [1\n",
    "list.yaml": "- 1\n",
    "typo.yaml": "method: {name: simclr, temprature: 0.1}\n",
    "sweep.yaml": "name: s\nsearch: grid\nrun: {epochs: 1}\nvary: {batch_size: [64, 5000]}\n",
    "many.yaml": "name: s\nsearch: grid\nvary: {augment.flip: {uniform: [0, 1]}}\n",
    "metric.yaml": "name: s\nsearch: grid\nmetric: knnn\nvary: {augment.flip: [0, 1]}\n",
    "novary.yaml": "name: s\n",
    "short.yaml": "epochs: 1\n",
    "pbt.yaml": "name: s\nsearch: random\ntrials: 4\nscheduler: pbt\nvary: {batch_size: [64, 128]}\n",
}
LONG = "long" * 100  # more than a file system allows
MISTAKES = [
    ("train epochz=3", "unknown key epochz; did you mean epochs?"),
    ("train epochs=ten", "epochs=ten is not a whole number"),
    ("train epochs=0", "epochs=0 is out of range (allowed: >= 1)"),
    ("train method=simclrr", "did you mean simclr?"),
    ("train simclr", "there is no file simclr; settings are written key=value, for example method=simclr"),
    ("train gone.yaml", "there is no file gone.yaml"),
    ("train bad.yaml", "bad.yaml is not YAML"),
    ("train list.yaml", "list.yaml has no settings"),
    ("train typo.yaml", "unknown key method.temprature; did you mean method.temperature?"),
    ("train typo.yaml list.yaml", "name only one run file, not 2"),
    ("train method=mae encoder=resnet18", "use encoder=vit_tiny"),
    ("train encoder.stem=small", "convnet has no such setting"),
    ("train batch_size=5000", "batch_size=5000 is larger than the data: "),
    ("train workers=3", "the nearest that can is 255"),
    ("train method=mae encoder.patch_size=3", "encoder.patch_size=3 does not divide the image size of 8 pixels"),
    ("train method=fixmatch labels.per_class=500", "labels.per_class=500: train has "),
    ("train augment.grayscale=0.5", "these images are grey already"),
    ("train data=folder data.root=nowhere", "does not exist"),
    ("train data=folder data.root=empty", "empty contains no images"),
    ("train method=fixmatch labels.fraction=2", "labels.fraction=2 is out of range"),
    ("train method=fixmatch labels.fraction=0.5 labels.per_class=3", "exclude each other; set one to null"),
    ("train data=mnist", "set data.root to the folder that contains it, or data.download=true"),
    ("train device=cuda", "no GPU here"),
    ("check short.yaml device=cuda", "no GPU here"),
    ("check sweep.yaml vary.batch_size=[64] gpus_per_trial=1", "no GPU here"),
    ("train tracking.uri=some/folder", "is not an MLflow store"),
    ("train --resume", "there is nothing unfinished in runs/eagleray"),
    ("sweep gone.yaml", "there is no file gone.yaml"),
    ("sweep many.yaml", "search=grid needs a list of values"),
    ("sweep novary.yaml", "vary is missing"),
    ("sweep pbt.yaml", "vary.batch_size cannot change during training"),
    ("sweep sweep.yaml", "batch_size=5000 is larger than the data"),
    ("sweep metric.yaml", "metric=knnn: simclr reports no such number; did you mean knn?"),
    ("sweep sweep.yaml --resume", "there is nothing unfinished in runs/s"),
    ("sweep sweep.yaml simclr", "'simclr' is not a setting"),
    ("check gone.yaml", "there is no file gone.yaml"),
    ("schema runs", "there is a schema of run files and one of sweep files"),
    ("evaluate nowhere", "nowhere is not the directory of a run"),
    (f"evaluate {LONG}", "is not the directory of a run (record.json: File name too long)"),
    (f"train {LONG}", "there is no file long"),
    (f"train tracking.experiment={LONG}", "tracking.experiment=long"),
    (f"train data=folder data.root={LONG}", "cannot be read: File name too long"),
    (f"sweep sweep.yaml name={LONG}", "name=long"),
    (f"check {LONG}", "there is no file long"),
    (f"watch {LONG}", "there is no run or sweep long"),
    ("preview --out views.jpg", "use a name that ends in .png"),
    ("methods simclrr", "did you mean simclr?"),
    ("compare s --mode up", "--mode up is neither max nor min"),
    ("compare s tracking.uri=sqlite:///none.db", "There is no MLflow store at"),
    ("sync nowhere", "there is no directory nowhere"),
]


@pytest.mark.parametrize(("line", "said"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_ends_in_one_sentence_and_nothing_started(eagleray: Any, line: str, said: str):
    if "device=cuda" in line and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    for name, text in FILES.items():
        Path(name).write_text(text)
    Path("empty").mkdir()
    before = written(Path.cwd())
    outcome = eagleray(*line.split())
    assert outcome.code == 2
    assert outcome.err.startswith("eagleray: ")
    assert said in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert "Traceback" not in outcome.err + outcome.out
    assert written(Path.cwd()) == before


def test_an_unknown_command_or_option_is_said_without_a_traceback(eagleray: Any):
    for arguments in (["trian"], ["train", "--epochs", "3"], ["ui", "--port", "0"]):
        outcome = eagleray(*arguments)
        assert outcome.code == 2
        assert "Traceback" not in outcome.err


# --- preview ---------------------------------------------------------------------------------------------------


def test_preview_draws_a_run_or_a_sweep(eagleray: Any):
    outcome = eagleray("preview", "augment.only=[]", "--out", "pictures/views.png")
    data, path = outcome.out.splitlines()
    assert data.startswith("data: 1,797 images, 10 classes (0 178, 1 182, 2 177, ")
    assert path == "pictures/views.png"
    with Image.open("pictures/views.png") as grid:
        width, height = grid.size
        cells = [grid.crop((6 + 102 * n, height - 102, 102 + 102 * n, height - 6)).tobytes() for n in range(3)]
    assert len(set(cells)) == 1  # nothing is switched on, so every view is the image itself
    Path("s.yaml").write_text(
        "name: s\nsearch: grid\nvary: {augment.flip: [0, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1]}\n"
    )
    assert eagleray("preview", "s.yaml").out.splitlines() == ["1 more values had no room", "views.png"]
    with Image.open("views.png") as grid:
        assert grid.width == 8 * (width + 6) - 6


def test_previews_of_one_seed_are_equal_and_of_two_are_not(eagleray: Any):
    pictures = []
    for name, seed in (("a.png", 0), ("b.png", 0), ("c.png", 1)):
        eagleray("preview", f"seed={seed}", "--out", name)
        pictures.append(Path(name).read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


# --- train -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_train_says_what_it_does_and_keeps_what_is_needed(eagleray: Any):
    outcome = eagleray("train", *TINY, "tracking.experiment=lab")
    assert outcome.code == 0, outcome.err
    data, first, second, *rest = outcome.out.splitlines()
    assert data.startswith("data: 566 of 1,797 images (data.limit), 10 classes (0 ")
    assert data.endswith("; train 64, validation 143, test 359; stored at 8x8, views of 8x8 pixels, grey")
    assert re.fullmatch(r"simclr on digits  epoch 1/2  loss [\d.]+  knn [\d.]+  [\d,]+ images/s", first)
    assert re.fullmatch(r"simclr on digits  epoch 2/2  loss [\d.]+  knn [\d.]+  [\d,]+ images/s", second)
    assert any(re.fullmatch(r" *test_knn +[\d.]+ +\w.*", line) for line in rest)
    assert "1 run is not yet completely in MLflow at http://127.0.0.1:1:" in outcome.out
    assert outcome.out.rstrip().endswith("eagleray ui")
    (directory,) = Path("runs/lab").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-simclr", directory.name)
    assert f"run  {directory}" in outcome.out
    assert set(written(directory)) >= {
        "artifacts/encoder.safetensors", "artifacts/load_encoder.py", "artifacts/README.md", "artifacts/views.png",
        "run.yaml",
    }  # fmt: skip
    record = Record.open(directory)
    assert record.state == "finished"
    assert f"data: {record.tags['data']}" == data  # MLflow has it as a tag
    assert record.params["method.temperature"] == 0.2
    assert Path(record.tags["checkpoint"]).is_file()
    shown = {line.split()[0]: line.split()[1] for line in rest if len(line.split()) > 1}
    assert shown["knn"] == f"{record.summary['knn']:.3f}"

    again = eagleray("evaluate", str(directory))
    assert again.out.splitlines()[0] == data
    for name, images, interval in (("knn", 143, True), ("test_knn", 359, True), ("rankme", 143, False)):
        found = re.search(rf"^ *{name} +{shown[name]} +{images} +(\d\.\d+) to (\d\.\d+) ", again.out, re.MULTILINE)
        assert bool(found) is interval
        assert found is None or float(found[1]) < float(shown[name]) < float(found[2])
    other = eagleray("evaluate", str(directory), "--protocol", "retrieval", "evaluate.retrieval.queries=9").out
    assert re.search(r"^ *test_precision_at_1 +0\.\d+ ", other, re.MULTILINE)
    assert "knn" not in other
    refused = eagleray("evaluate", str(directory), "--protocol", "accuracy")
    assert refused.code == 2
    assert "accuracy cannot measure this run: simclr has no classifier; only a method that learns from" in refused.err
    classes = eagleray("evaluate", str(directory), "--protocol", "per_class").out
    assert re.search(r"^balanced_accuracy +0\.\d+ +143 +0\.\d+ to 0\.\d+ +accuracy of", classes, re.MULTILINE)
    heads, *lines = classes[classes.index("test_per_class\n") :].splitlines()[1:12]
    assert heads.split() == ["class", "images", "right", "low", "high"]
    rights = [float(line.split()[2]) for line in lines]
    assert rights == sorted(rights)
    assert {line.split()[0] for line in lines} == {*"0123456789"}
    assert re.search(r"^on the test set, \d is taken for \d: \d+ of \d+ images \(\d+%\)$", classes, re.MULTILINE)
    with Image.open(directory / "artifacts/test_confusion.png") as picture:
        assert picture.width > 300
    names = {row["metric"] for row in csv.DictReader((directory / "artifacts/evaluation.csv").read_text().splitlines())}
    assert {"knn", "test_knn", "test_precision_at_1", "worst_class"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simclr", "fixmatch", "mae"])
def test_a_kept_encoder_loads_with_a_few_lines_and_gives_the_same_features(eagleray: Any, method: str):
    small = ["labels.per_class=2"] if method == "fixmatch" else []
    encoder = ["encoder.depth=1", "encoder.dim=16"] if method == "mae" else []
    tiny = [text for text in TINY if method != "mae" or not text.startswith("encoder")]
    assert eagleray("train", f"method={method}", *tiny, *small, *encoder, "epochs=1").code == 0
    (directory,) = Path("runs/eagleray").iterdir()
    encoder = runpy.run_path(str(directory / "artifacts/load_encoder.py"))["load"]()
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    built = restored(load_run(directory / "run.yaml", []), directory)
    with torch.no_grad():
        view = built.loader.evaluation_view(images)
        torch.testing.assert_close(encoder(view), built.method.eval().encode(view), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_lines_that_load_an_encoder_run_by_themselves(eagleray: Any):
    assert eagleray("train", *TINY, "epochs=1").code == 0
    (directory,) = Path("runs/eagleray").iterdir()
    Image.new("RGB", (20, 12), "red").save("red.png")
    script = [sys.executable, str(directory / "artifacts/load_encoder.py"), "red.png"]
    done = subprocess.run(script, capture_output=True, text=True, check=True, timeout=120)
    name, *features = done.stdout.split()
    assert name == "red.png"
    assert len([float(each) for each in features]) == 48  # width 4, doubled once: four cells of 4 and of 8 channels


def interrupt_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C after some epochs."""

    def pressed(reports: Iterator[Report], name: str, console: Console, data: str) -> Iterator[Report]:
        for report in reports:
            yield report
            if report.epoch_ended and report.progress.epoch == epochs:
                raise KeyboardInterrupt

    monkeypatch.setattr("eagleray.app.terminal.followed", pressed)


@pytest.mark.slow
def test_ctrl_c_says_how_to_continue_and_the_resumed_run_ends_as_if_nothing_had_been(
    eagleray: Any, monkeypatch: pytest.MonkeyPatch
):
    settings = [*TINY, "epochs=3"]
    eagleray("train", *settings, "tracking.experiment=whole")
    with monkeypatch.context() as patched:
        interrupt_after(1, patched)
        outcome = eagleray("train", *settings)
    assert outcome.code == 130
    assert "Traceback" not in outcome.err
    hint = outcome.err.strip().rpartition("To continue: ")[2]
    assert hint.startswith("eagleray train data.limit=64 ")
    (directory,) = Path("runs/eagleray").iterdir()
    assert Record.open(directory).state == "stopped"

    resumed = eagleray(*hint.split()[1:])
    assert resumed.code == 0, resumed.err
    assert list(Path("runs/eagleray").iterdir()) == [directory]
    (whole,) = Path("runs/whole").iterdir()
    ends = [{**Record.open(place).summary, "images_per_second": 0} for place in (directory, whole)]
    assert ends[0] == ends[1]  # but for the clock
    assert [row["epoch"] for row in Record.open(directory).metrics()] == [1, 2, 3]
    assert eagleray("train", "--resume").err.startswith("eagleray: there is nothing unfinished in runs/eagleray")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["train", *TINY], ["sweep", str(SWEEPS[0])]], ids=["train", "sweep"])
def test_ctrl_c_before_the_first_record_leaves_nothing(
    eagleray: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
):
    def pressed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("eagleray.runs.assemble.load_data", pressed)
    outcome = eagleray(*arguments)
    assert (outcome.code, outcome.err) == (130, "eagleray: stopped; nothing was recorded yet\n")
    assert not Path("runs").exists()


@pytest.mark.slow
def test_ctrl_c_after_the_end_says_so(eagleray: Any, monkeypatch: pytest.MonkeyPatch):
    def pressed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("eagleray.app.conclude.export_encoder", pressed)
    outcome = eagleray("train", *TINY)
    (directory,) = Path("runs/eagleray").iterdir()
    assert outcome.err.splitlines()[-1] == (
        f"eagleray: stopped; {directory} had finished; `eagleray sync` sends what MLflow lacks"
    )
    assert Record.open(directory).state == "finished"


@pytest.mark.slow
def test_a_path_means_the_same_when_a_run_is_resumed(eagleray: Any, monkeypatch: pytest.MonkeyPatch):
    for number, shade in enumerate((40, 90, 140, 190) * 8):
        place = Path(f"images/{'dark' if shade < 100 else 'light'}/{number}.png")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), shade).save(place)
    settings = ["data=folder", "data.root=images", "data.limit=16", "batch_size=8", "epochs=2", *TINY[3:]]
    with monkeypatch.context() as patched:
        interrupt_after(1, patched)
        assert eagleray("train", *settings).code == 130
    assert eagleray("train", *settings, "--resume").code == 0


@pytest.mark.slow
def test_a_run_is_not_resumed_as_another_one(eagleray: Any, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patched:
        interrupt_after(1, patched)
        eagleray("train", *TINY)
    outcome = eagleray("train", "epochs=7", "--resume")
    assert outcome.code == 2
    assert "was started with epochs=2, and now it is epochs=7" in outcome.err


@pytest.mark.slow
def test_a_run_that_another_process_trains_is_left_alone(eagleray: Any, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patched:
        interrupt_after(1, patched)
        eagleray("train", *TINY)
    (directory,) = Path("runs/eagleray").iterdir()
    with open(directory / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = eagleray("train", *TINY, "--resume")
    assert outcome.code == 2
    assert "another process trains in" in outcome.err
    assert directory.is_dir()


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_run_with_its_place_and_the_next_command(eagleray: Any):
    outcome = eagleray("train", *TINY, "optimizer.lr=1e30", "optimizer.lr_scaling=none", "optimizer.warmup_epochs=0")
    assert outcome.code == 1
    (directory,) = Path("runs/eagleray").iterdir()
    sentence, log, following = outcome.err.splitlines()
    assert re.match(rf"eagleray: {directory.name} failed \(diverged\): the loss is nan at step \d+; ", sentence)
    assert "The step's images are " in sentence
    assert log == f"log: {directory / 'artifacts/error.txt'}"
    assert following == f"next: eagleray train {directory / 'run.yaml'} optimizer.lr=1e+29"
    assert Record.open(directory).state == "failed"
    assert "there is nothing unfinished" in eagleray("train", "--resume").err


@pytest.mark.slow
def test_a_bug_of_a_method_is_told_in_a_few_lines_and_the_run_resumes_when_it_is_put_right(
    eagleray: Any, monkeypatch: pytest.MonkeyPatch
):
    def breaks(self: Any, batch: Any, progress: Any) -> Any:
        return forward(self, batch, progress) if progress.epoch == 0 else {}["missing"]

    forward = SimCLR.forward
    with monkeypatch.context() as patched:
        patched.setattr(SimCLR, "forward", breaks)
        outcome = eagleray("train", *TINY)
    assert outcome.code == 1
    lines = outcome.err.splitlines()
    assert len(lines) == 4
    assert lines[0].endswith("failed (bug): KeyError: 'missing'")
    assert __file__ in lines[1]
    assert Path(lines[2].removeprefix("log: ")).is_file()
    resumed = eagleray(*lines[3].rpartition("then: eagleray ")[2].split())
    assert resumed.code == 0, resumed.err
    (directory,) = Path("runs/eagleray").iterdir()
    assert Record.open(directory).state == "finished"


# --- sweep -----------------------------------------------------------------------------------------------------

SWEEP = (
    "name: s\nquestion: Which?\nsearch: grid\nrun: {epochs: 1}\nvary: {batch_size: [16, 32], augment.flip: [0, 1]}\n"
)


def quick_sweep(sweep: Sweep, directory: Path, *, resume: bool, address: str | None, watch: Any) -> list[Record]:
    """Replace Ray: flips do harm, one trial fails."""
    parent = Record.create(directory, name="s", experiment="s", params={}, run=sweep.model_dump(mode="json"))
    for point in points(sweep):
        run = point.run(sweep)
        record = Record.create(
            directory / "trials" / point.name,
            name=point.name, experiment="s", params=point.params(sweep), run=run.file(), parent=parent, tags=point.tags,
        )  # fmt: skip
        knn = 0.9 - 0.1 * (run.augment.flip or 0)
        record.append(1, {"knn": knn}, 1)
        if point.number == 3:
            record.finish("failed", "no room")
        else:
            record.finish("finished", summary={"knn": knn, **({"test_knn": 0.85} if point.number == 0 else {})})
        watch.trial(point.name, point.varied, record.state, 1, 1, {"knn": knn})
    floor = Record.create(
        directory / "trials" / "raw-pixels", name="raw pixels digits seed0", experiment="s", params={"seed": 0}, run={},
        parent=parent,
        tags={"kind": "floor", "floor": "pixels", "point": "raw pixels digits", "label": "raw pixels"},
    )  # fmt: skip
    floor.finish("finished", summary={"knn": 0.95, "test_knn": 0.94})
    watch.floor("raw pixels digits", [{"knn": 0.95}])
    return parent.children()


@pytest.mark.slow
def test_a_sweep_prints_its_leaderboard_its_finding_and_its_paths(eagleray: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("eagleray.ray_backend.sweep.sweep", quick_sweep)
    Path("s.yaml").write_text(SWEEP)
    outcome = eagleray("sweep", "s.yaml", "run.data.limit=200")
    assert outcome.code == 0, outcome.err
    (directory,) = Path("runs/s").iterdir()
    assert "s: Which? (4 trials)" in outcome.out
    assert "[4/4] 003 batch_size=32 augment.flip=1 seed=0: failed after epoch 1, knn 0.800" in outcome.out
    assert "floor raw pixels digits: knn 0.950" in outcome.out
    board = outcome.out[outcome.out.index("trial") :]
    assert re.search(r"1 +raw pixels +0\.950 +floor", board)
    assert re.search(r"2 +000 +16 +0 +0\.900 +finished", board)
    assert "the best trial (0.900) is 0.050 below raw pixels (0.950)" in outcome.out
    assert "The winner (000) on the test set: test_knn 0.850 (raw pixels 0.940)." in outcome.out
    for name in ("report.md", "heatmap.png"):
        assert str(directory / "artifacts" / name) in outcome.out
        assert (directory / "artifacts" / name).stat().st_size > 100
    assert "- 003 failed: no room" in (directory / "artifacts/report.md").read_text()
    assert (directory / "artifacts/leaderboard.csv").read_text().count("\n") == 6
    assert (directory / "trials/000/artifacts/views.png").is_file()
    parent = Record.open(directory)
    assert (parent.state, parent.summary["knn"]) == ("finished", 0.9)
    assert parent.tags["finding"].startswith("augment.flip")


@pytest.mark.slow
def test_a_stopped_sweep_says_how_to_continue(eagleray: Any, monkeypatch: pytest.MonkeyPatch):
    def stopped(*arguments: Any, **settings: Any) -> list[Record]:
        quick_sweep(*arguments, **settings)
        raise KeyboardInterrupt

    Path("s.yaml").write_text(SWEEP)
    with monkeypatch.context() as patched:
        patched.setattr("eagleray.ray_backend.sweep.sweep", stopped)
        outcome = eagleray("sweep", "s.yaml", "seeds=2")
    assert outcome.code == 130
    assert outcome.err.strip().endswith("To continue: eagleray sweep s.yaml seeds=2 --resume")
    (directory,) = Path("runs/s").iterdir()
    assert Record.open(directory).state == "stopped"

    monkeypatch.setattr("eagleray.ray_backend.sweep.sweep", quick_sweep)
    other = eagleray("sweep", "s.yaml", "seeds=3", "--resume")
    assert other.code == 2
    assert "was started with seeds=2, and now it is seeds=3" in other.err
    assert eagleray("sweep", "s.yaml", "seeds=2", "--resume").code == 0
    assert list(Path("runs/s").iterdir()) == [directory]
    assert Record.open(directory).state == "finished"


@pytest.mark.slow
def test_a_real_sweep_can_be_compared_in_mlflow(eagleray: Any, monkeypatch: pytest.MonkeyPatch):
    """Everything together: Ray, the loop, the report, a new MLflow store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///store/mlflow.db")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    Path("s.yaml").write_text("name: s\nsearch: grid\nvary: {augment.flip: [0, 1]}\n")
    outcome = eagleray("sweep", "s.yaml", *TINY, "floor=[]")
    assert outcome.code == 0, outcome.err
    assert "not yet completely in MLflow" not in outcome.out
    (directory,) = Path("runs/s").iterdir()
    for trial in directory.glob("trials/*"):
        assert (trial / "artifacts/encoder.safetensors").is_file()
    compared = eagleray("compare", "s")
    assert compared.code == 0, compared.err
    assert len(re.findall(r"^\d +00[01] +[01] +0\.\d+ +finished", compared.out, re.MULTILINE)) == 2
    assert re.search(r"http://127\.0\.0\.1:5000/#/experiments/\d+/runs\?workflowType=machine_learning&", compared.out)
    assert "sync" not in compared.out
    assert "0 runs sent, 3 were complete already, 0 could not be sent" in eagleray("sync").out
    wrong = eagleray("compare", "s", "--metric", "knnn")
    assert (wrong.code, "no trial measured knnn; they measured " in wrong.err) == (2, True)
    loss = eagleray("compare", "s", "--metric", "loss", "--mode", "min")
    reason = "--metric loss is no goal: losses of different settings have different scales; choose by one of knn, "
    assert (loss.code, reason in loss.err) == (2, True)


# --- what a terminal shows -------------------------------------------------------------------------------------


def terminal(height: int = 20) -> Console:
    return Console(file=StringIO(), force_terminal=True, width=100, height=height)


def shown_on(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def test_a_run_has_a_bar_in_a_terminal():
    console = terminal()
    reports = [
        Report(Progress(5, 10, 0, 1), {"loss": 2.0}, 1234.0),
        Report(Progress(10, 10, 1, 1), {"loss": 1.0, "knn": 0.9}, 1234.0, epoch_ended=True),
    ]
    assert list(followed(iter(reports), "simclr on digits", console)) == reports
    last = shown_on(console).replace("\r", "\n").strip().splitlines()[-1]
    assert re.search(r"simclr on digits ━+ epoch 1/1  loss 1\.000  knn 0\.900  1,234 images/s", last)


def test_time_left_is_estimated_from_the_progress_since_the_start(monkeypatch: pytest.MonkeyPatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("eagleray.app.terminal.time.monotonic", lambda: clock.now)
    pace = Pace()
    assert pace.left(0.5) == ""  # a resumed run: its first half cost nothing today
    clock.now = 110.0
    assert pace.left(0.6) == "0:40"
    clock.now = 4110.0
    assert pace.left(0.75) == "1:06:50"


def drawn(display: SweepDisplay) -> list[str]:
    with display.console.capture() as captured:
        display.console.print(display.table())
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", captured.get()).splitlines()


@pytest.mark.parametrize(("mode", "best"), [("max", ["029", "028", "027", "026", "025"]),
                                            ("min", ["010", "011", "012", "013", "014"])])  # fmt: skip
def test_a_live_table_of_many_trials_shows_the_running_and_the_best(mode: str, best: list[str]):
    display = SweepDisplay("s: Which?", "knn", 100, terminal(height=20), mode)
    params = {"augment.flip": 0.5, "seed": 0}
    for number in range(90):
        display.trial(f"{number:03d}", params, "waiting", 0, 5, {})
    for number in range(10, 30):
        display.trial(f"{number:03d}", params, "finished", 5, 5, {"knn": number / 100})
    display.trial("007", params, "running", 2, 5, {"knn": 0.8123})
    display.trial("050", params, "failed", 0, 5, {})
    display.floor("raw pixels", [{"knn": 0.95}, {"knn": 0.93}])
    head, *lines = drawn(display)
    assert head.split() == ["trial", "flip", "seed", "epoch", "knn", "state"]
    assert re.match(r" *007 +0\.5 +0 +2/5 +0\.812 +running", lines[0])
    assert [line.split()[0] for line in lines[1:6]] == best
    wanted = (
        r"1 failed, 20 finished, 1 running, 78 waiting, raw pixels 0\.940 ± [\d.]+, 84 more trials not shown, 0:0\d"
    )
    assert re.fullmatch(wanted, "".join(lines[6:]))  # two lines


def test_a_live_table_shows_all_trials_where_there_is_room():
    display = SweepDisplay("s: Which?", "knn", 3, terminal(height=20))
    display.trial("000", {"x": 1}, "finished", 5, 5, {"knn": 0.5})
    display.trial("001", {"x": 2}, "running", 0, 5, {})
    _, *lines, summary = drawn(display)
    assert [line.split()[0] for line in lines] == ["000", "001"]
    assert re.fullmatch(r"1 finished, 1 running, 1 waiting, 0:0\d", summary)


@pytest.mark.parametrize("width", [80, 60, 40])
def test_a_live_table_has_one_line_a_trial_no_wider_than_the_terminal(width: int):
    console = Console(file=StringIO(), force_terminal=True, width=width, height=24)
    display = SweepDisplay("s", "labelled_accuracy", 40, console)
    for number in range(40):
        params = {f"method.some_long_setting_{key}": "a value that is rather long" for key in range(12)}
        state = "running" if number % 2 else "collapsed"
        display.trial(f"{number:03d}-mae_mask_0_5_epochs_5-seed0", params, state, 3, 1000, {"labelled_accuracy": 0.5})
    display.floor("random init convnet digits", [{"labelled_accuracy": 0.5}])
    lines = drawn(display)
    assert max(map(len, lines)) <= width
    assert len(lines) < 24
    assert sum(line.startswith("0") for line in lines) == 17  # the names are cut, not wrapped
    assert all(line.split()[-1] in ("running", "collapsed") for line in lines[1:18])
    assert "more settings not shown" in " ".join(lines[18:])


def test_a_live_table_is_drawn_while_a_sweep_runs_and_gone_afterwards():
    console = terminal()
    with SweepDisplay("s: Which?", "knn", 1, console) as display:
        display.trial("000", {"augment.flip": 0.5}, "running", 2, 5, {"knn": 0.8123})
        display._live.refresh()
    assert "s: Which? (1 trials)" in shown_on(console)
    assert re.search(r"000 +0\.5 +2/5 +0\.812 +running", shown_on(console))
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue().rstrip().endswith("\x1b[2K")  # the table's lines are erased


def test_a_live_table_says_how_long_it_will_take(monkeypatch: pytest.MonkeyPatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("eagleray.app.terminal.time.monotonic", lambda: clock.now)
    display = SweepDisplay("s", "knn", 4, terminal())
    display.trial("000", {}, "finished", 5, 5, {"knn": 0.8})  # of an earlier start: it cost nothing today
    display.trial("001", {}, "running", 0, 5, {})
    assert display._left() == []
    clock.now = 130.0
    display.trial("001", {}, "running", 3, 5, {"knn": 0.5})
    assert display._left() == ["about 2:00 of training left"]  # 0.6 trials in 30 seconds; 2.4 are left
    for label in ("001", "002", "003"):
        display.trial(label, {}, "finished", 5, 5, {"knn": 0.5})
    assert display._left() == []


def test_without_a_terminal_each_event_of_a_trial_is_a_line():
    console = Console(file=StringIO(), width=200)
    with SweepDisplay("s", "knn", 2, console) as display:
        for state in ("waiting", "running", "finished", "finished"):
            ended = state == "finished"
            display.trial("000", {"x": "1+2"}, state, 3 * ended, 3, {"knn": 0.5} if ended else {})
    assert re.sub(r", about [\d:]+ of training left", "", shown_on(console)).splitlines() == [
        "s (2 trials)",
        "[0/2] 000 x=1+2: started",
        "[1/2] 000 x=1+2: finished after epoch 3, knn 0.500",
    ]


def test_the_work_after_the_trials_has_a_bar_and_in_a_log_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch):
    """300 trials ended in a minute of silence."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("eagleray.app.terminal.time.monotonic", lambda: clock.now)
    live, log = SweepDisplay("s", "knn", 1, terminal()), Console(file=StringIO(), width=200)
    with SweepDisplay("s", "knn", 1, log) as display:
        for done in range(1, 301):
            clock.now += 0.125
            for each in (live, display):
                each.work("parts of the conclusion", done, 300)
            if done == 150:
                assert drawn(live)[-1].strip().startswith("━━━━━━━━━━")
                assert drawn(live)[-1].endswith(" 150 of 300 parts of the conclusion")
    assert "parts of the conclusion" not in "".join(drawn(live)), "it is done"
    lines = [f"{done} of 300 parts of the conclusion" for done in (80, 160, 240, 300)]
    assert shown_on(log).splitlines()[1:] == lines


def test_in_a_log_a_long_trial_has_a_line_a_minute(monkeypatch: pytest.MonkeyPatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("eagleray.app.terminal.time.monotonic", lambda: clock.now)
    console = Console(file=StringIO(), width=200)
    with SweepDisplay("s", "knn", 1, console) as display:
        display.trial("000", {"x": 1}, "running", 0, 9, {})
        for epoch in range(1, 7):
            clock.now += 25
            display.trial("000", {"x": 1}, "running", epoch, 9, {"knn": epoch / 10})
    assert shown_on(console).splitlines()[2:] == [
        "[0/1] 000 x=1: epoch 3/9, knn 0.300",
        "[0/1] 000 x=1: epoch 6/9, knn 0.600",
    ]


def test_keys_are_shortened_if_that_keeps_them_unique():
    assert short(["augment.flip", "method.momentum", "optimizer.momentum"]) == [
        "flip",
        "method.momentum",
        "optimizer.momentum",
    ]


def test_runs_that_start_together_get_directories_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each looks for a free name before any other has created its own."""
    monkeypatch.setattr(directories.time, "strftime", lambda _: "20250101-120000")
    together, create = Barrier(4), Path.mkdir

    def late(path: Path, *options: Any, **named: Any) -> None:
        if path.name == "20250101-120000-simclr":
            together.wait(10)
        create(path, *options, **named)

    monkeypatch.setattr(Path, "mkdir", late)
    with ThreadPoolExecutor(4) as starts:
        names = [starts.submit(directories.new_directory, tmp_path / "runs", "simclr") for _ in range(4)]
    numbers = ("", "-2", "-3", "-4")
    assert sorted(name.result().name for name in names) == [f"20250101-120000-simclr{number}" for number in numbers]
