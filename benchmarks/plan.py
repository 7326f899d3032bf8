"""Compare the time that `sweep --plan` predicts with what the sweep takes.

    python benchmarks/plan.py --images FOLDER [--out plan.csv]

Three small sweeps: cheap epochs and floors on digits, three methods of unlike cost on letters, and a folder of images.
Each is planned and then run, as a user would, in processes of their own. A plan knows nothing of other work on the
machine, whose load is printed.
"""

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SWEEPS = {
    "digits": """
run: {data: digits, epochs: 20, batch_size: 64}
vary: {method.temperature: [0.1, 0.5]}
seeds: 3
""",
    "letters": """
run: {data: letters, epochs: 6, batch_size: 128}
vary: {method: [simclr, byol, barlow_twins]}
seeds: 2
""",
    "folder": """
run: {data: {name: folder, root: IMAGES}, epochs: 4, batch_size: 256}
vary: {method.temperature: [0.1, 0.2, 0.5]}
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="a folder of images")
    parser.add_argument("--out", type=Path, help="where to write a row for each sweep, as CSV")
    given = parser.parse_args()
    rows = []
    for name, text in SWEEPS.items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "sweep.yaml")
            file.write_text(f"name: {name}{text.replace('IMAGES', str(Path(given.images).absolute()))}")
            before = os.getloadavg()[0]
            predicted = seconds_in(eagleray(folder, "sweep", file.name, "--plan"))
            began = time.monotonic()
            eagleray(folder, "sweep", file.name, "--plain")
            taken = time.monotonic() - began
        rows.append({"sweep": name, "predicted": predicted, "taken": round(taken), "load": f"{before:.1f}"})
        print(f"{name:10} predicted {predicted:4} s, took {taken:4.0f} s, load before {before:.1f}", flush=True)
    if given.out:
        with given.out.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def eagleray(folder: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "eagleray", *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def seconds_in(plan: str) -> int:
    found = re.search(r"about (\d+):(\d\d):(\d\d)", plan)
    assert found, plan
    hours, minutes, seconds = map(int, found.groups())
    return 3600 * hours + 60 * minutes + seconds


if __name__ == "__main__":
    main()
