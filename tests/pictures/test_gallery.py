"""`eagleray pictures`: PNG files, the page that shows them, what is refused, and MLflow."""

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from command_line import Outcome, command_line
from eagleray.pictures.catalogue import FOLDERS, names, picture
from eagleray.runs.record import Record
from pictures.subjects import digits
from recorded_runs import recorded_run, recorded_sweep

Typed = Callable[..., Outcome]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Typed:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return command_line(monkeypatch, capsys)


def test_every_picture_has_a_caption_a_check_and_a_file():
    for kind in FOLDERS:
        assert names(kind)
        for name in names(kind):
            module = picture(name, kind)
            assert module.__doc__
            assert module.CHECK.startswith("By eye: ")
            assert " Not by eye: " in module.CHECK or " Seconds are " in module.CHECK
            assert callable(module.draw)


def test_help_names_every_picture(typed: Typed):
    said = " ".join(typed("pictures", "--help").out.replace("│", " ").split())
    for kind in FOLDERS:
        assert f"of {kind}s: {', '.join(names(kind))}" in said


@pytest.mark.parametrize(
    ("only", "why"),
    [
        ("neighbors", "--only neighbors: there is no such picture of a run; did you mean neighbours? (there are: "),
        ("map,compute", "--only compute: there is no such picture of a run, which is one of sweeps (there are: "),
        ("zzz", "--only zzz: there is no such picture of a run (there are: attention, made, map, "),
    ],
)
def test_an_unknown_picture_is_refused_with_the_nearest(typed: Typed, tmp_path: Path, only: str, why: str):
    digits(tmp_path / "run")
    outcome = typed("pictures", "run", "--only", only)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"eagleray: {why}")
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "run/artifacts/pictures").exists()


def test_what_has_no_weights_or_is_no_run_is_refused(typed: Typed, tmp_path: Path):
    recorded_run(tmp_path / "run", "data.limit=60")
    outcome = typed("pictures", "run")
    assert outcome.code == 2
    assert "run has no checkpoint, so there are no weights; train it first" in outcome.err
    assert not (tmp_path / "run/artifacts/pictures").exists()
    outcome = typed("pictures", "nowhere")
    assert (outcome.code, "nowhere is not the directory of a run" in outcome.err) == (2, True)


@pytest.mark.slow
def test_pictures_and_the_page_are_artifacts_and_go_to_mlflow(typed: Typed, tmp_path: Path):
    directory = digits(tmp_path / "run")
    record = Record.open(directory)
    folder = record.artifacts / "pictures"
    folder.mkdir(parents=True)
    (folder / "attention.png").write_text("of an older network")
    outcome = typed("pictures", "run", "--only", "neighbours,similarities", "--only", "attention")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines() == [
        "attention       convnet has no attention: this is a picture of ViTs",
        f"neighbours      {directory.relative_to(tmp_path)}/artifacts/pictures/neighbours.png",
        f"similarities    {directory.relative_to(tmp_path)}/artifacts/pictures/similarities.png",
        f"page            {directory.relative_to(tmp_path)}/artifacts/pictures/index.html",
    ]
    assert {path.name for path in folder.iterdir()} == {"neighbours.png", "similarities.png", "index.html"}
    for name in ("neighbours", "similarities"):
        with Image.open(folder / f"{name}.png") as drawn:
            assert min(drawn.size) > 400
    before = (folder / "similarities.png").read_bytes()
    html = (folder / "index.html").read_text()
    shown = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', html)]
    assert shown == [(folder / f"{name}.png").read_bytes() for name in ("neighbours", "similarities")]
    assert "attention: convnet has no attention" in html
    for link in re.findall(r'(?:src|href)="([^"]+)"', html):
        assert link.startswith("data:")
    sent = {path.name: path.read_bytes() for path in tmp_path.glob("mlartifacts/**/pictures/*")}
    assert sent == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert typed("pictures", "run", "--only", "similarities").code == 0
    assert (folder / "similarities.png").read_bytes() == before  # the same weights, the same picture
    assert (folder / "neighbours.png").exists()


@pytest.mark.slow
def test_names_of_others_are_text_on_the_page(typed: Typed, tmp_path: Path):
    _, parent = recorded_sweep(tmp_path / "sweep", question="<script>alert(1)</script> costs $5 or $6?")
    evil = Record.create(
        parent.directory,
        name="s",
        experiment="<b>",
        run=parent.file(),
        params=parent.params,
        tags=parent.tags,
    )
    evil.finish("finished")
    outcome = typed("pictures", "sweep")
    assert outcome.code == 0, outcome.err
    assert "compute         no run of the sweep recorded knn beside its speed" in outcome.out
    html = (tmp_path / "sweep/artifacts/pictures/index.html").read_text()
    assert "Pictures of &lt;b&gt;/sweep" in html
    assert not re.search("<script|<b>", html)


@pytest.mark.slow
def test_a_run_at_an_address_gets_its_pictures_there(bucket: Any, typed: Typed):
    from eagleray.contracts.paths import located
    from eagleray.storage.mirror import mirrored

    with mirrored(Path(located("s3://lab/runs/e/run"))):
        digits(Path(located("s3://lab/runs/e/run")))
    bucket.on("there")
    outcome = typed("pictures", "s3://lab/runs/e/run", "--only", "similarities")
    assert outcome.code == 0, outcome.err
    assert "s3://lab/runs/e/run/artifacts/pictures/similarities.png" in outcome.out
    names = [name for name in bucket.names() if "pictures" in name]
    assert sorted(Path(name).name for name in names) == ["index.html", "similarities.png"]
