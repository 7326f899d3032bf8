"""What is sent to a cluster, what never is, and what is refused before anything is sent."""

import io
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image

from command_line import Outcome, command_line
from eagleray.app import shipping
from eagleray.app.shipping import gather
from eagleray.app.submission import prepared
from eagleray.config import load_run, load_sweep
from eagleray.contracts.errors import ConfigError

CANARY = "canary-7f3a"
KEY = "-----BEGIN " + "OPENSSH PRIVATE KEY-----"
SWEEP = """
name: flips
run: {data: {name: digits, limit: 80}, batch_size: 40, epochs: 1, tracking: {runs: /shared/runs}}
vary: {augment.flip: [0, 0.5]}
search: grid
"""
PLUGIN = '''"""A method."""
from eagleray_methods.simclr import SimCLR
from pydantic import Field


class Fancy(SimCLR):
    """SimCLR by another name."""
'''


def planted(folder: Path) -> dict[str, str]:
    """Write what must not be sent, and return it with the reason to be named."""
    secret = {
        ".env": "secret", "prod.env": "secret", "id_rsa": "secret", "id_ed25519.pub": "secret", "a.pem": "secret",
        "server.key": "secret", "aws_credentials": "secret", "client_secret.json": "secret", "auth_token": "secret",
        "deep/er/credentials.json": "secret", "notes.txt": "private key", ".git/config": "hidden",
        ".aws/credentials": "hidden", "runs/flips/2026/record.json": "runs",
        "elsewhere/flips/2026/trials/000/x.pt": "runs", "elsewhere/flips/2026/record.json": "runs",
        "mlflow.db": "MLflow", "mlflow.db-wal": "MLflow", "mlartifacts/1/x": "MLflow", "basic_auth.db": "MLflow",
        "lab/__pycache__/x.pyc": "cache",
        "env/pyvenv.cfg": "virtual environment", "env/lib/x.py": "virtual environment",
    }  # fmt: skip
    for place in secret:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(f"{KEY}\n{CANARY}" if place == "notes.txt" else CANARY)
    (folder / "big.bin").write_bytes(CANARY.encode() + bytes(shipping.LARGEST))
    (folder.parent / "outside").write_text(CANARY)
    (folder / "link").symlink_to(folder.parent / "outside")
    os.mkfifo(folder / "pipe")
    return {**secret, "big.bin": "over 10 MiB", "link": "link", "pipe": "no regular file"}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an experiment, in which the test runs."""
    folder = tmp_path / "here"
    (folder / "lab").mkdir(parents=True)
    (folder / "lab/__init__.py").touch()
    (folder / "lab/fancy.py").write_text(PLUGIN)
    (folder / "fancy.py").write_text(PLUGIN)
    (folder / "flips.yaml").write_text(SWEEP)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


@pytest.fixture
def dashboard() -> Iterator[tuple[str, list[str]]]:
    """What answers at an address and notes every request."""
    requests: list[str] = []

    class Notes(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.requestline)
            self.send_error(404)

        do_POST = do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Notes) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", requests
        server.shutdown()


@pytest.fixture
def eagleray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    return command_line(monkeypatch, capsys)


def test_secrets_results_and_caches_are_left_out_and_named(lab: Path):
    reasons = planted(lab)
    shipment = gather(lab, {}, {"made.yaml": "a: 1"})
    with zipfile.ZipFile(io.BytesIO(shipment.archive())) as archive:
        assert sorted(archive.namelist()) == ["fancy.py", "flips.yaml", "lab/__init__.py", "lab/fancy.py", "made.yaml"]
        assert not any(CANARY.encode() in archive.read(name) for name in archive.namelist())
        assert archive.read("fancy.py").decode() == PLUGIN
    lines = list(shipment.lines())
    for place, reason in reasons.items():
        line = next(line for line in lines if line.startswith("  left out") and reason in line)
        parts = Path(place).parts
        assert any("/".join(parts[:end]) in line or parts[-2:-1] == ("__pycache__",) for end in range(1, 9)), place
    assert any(line.endswith("lab/fancy.py") and f"{len(PLUGIN)} B" in line for line in lines)
    assert shipment.archive() == gather(lab, {}, {"made.yaml": "a: 1"}).archive(), "sent twice, uploaded once"


def test_a_folder_that_is_too_large_is_refused(lab: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shipping, "MOST", 1000)
    (lab / "table.csv").write_bytes(bytes(2000))
    with pytest.raises(ConfigError, match=r"more than .* MiB to send .*table.csv.*: submit from the folder"):
        gather(lab, {}, {})


def test_a_job_is_the_command_on_the_same_settings_and_our_code(lab: Path, dashboard: tuple[str, list[str]]):
    submission = prepared(Path("flips.yaml"), ["method=lab.fancy", "seeds=2"], dashboard[0], ["--resume"])
    assert submission.command == "python -m eagleray sweep flips.submitted.yaml --address auto --plain --resume"
    files = submission.shipment.files
    (lab / "read.yaml").write_bytes(files["flips.submitted.yaml"])
    assert load_sweep(Path("read.yaml"), []) == load_sweep(Path("flips.yaml"), ["method=lab.fancy", "seeds=2"])
    for ours in ("eagleray/loop.py", "eagleray_methods/simclr.py", "lab/fancy.py", "lab/__init__.py"):
        assert ours in files
    assert not any(name.endswith(".pyc") for name in files)

    run = prepared(None, ["method=./fancy.py", "tracking.runs=/shared/runs"], dashboard[0])
    assert run.command == "python -m eagleray train train.submitted.yaml --address auto --plain"
    assert b"name: ./fancy.py" in run.shipment.files["train.submitted.yaml"]
    assert dashboard[1] == []


def test_a_package_of_another_place_is_sent_whole(lab: Path, dashboard: tuple[str, list[str]], tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch):  # fmt: skip
    (tmp_path / "other/their_lab/parts").mkdir(parents=True)
    for name in ("__init__.py", "parts/__init__.py", "parts/more.py"):
        (tmp_path / "other/their_lab" / name).touch()
    (tmp_path / "other/their_lab/fancy.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path / "other"))
    files = prepared(Path("flips.yaml"), ["method=their_lab.fancy"], dashboard[0]).shipment.files
    assert {name for name in files if name.startswith("their_lab")} == {
        f"their_lab/{name}" for name in ("__init__.py", "fancy.py", "parts/__init__.py", "parts/more.py")
    }


def test_the_server_of_runs_is_passed_on_and_a_file_of_this_machine_is_not(
    lab: Path, dashboard: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
):
    def sent() -> str | None:
        run = prepared(None, ["tracking.runs=/shared/runs"], dashboard[0])
        (lab / "read.yaml").write_bytes(run.shipment.files["train.submitted.yaml"])
        return load_run(Path("read.yaml"), []).tracking.uri

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert sent() == "http://mlflow:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert sent() is None


def test_images_that_are_not_sent_are_named(lab: Path, dashboard: tuple[str, list[str]], tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(40):
            Image.new("L", (8, 8), number).save(tmp_path / "images" / name / f"{number}.png")
    there = ["data=folder", f"data.root={tmp_path}/images", "batch_size=16", "tracking.runs=/shared/runs"]
    notes = prepared(None, there, dashboard[0]).notes
    assert f"data.root={tmp_path}/images lies on this machine: every node must have it at that place too" in notes
    with pytest.raises(ConfigError, match="batch_size=512 is larger than the data"):
        prepared(None, [*there, "batch_size=512"], dashboard[0])
    absent = prepared(None, ["data=folder", "data.root=/nowhere/images", "tracking.runs=/shared/runs"], dashboard[0])
    assert "data.root=/nowhere/images is not on this machine, so the cluster checks it" in absent.notes


REFUSED = {
    "method.temprature=1": "temprature",
    "batch_size=4096": "batch_size=4096 is larger than the data",
    "metric=knm": "knm",
    "budget.until=2020-01-01": "is past",
    "method=mae encoder.patch_size=5": "patch",
    "tracking.runs=runs": "tracking.runs=runs would lie in the job's own folder",
    "tracking.uri=sqlite:///mlflow.db": "tracking.uri=sqlite:///mlflow.db would lie",
    "data=folder data.root=images": "data.root=images is a folder of this machine",
    "data=folder data.root=../images": "../images: the nodes have no folder above",
    "method={here}/fancy.py": "has another place on the nodes: write ./fancy.py",
    "method={above}/fancy.py": "lies outside of",
    "method=./secret_method.py": "is not sent (may be a secret, by its name)",
    "method=./nothing.py": "there is no file",
}


@pytest.mark.parametrize("settings", REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_sent(
    lab: Path, dashboard: tuple[str, list[str]], eagleray: Callable[..., Outcome], settings: str
):
    for name in ("a", "b"):
        (lab / "images" / name).mkdir(parents=True)
        for number in range(60):
            Image.new("L", (8, 8), number).save(lab / "images" / name / f"{number}.png")
    (lab / "secret_method.py").write_text(PLUGIN)
    (lab.parent / "fancy.py").write_text(PLUGIN)
    (lab.parent / "images").symlink_to(lab / "images")
    words = settings.format(here=lab, above=lab.parent).split()
    told = eagleray("submit", "flips.yaml", *words, "--address", dashboard[0])
    assert told.code == 2
    assert REFUSED[settings] in told.err
    (sentence,) = (line for line in told.err.splitlines() if not line.startswith("note: running code of "))
    assert sentence.startswith("eagleray: ")
    assert dashboard[1] == []


def test_an_address_that_takes_no_jobs_is_refused(
    lab: Path, dashboard: tuple[str, list[str]], eagleray: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    for words in (["submit", "flips.yaml"], ["status"], ["logs", "x"], ["stop", "x"]):
        assert "jobs go to a cluster's dashboard; write" in eagleray(*words).err
        assert "jobs go to a cluster's dashboard; write" in eagleray(*words, "--address", "head:6379").err
        told = eagleray(*words, "--address", "http://127.0.0.1:1")
        assert (told.code, "no Ray answers at --address http://127.0.0.1:1" in told.err) == (2, True)
    told = eagleray("status", "--address", dashboard[0])
    assert told.code == 2
    assert "is no Ray dashboard that takes jobs" in told.err
