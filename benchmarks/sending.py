"""What it costs that a run lies at an address: training beside the sending of what it writes to an S3 store.

The same run is trained with its directory in a folder and at `s3://`, with a checkpoint and a row of metrics after each
epoch; both take turns, the other one first in every second round. The store is moto's server in a process of its own,
on this machine: it takes its share of the cores, and answers as fast as no real one. An epoch's time is that between
the rows of two epochs; the whole command holds the start, the copy that is made first, and the last things that are
sent.

    python benchmarks/sending.py --images FOLDER [--rounds 6] [--epochs 6] [--threads 1] [--out sending.json]
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from durable import interval

SIDES = ("in a folder", "at an address")
Numbers = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="a folder of images; by default scikit-learn's digits")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=6, help="of each measurement; the first is not counted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("sending.json"))
    given = parser.parse_args()
    found: dict[str, list[Numbers]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder, store() as environment:
        for number in range(given.rounds):
            for side in SIDES[:: 1 if number % 2 == 0 else -1]:
                found[side].append(measured(given, side, Path(folder, f"{number} {side}"), environment))
            last = {side: found[side][-1] for side in SIDES}
            print(f"round {number + 1}: {json.dumps(last)}", flush=True)
    for name in ("epoch", "command"):
        ratios = [there[name] / here[name] for here, there in zip(*found.values(), strict=True)]
        here, there = (statistics.median(each[name] for each in found[side]) for side in SIDES)
        low, high = interval(ratios)
        ratio = f"ratio {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"
        print(f"{name}: {here:.2f} s in a folder, {there:.2f} s at an address; {ratio}")
    given.out.write_text(json.dumps(found, indent=1))


@contextmanager
def store() -> Iterator[dict[str, str]]:
    """Start a store with a bucket `lab`; yield the environment in which it is found."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert server.stdout is not None
    try:
        address = server.stdout.readline().strip()
        keys = {
            "AWS_ACCESS_KEY_ID": "benchmark",
            "AWS_SECRET_ACCESS_KEY": "benchmark",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        yield {**os.environ, **keys, "AWS_ENDPOINT_URL": address}
    finally:
        server.kill()
        server.wait()


# A server of one process: it ends when it is killed.
SERVER = """
import boto3, time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
address = "http://{}:{}".format(*server.get_host_and_port())
keys = {"aws_access_key_id": "benchmark", "aws_secret_access_key": "benchmark", "region_name": "us-east-1"}
boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket="lab")
print(address, flush=True)
time.sleep(1e6)
"""


def measured(given: argparse.Namespace, side: str, place: Path, environment: dict[str, str]) -> Numbers:
    """Train once; return the seconds of an epoch, and of the whole command."""
    place.mkdir()
    images = ["data=folder", f"data.root={Path(given.images).absolute()}", "data.channels=rgb"] if given.images else []
    runs = "runs" if side == SIDES[0] else f"s3://lab/{re.sub(r'[^a-z0-9]', '', place.name)}"
    asked = [f"epochs={given.epochs}", f"threads={given.threads}", "evaluate.every=1000", "evaluate.linear.when=never"]
    command = [sys.executable, "-m", "eagleray", "train", *images, *asked, f"tracking.runs={runs}"]
    # Decoded images are shared by both sides, in the user's cache; the copies of addresses are of this run alone.
    own = {**environment, "XDG_CACHE_HOME": str(place / "cache")}
    began = time.perf_counter()
    subprocess.run(
        [*command, f"data.cache={place.parent / 'images'}"], cwd=place, env=own, check=True, capture_output=True
    )
    seconds = time.perf_counter() - began
    (rows,) = place.rglob("metrics.jsonl")
    told = [json.loads(line) for line in rows.read_text().splitlines()]
    ends = {row["epoch"]: row["time"] / 1000 for row in told if row["epoch"] == int(row["epoch"])}
    first, last = min(ends), max(each for each in ends if each < given.epochs)  # the last epoch is evaluated
    return {"epoch": (ends[last] - ends[first]) / (last - first), "command": seconds}


if __name__ == "__main__":
    main()
