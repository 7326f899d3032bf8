"""The command line as a person types it, without a process of its own."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from eagleray.app import cli


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Return what runs `eagleray` with the words it is given."""

    def typed(*words: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["eagleray", *words])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return typed
