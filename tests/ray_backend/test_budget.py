"""The end of a budget: trials stop where nothing is lost, and a resumed sweep continues them."""

import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import eagleray
from eagleray.config import Sweep, validated
from eagleray.config.budget import OVER
from eagleray.config.search_points import points
from eagleray.ray_backend.sweep import trial_config
from eagleray.ray_backend.trial import results
from eagleray.runs.record import Record
from ray_sessions import two_cores

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

TINY = {"data": {"limit": 120}, "batch_size": 40, "encoder": {"name": "convnet", "width": 4},
        "evaluate": {"linear": {"when": "never"}}, "tracking": {"uri": "http://127.0.0.1:1"}}  # fmt: skip


def a_sweep(epochs: int, **more: Any) -> Sweep:
    run = {**TINY, "epochs": epochs}
    return validated(Sweep, {"name": "s", "run": run, "vary": {"augment.flip": [0, 0.2, 0.5]}, "floor": [], **more})


@pytest.mark.parametrize("every_steps", [None, 2])
def test_a_trial_stops_at_its_next_report_and_continues_later(tmp_path: Path, every_steps: int | None):
    sweep = a_sweep(3, run={**TINY, "epochs": 3, "checkpoints": {"every_steps": every_steps}})
    Record.create(tmp_path, name="s", experiment="s", params={}, run={})
    config, other = (trial_config(sweep, tmp_path, point, time.time() + 1000) for point in points(sweep)[:2])

    trial = results(config)
    assert next(trial)["epoch"] == 1
    config["end"] = time.time()
    last = next(trial)
    assert last["done"]
    assert list(trial) == []
    record = Record.open(config["directory"])
    assert (record.state, record.status["message"]) == ("stopped", OVER)
    saved = sorted((record.directory / "checkpoints").glob("*.pt"))
    assert int(saved[-1].stem.split("-")[1]) == (4 if every_steps else 6)  # three steps an epoch

    other["end"] = config["end"]
    assert [each["done"] for each in results(other)] == [True]
    assert not Path(other["directory"]).exists()

    config["end"] = None
    assert [(each["epoch"], each["done"]) for each in results(config)][-1] == (3, True)
    assert Record.open(config["directory"]).state == "finished"
    assert [row["epoch"] for row in record.metrics()] == [1, 2, 3]


class Sink(BaseHTTPRequestHandler):
    got: list[str] = []  # noqa: RUF012

    def do_POST(self) -> None:
        self.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["event"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Sink) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/xoxb-canary"
        server.shutdown()


def test_a_sweep_without_time_left_says_what_is_left_and_tells_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    with two_cores():
        endless = a_sweep(1_000_000, notify=address, budget={"hours": 45 / 3600})
        result = eagleray.sweep(endless)
        assert result.is_unfinished
        states = {record.name: record.status["message"] for record in Record.open(result.directory).children()}
        assert states == {"000": OVER, "001": OVER}, "two cores: two trials at a time"
        assert all(list((result.directory / "trials" / name / "checkpoints").glob("*.pt")) for name in states)
        for name in ("report.md", "report.html"):
            page = (result.directory / "artifacts" / name).read_text()
            assert page.count(f"2 stopped {OVER}: 000, 001") == 1, name
            assert page.count(f"1 not started {OVER}: 002") == 1, name
        again = eagleray.sweep(a_sweep(1_000_000, notify=address, budget={"hours": 1 / 3600}), resume=True)
        assert again.directory == result.directory
        assert again.is_unfinished
    assert Sink.got == ["budget"]
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and b"xoxb-canary" in path.read_bytes()]
    assert kept == []
