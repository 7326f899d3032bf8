"""Text from elsewhere is shown, not obeyed."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from command_line import command_line
from eagleray.app.line import Printed, fail
from eagleray.contracts.visible import visible

HOSTILE = "a\x1b[2J\x1b]0;owned\x07\r\u202eb\udce4\n\tc"
HARMLESS = "a\\x1b[2J\\x1b]0;owned\\x07\\r\\u202eb\\udce4\n\tc"


def test_what_a_terminal_would_obey_is_written_out():
    assert visible(HOSTILE) == HARMLESS
    assert visible("Zürich 학습 👩‍🔬\n\ttab") == "Zürich 학습 👩‍🔬\n\ttab"


def test_a_console_shows_it_in_lines_tables_and_colours():
    table, shown = Table("file"), io.StringIO()
    table.add_row("x\x1b[31m.png", style="green")
    console = Printed(file=shown, force_terminal=True, color_system="standard", width=60)
    console.print("y\x1b[2J.png", markup=False, highlight=False)
    console.print(table)
    assert "y[2J.png" in shown.getvalue()
    assert "x[31m.png" in shown.getvalue()
    assert "\x1b[32m" in shown.getvalue()  # the console's own colour stays


def test_errors_are_written_out_and_not_endless(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        fail(f"{HOSTILE}\n{'x' * 10_000} is long; the remedy", 2)
    told = capsys.readouterr().err
    assert HARMLESS in told
    assert "\x1b" not in told
    assert len(told) < 4000
    assert told.endswith("xx is long; the remedy\n")


def test_file_names_reach_the_terminal_written_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a\x1b[2Jb.txt").touch()
    outcome: Any = command_line(monkeypatch, capsys)("train", "data=folder", "data.root=photos")
    assert (outcome.code, "\x1b" in outcome.err) == (2, False)
    assert "photos contains no images: a\\x1b[2Jb.txt is not named like one" in outcome.err
