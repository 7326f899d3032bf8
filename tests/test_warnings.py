"""Warnings are errors in child processes too: conftest.py hands pytest's filters on to them."""

import subprocess
import sys
import warnings

import pytest

from eagleray.runs.processes import two_processes


@pytest.mark.parametrize(
    ("category", "text", "is_error"),
    [
        ("DeprecationWarning", "old", True),
        ("FutureWarning", "soon", True),
        ("UserWarning", "The ``noload`` loader strategy is deprecated and more", False),
    ],
)
def test_a_warning_of_a_child_is_an_error_unless_it_is_listed(category: str, text: str, is_error: bool):
    code = f"import warnings; warnings.warn({text!r}, {category})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode != 0) is is_error
    assert (f"{category}: {text}" in done.stderr) is is_error


def warns_on_one() -> None:
    from eagleray.blocks import distributed

    if distributed.rank() == 1:
        warnings.warn("old", DeprecationWarning, stacklevel=1)


@pytest.mark.slow
def test_a_warning_of_one_worker_is_an_error():
    with pytest.raises(RuntimeError, match="DeprecationWarning: old"):
        two_processes(warns_on_one)
