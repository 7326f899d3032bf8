"""No password or token that somebody gives to a command is printed or kept.

A canary stands in every place where there may be one; afterwards everything is searched for it.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from command_line import command_line

CANARY = "s3cr3t-canary"
HTTP, DATABASE = f"http://me:{CANARY}@127.0.0.1:1/{{}}", f"postgresql://me:{CANARY}/x@127.0.0.1:1/x?password={CANARY}"
HOOK = f"http://127.0.0.1:1/hook/{CANARY}?token={CANARY}"
TINY = ["data.limit=64", "batch_size=16", "epochs=1", "encoder.width=4", "threads=1", "evaluate.linear.when=never"]
SWEEP = f"""
name: s
run:
  tracking: {{uri: "{DATABASE}"}}
  data: {{name: digits, limit: 64}}
  batch_size: 16
  epochs: 1
  encoder: {{width: 4}}
  evaluate: {{linear: {{when: never}}}}
vary: {{augment.flip: [0, 0.5]}}
floor: [pixels]
notify: "{HOOK}"
"""


def found_in(folder: Path) -> list[str]:
    """Return the files that hold the canary."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [str(path.relative_to(folder)) for path in files if CANARY.encode() in path.read_bytes()]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, HTTP.format(name))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        f"train tracking.uri=ftp://me:{CANARY}@host",
        f"train tracking.uri=me:{CANARY}@host:5000",
        f"train tracking.uri=ftp://host?password={CANARY}",
        f"train tracking.uri={DATABASE} tracking.experiment=///",
        f"train tracking.uri={DATABASE} epochs=none",
        f"train tracking.uri={DATABASE} notify=https:///{CANARY}",
        f"train tracking.url={DATABASE}",
        f"train trackng.uri={DATABASE}",
        f"train tracking.uri= {DATABASE}",
        f"train --uri={DATABASE}",
        f"train data=folder data.root={HTTP}",
        f"train encoder=pretrained encoder.run={HTTP}",
        f"train tracking.runs=s3://me:{CANARY}@lab/runs",
        f"train tracking.runs=s3://lab/runs?token={CANARY}",
        f"train data=folder data.root=gs://{CANARY}@lab/images",
        f"runs ls s3://me:{CANARY}@lab/runs",
        "train wrong.yaml",
        "check wrong.yaml",
        "sweep wrong_sweep.yaml",
        "check wrong_sweep.yaml",
        f"sync . tracking.uri=ftp://me:{CANARY}@host",
        f"ui tracking.uri=ftp://me:{CANARY}@host",
        f"ui tracking.uri={HTTP}",
        f"compare x tracking.uri={HTTP}",
        "compare x",
    ],
)
def test_no_config_error_repeats_a_secret(
    words: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    Path("wrong.yaml").write_text(f"tracking: {{uri: '{DATABASE}', experiment: ['{CANARY[:3]}'], url: 1}}\nepochs: x\n")
    Path("wrong_sweep.yaml").write_text(SWEEP.replace("augment.flip: [0, 0.5]", f"tracking.uri: ['{DATABASE}', b]"))
    ended = command_line(monkeypatch, capsys)(*words.split(" "))
    assert ended.code == 2, ended.err
    assert CANARY not in ended.out + ended.err


@pytest.mark.slow
def test_a_run_keeps_no_secret(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    said = ""

    def typed(*words: str) -> None:
        nonlocal said
        ended = command_line(monkeypatch, capsys)(*words)
        said += ended.out + ended.err

    typed("train", *TINY, f"data.cache={here}/cache", f"tracking.uri={DATABASE}", f"notify={HOOK}")
    assert "run is not yet completely in MLflow at postgresql://127.0.0.1:1/x" in said
    (directory,) = Path("runs/eagleray").iterdir()
    typed("export", str(directory), "--out", "exported")
    typed("compare", str(directory), "--csv", "all.csv")
    typed("sync", "runs")
    typed("sync", "runs", "tracking.uri=sqlite:///mlflow.db")
    assert said.count("1 could not be sent") == 1
    assert said.count("1 runs sent") == 1
    assert CANARY not in said
    assert all(map(os.path.exists, ("exported/README.md", "all.csv", "mlflow.db")))
    assert found_in(here) == []


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_sweep_keeps_no_secret_not_even_in_the_files_of_ray(here: Path):
    Path("s.yaml").write_text(SWEEP)
    with tempfile.TemporaryDirectory(prefix="e", dir="/tmp", ignore_cleanup_errors=True) as short:  # for Ray's sockets
        command = [
            sys.executable,
            "-m",
            "eagleray",
            "sweep",
            "s.yaml",
            f"run.tracking.uri={DATABASE}",
            f"notify={HOOK}",
        ]
        own = {**os.environ, "RAY_TMPDIR": short, "XDG_CACHE_HOME": str(here / "cache")}
        done = subprocess.run(command, capture_output=True, text=True, env=own, timeout=390)
        said = done.stdout + done.stderr
        assert list(Path(short).glob("ray/session_*/logs/raylet.out"))
        assert found_in(Path(short)) == []
    assert "runs are not yet completely in MLflow at postgresql://127.0.0.1:1/x" in said
    assert CANARY not in said
    Path("s.yaml").unlink()
    assert found_in(here) == []
