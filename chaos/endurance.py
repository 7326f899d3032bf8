"""Run many short trials in one sweep; nothing may grow, and nothing be left.

    python chaos/endurance.py [--trials 200] [--out endurance.csv]

`eagleray sweep` has one driver for all trials, each of one epoch. Every two seconds its memory and its open files are
read. From the time when a fifth of the trials is done to the end of the last trial it may grow by 50 MiB and hold ten
more files; all trials must finish; a minute after the end no process of its session may be there, and nothing new in
/dev/shm.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from commands import PATIENCE, of_session, start, sweep_directory, trials
from drivers import FILE
from observed import concluded

from eagleray.runs.record import Record

MEMORY, FILES = 50, 10  # MiB and open files more than that are a leak
ORPHANS = 60  # seconds after which no process may be left
SAMPLES = 100  # rows of the CSV


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--out", type=Path, help="where to write a row for each sample, as CSV")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place, shared = Path(folder), shared_memory()
        text = FILE.replace("temperature: [0.1, 0.2, 0.5]", "temperature: {uniform: [0.1, 1]}")
        text = text.replace("search: grid", f"search: random\ntrials: {given.trials}").replace("seeds: 2", "seeds: 1")
        text = text.replace("limit: 512", "limit: 128").replace("keep: all\n", "")
        (place / "sweep.yaml").write_text(text)
        process = start(place, "sweep", "sweep.yaml", "epochs=1")
        samples, began = list[dict[str, Any]](), time.monotonic()
        while process.poll() is None:
            assert time.monotonic() - began < max(PATIENCE, 10 * given.trials), (place / "log").read_text()[-3000:]
            samples += sampled(process.pid, place, time.monotonic() - began)
            time.sleep(2)
        wrong = grown(samples, given.trials)
        wrong += [] if process.returncode == 0 else [f"exit {process.returncode}: {(place / 'log').read_text()[-500:]}"]
        states = [Record.open(each).state for each in trials(place) if Record.open(each).kind == "trial"]
        wrong += [] if states == ["finished"] * given.trials else ["not all trials have finished"]
        wrong += left(process.pid, shared)
        minutes, size = (time.monotonic() - began) / 60, kept(place)
    print(f"{given.trials} trials in {minutes:.1f} minutes, {size / given.trials / 2**20:.1f} MiB each")
    first, *_, last = steadily(samples, given.trials)
    print(f"driver {first['memory']} -> {last['memory']} MiB, {first['files']} -> {last['files']} files")
    rows = [{**each, "count": 0, "broken": ""} for each in samples[:: max(1, len(samples) // SAMPLES)]]
    rows[-1] |= {"count": given.trials, "broken": ", ".join(wrong)}
    concluded(rows, given.out)


def sampled(pid: int, place: Path, seconds: float) -> list[dict[str, Any]]:
    """Look at the driver; nothing if it has just ended."""
    try:
        driver = psutil.Process(pid)
        facts = {"memory": driver.memory_info().rss // 2**20, "files": driver.num_fds()}
    except psutil.Error:
        return []
    done = len(list(place.glob("runs/*/*/trials/*/status.json")))
    return [{"seconds": round(seconds), "done": done, **facts}]


def shared_memory() -> set[str]:
    """Return the names of what is in shared memory on this machine."""
    return {each.name for each in Path("/dev/shm").iterdir()}


def steadily(samples: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return the samples after the first fifth of the trials, while trials run."""
    return [each for each in samples if count / 5 <= each["done"] < count] or samples


def grown(samples: list[dict[str, Any]], count: int) -> list[str]:
    """Return what has grown."""
    first, *_, last = steadily(samples, count)
    grew = [name for name, most in {"memory": MEMORY, "files": FILES}.items() if last[name] - first[name] > most]
    return [f"{name} grew from {first[name]} to {last[name]}" for name in grew]


def left(session: int, shared: set[str]) -> list[str]:
    """Return what is left after the end of a command."""
    end = time.monotonic() + ORPHANS
    while (there := of_session(session)) and time.monotonic() < end:
        time.sleep(0.5)
    return [f"left: {each}" for each in (*there, *(shared_memory() - shared))]


def kept(place: Path) -> int:
    return sum(path.stat().st_size for path in sweep_directory(place).rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
