"""Hostile settings: each is refused in sentences, before anything starts."""

import shlex
from pathlib import Path

import pytest

from command_line import command_line
from hostile.settings import FILES, LINES, MADE
from hostile.watched import watched

CASES = [*FILES, *MADE, *LINES]
AT_ONCE = ("laughs", "laughs by merging", "a grid of a billion", "a billion seeds", "a billion trials")


def test_all_of_the_audit_are_here():
    assert len(set(CASES)) == len(CASES) == 129


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", CASES)
def test_settings_are_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    file = tmp_path / "f.yaml"
    if kind in FILES:
        text = FILES[kind]
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    elif kind in MADE:
        MADE[kind](file)
    before = sorted(tmp_path.rglob("*"))
    with watched() as result:
        outcome = command_line(monkeypatch, capsys)(*LINES.get(kind, ["check", "f.yaml"]))
    result.check()
    assert kind not in AT_ONCE or result.seconds < 1
    assert sorted(tmp_path.rglob("*")) == before
    assert (outcome.code, outcome.out) == (2, "")
    lines = outcome.err.splitlines()
    assert lines[0].startswith("eagleray: "), lines[0][:200]
    assert "Traceback" not in outcome.err
    assert outcome.err.replace("\n", "").isprintable()
    assert max(map(len, lines)) < 4000
    assert len(lines) < 5, shlex.join(lines)[:500]
