"""Read what nobody should have to read; each must be refused in a sentence, within limits, and run nothing.

    python chaos/hostile_input.py [--mutations 800] [--out hostile_input.csv]

`tests/hostile` has settings, images and archives that an audit has found, and programs planted in the working
directory; `tests/test_secrets.py` looks for a planted password in all that is written and printed. They run here as in
the suite, counted by class. Then settings of that corpus are mutated, a few bytes each, and given to `eagleray check`:
it must answer with exit code 0 or 2 and without a traceback, within ten seconds of computing and a gigabyte, start no
process, connect to nothing and write nothing.
"""

import argparse
import contextlib
import io
import os
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from observed import concluded

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from hostile.settings import FILES  # noqa: E402
from hostile.watched import watched  # noqa: E402

CORPUS = ["tests/hostile", "tests/test_secrets.py"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=800)
    parser.add_argument("--corpus", nargs="*", default=CORPUS, help="tests")
    parser.add_argument("--out", type=Path, help="where to write a row for each class and outcome, as CSV")
    given = parser.parse_args()
    outcomes = Outcomes()
    if given.corpus:
        os.chdir(ROOT)
        pytest.main(["-q", "-p", "no:cacheprovider", *given.corpus], plugins=[outcomes])
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for _ in range(given.mutations):
            kind = draw.choice(sorted(FILES))
            text = FILES[kind]
            outcomes.count("mutated settings", checked(mutated(text.encode() if isinstance(text, str) else text, draw)))
    found = [{"class": name, "count": count, "broken": outcome} for (name, outcome), count in outcomes.counts.items()]
    for name in dict.fromkeys(row["class"] for row in found):
        own = [row for row in found if row["class"] == name]
        print(
            f"{name}: {sum(row['count'] for row in own)}, broken: {sum(row['count'] for row in own if row['broken'])}"
        )
    concluded(found, given.out)


class Outcomes:
    """Counts by class what has come of inputs; an outcome is empty where the promise held."""

    def __init__(self):
        self.counts = Counter[tuple[str, str]]()

    def count(self, name: str, outcome: str) -> None:
        self.counts[name, outcome] += 1

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.failed:
            name = Path(report.location[0]).stem.removeprefix("test_").replace("_", " ")
            self.count(name, "failed" if report.failed else "")


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Replace, remove or insert a few bytes."""
    changed = bytearray(data[:4000])
    for _ in range(draw.randrange(1, 4)):
        at, byte = draw.randrange(len(changed) + 1), draw.choice(b"\x00\xff\n \t-:{}[]&*!|>'\"%@0.1eE,#a")
        how = draw.randrange(3)
        changed[at : at + (how != 2)] = bytes([byte]) if how != 1 else b""
    return bytes(changed)


def checked(data: bytes) -> str:
    """Check a file of settings; return what was promised and did not hold."""
    from eagleray.app import cli

    path, said, code = Path("f.yaml").absolute(), io.StringIO(), 0
    path.write_bytes(data)
    before, began = sorted(path.parent.iterdir()), time.process_time()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
        sys.argv = ["eagleray", "check", "f.yaml"]
        with watched() as seen:
            try:
                cli.main()
            except SystemExit as end:
                code = int(end.code or 0)
            except Exception as error:
                return f"raised {type(error).__name__}: {error}"[:200]
    try:
        seen.check()
    except AssertionError:
        return f"took {time.process_time() - began:.0f} s, {seen.bytes >> 20} MiB; ran {seen.run}, wrote {seen.outside}"
    wrong = {
        f"exit {code}": code not in (0, 2),
        "a traceback": "Traceback" in said.getvalue(),
        "files were written": sorted(path.parent.iterdir()) != before,
    }
    return ", ".join(name for name, is_wrong in wrong.items() if is_wrong)


if __name__ == "__main__":
    main()
