"""`eagleray docs`, `doctor` and `--version`: help without a network."""

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from hatchling.build import build_wheel
from packaging.requirements import Requirement

import eagleray
from command_line import command_line
from eagleray.app import doctor, pages
from eagleray.app.doctor import Finding, findings
from eagleray.config.registry import declared
from eagleray.contracts.errors import ConfigError

ROOT = Path(__file__).parents[2]
Typed = Callable[..., tuple[int, str]]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Typed:
    run = command_line(monkeypatch, capsys)

    def code_and_text(*words: str) -> tuple[int, str]:
        told = run(*words)
        return told.code, told.out + told.err

    return code_and_text


def test_the_version_is_said(typed: Typed):
    assert typed("--version") == (0, f"eagleray {eagleray.__version__}\n")


# --- docs ------------------------------------------------------------------------------------------------------


def test_every_page_of_the_docs_is_listed_and_shown(typed: Typed):
    code, listed = typed("docs")
    assert code == 0
    for file in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        assert str(file) in listed
        assert typed("docs", file.stem.lower()) == (0, file.read_text() + "\n")


def test_a_method_an_evaluator_and_a_metric_have_their_section(typed: Typed):
    for name in declared("method"):
        assert typed("docs", name)[1].startswith(f"## {name}\n")
    assert typed("docs", "knn")[1].startswith("## knn\n")
    assert typed("docs", "rankme")[1].startswith("## collapse\n")
    assert typed("docs", "loss")[1].startswith("# Metrics\n")


def test_an_unknown_page_is_answered_with_the_nearest(typed: Typed):
    code, said = typed("docs", "metric")
    assert (code, said.count("\n")) == (2, 1)
    assert "there is no page 'metric'; did you mean metrics?" in said


def test_docs_in_a_terminal_are_formatted_and_say_where_they_are(typed: Typed, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("eagleray.app.commands.help.console._force_terminal", True)
    shown = typed("docs", "byol")[1]
    assert "## byol" not in shown
    assert str(ROOT / "docs/methods.md") in shown


@pytest.mark.slow
def test_the_wheel_has_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Unpacked where there is no checkout, with nothing but what it holds."""
    monkeypatch.chdir(ROOT)
    with ZipFile(tmp_path / build_wheel(str(tmp_path))) as wheel:
        wheel.extractall(tmp_path / "site")
    script = """if True:
        import sys
        sys.path.insert(0, sys.argv[1])
        from eagleray.app.cli import main
        sys.argv[1:] = ["docs", *sys.argv[2:]]
        main()"""
    for words, start in (([], "architecture "), (["methods"], "# Methods"), (["readme"], "# Eagleray")):
        command = [sys.executable, "-P", "-c", script, str(tmp_path / "site"), *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
        assert done.stdout.startswith(start), done.stderr
        assert words or str(tmp_path / "site/eagleray/docs/methods.md") in done.stdout


def test_an_installation_without_pages_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pages, "PACKAGE", tmp_path / "site/lib/eagleray")
    with pytest.raises(ConfigError, match="install Eagleray again"):
        pages.pages.__wrapped__()


# --- doctor ----------------------------------------------------------------------------------------------------


@pytest.fixture
def looked(tmp_path: Path) -> Callable[[], dict[str, Finding]]:
    return lambda: {each.what: each for each in findings(tmp_path / "runs")}


def test_doctor_finds_what_is_here(looked: Any, tmp_path: Path):
    found = looked()
    assert {"torch", "ray", "mlflow", "GPU", "precision", "cores", "memory", "shared memory", "port 5000"} <= set(found)
    assert {"port 6379", "port 8265", "runs", "cache", "git commit", "eagleray"} <= set(found)
    assert found["precision"].found.split(":")[0] in ("bf16", "fp32")
    assert not found["ray"].remedy
    assert ">=2.60" in found["ray"].found
    assert not (tmp_path / "runs").exists()  # it leaves nothing behind


def test_doctor_ends_with_one_if_something_is_to_do(typed: Typed, monkeypatch: pytest.MonkeyPatch):
    well, ill = Finding("cores", "2"), Finding("memory", "1 of 2 GiB free", "close other programs")
    monkeypatch.setattr(doctor, "findings", lambda runs: iter([well]))
    assert typed("doctor") == (0, "ok    cores          2\n")
    monkeypatch.setattr(doctor, "findings", lambda runs: iter([well, ill]))
    code, said = typed("doctor")
    assert code == 1
    assert said.splitlines()[1:] == ["warn  memory         1 of 2 GiB free", f"{'':21}-> close other programs"]


def test_versions_outside_the_tested_range_are_warned_of(looked: Any, monkeypatch: pytest.MonkeyPatch):
    real = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: "9.9" if name == "ray" else real(name))
    remedy = looked()["ray"].remedy
    assert Requirement(remedy.split("'")[1]).specifier.contains("2.60.1")


def test_a_taken_port_and_a_folder_that_cannot_be_written_are_warned_of(
    looked: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(doctor, "PORTS", {taken.getsockname()[1]: "us"})
        assert looked()[f"port {taken.getsockname()[1]}"].found.startswith("taken")

    def denied(**given: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", denied)
    found = looked()["runs"]
    assert found.found == f"{tmp_path} cannot be written: Permission denied"
    assert found.remedy == "set tracking.runs to a folder that can"


def test_little_memory_shared_memory_and_disk_are_warned_of(looked: Any, monkeypatch: pytest.MonkeyPatch):
    for name in ("MEMORY", "SHARED", "DISK"):
        monkeypatch.setattr(doctor, name, 10**9)
    found = looked()
    assert all(found[name].remedy for name in ("memory", "shared memory", "runs", "cache"))
    assert "--shm-size" in found["shared memory"].remedy
