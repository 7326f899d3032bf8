"""People are told of each event once, and no secret is repeated."""

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import eagleray
from eagleray.app import launch
from eagleray.app.notify import forget, notified, notify
from eagleray.config import Run, Sweep, load_run, load_sweep, validated
from eagleray.config.schema import sweep_schema
from eagleray.config.settings import settings
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.report import Diverged
from eagleray.report.numbers import number
from eagleray.runs.record import Record

SECRET = "xoxb-canary"


class Sink(ThreadingHTTPServer):
    """Keeps what is posted to it."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.got: list[dict[str, Any]] = []
        self.status = 200
        self.address = f"http://127.0.0.1:{self.server_port}/hook?token={SECRET}"


class Answers(BaseHTTPRequestHandler):
    server: Sink

    def do_POST(self) -> None:
        posted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.status == 200:
            self.server.got.append(posted)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing."""


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def a_sweep(target: str | None) -> Sweep:
    return validated(Sweep, {"name": "s", "vary": {"seed": [0, 1]}, "notify": target})


def test_an_address_is_told_each_event_once(sink: Sink, tmp_path: Path):
    sweep = a_sweep(sink.address)
    for event in ("budget", "stopped", "stopped", "finished", "finished"):
        notify(sweep, tmp_path, event, f"is {event}")
    assert [each["event"] for each in sink.got] == ["budget", "stopped", "finished"]
    assert sink.got[0] == {"event": "budget", "name": "s", "text": "s is budget", "directory": str(tmp_path)}
    forget(tmp_path)
    notify(sweep, tmp_path, "finished", "extended")
    assert len(sink.got) == 4


def test_what_did_not_arrive_is_told_by_the_next_start_and_never_names_the_address(
    sink: Sink, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    sink.status = 500
    with caplog.at_level(logging.WARNING):
        notify(a_sweep(sink.address), tmp_path, "finished", "done")
        notify(a_sweep(f"http://127.0.0.1:1/{SECRET}"), tmp_path, "finished", "done")
        notify(a_sweep(f"exit 3 # {SECRET}"), tmp_path, "finished", "done")
    reasons = [record.getMessage().partition("that s done: ")[2] for record in caplog.records]
    assert reasons == ["Internal Server Error", "[Errno 111] Connection refused", "the command ended with 3"]
    assert SECRET not in caplog.text
    sink.status = 200
    notify(a_sweep(sink.address), tmp_path, "finished", "done")
    assert len(sink.got) == 1


def test_a_command_gets_the_event_in_its_environment(tmp_path: Path):
    told = tmp_path / "told"
    for _ in range(2):
        notify(a_sweep(f'echo "$EAGLERAY_EVENT $EAGLERAY_NAME: $EAGLERAY_TEXT" >> {told}'), tmp_path, "failed", "why")
    assert told.read_text() == "failed s: s why\n"


def test_the_target_is_in_no_file_and_no_text_of_a_sweep():
    sweep = a_sweep(f"https://host/{SECRET}")
    assert SECRET not in json.dumps(sweep.model_dump(mode="json")) + repr(sweep)
    for wrong in ({"url": SECRET}, f"https:///{SECRET}"):
        with pytest.raises(ConfigError, match="notify is neither a command nor an http") as caught:
            validated(Sweep, {"name": "s", "vary": {"seed": [0, 1]}, "notify": wrong})
        assert SECRET not in str(caught.value)


def test_the_target_of_a_run_is_no_setting_of_it():
    run = validated(Run, {"notify": f"https://host/{SECRET}"})
    assert SECRET not in json.dumps([run.file(), settings(run)]) + repr(run)
    assert settings(run) == settings(validated(Run, {}))
    with pytest.raises(ConfigError, match="notify is neither a command nor an http") as caught:
        validated(Run, {"notify": f"https:///{SECRET}"})
    assert SECRET not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "where",
    [
        {"run": {"notify": SECRET}, "vary": {"seed": [0, 1]}},
        {"vary": {"notify": [SECRET, "b"]}},
        {"vary": {"run": [{"notify": SECRET}, {"epochs": 5}]}},
    ],
)
def test_a_sweep_has_one_target_for_all_its_runs(where: dict[str, Any]):
    with pytest.raises(ConfigError, match=r"^run\.notify: .*; write notify beside run$") as caught:
        validated(Sweep, {"name": "s", **where})
    assert SECRET not in str(caught.value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "s", **where}, sweep_schema())


@pytest.mark.parametrize(
    ("state", "told"),
    [("finished", "finished, and was stopped before"), ("stopped", "was stopped; --resume continues it")],
)
def test_ctrl_c_tells_whether_there_is_something_to_continue(sink: Sink, tmp_path: Path, state: str, told: str):
    record = Record.create(tmp_path / "r", name="r", experiment="e", params={}, run={"epochs": 1})

    def stopped() -> None:
        with notified(a_sweep(sink.address), record.directory):
            record.finish(state)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [(each["event"], told in each["text"]) for each in sink.got] == [(state, True)]


@pytest.mark.slow
def test_a_run_tells_how_it_ended_and_goes_on_if_nobody_listens(
    sink: Sink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # where nothing answers
    tiny = {
        "data": {"limit": 64}, "batch_size": 16, "epochs": 2, "encoder": {"width": 4}, "threads": 1, "device": "cpu",
        "evaluate": {"linear": {"when": "never"}}, "tracking": {"runs": str(tmp_path)}, "notify": sink.address,
    }  # fmt: skip
    with pytest.raises(Diverged):
        eagleray.train({**tiny, "optimizer": {"lr": 1e30}})
    monkeypatch.setattr(launch, "collapsed", lambda *_, **__: "flat")
    run = eagleray.train(tiny, tmp_path / "a")
    assert [each["event"] for each in sink.got] == ["failed", "collapsed", "finished"]
    assert "failed: the loss is nan at step" in sink.got[0]["text"]
    assert sink.got[1]["text"] == "a has collapsed at epoch 1: flat"
    assert f"knn {number(run.metrics['knn'])}" in sink.got[2]["text"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]

    sink.status = 500
    assert Record.open(eagleray.train(tiny, tmp_path / "b").directory).state == "finished"
    told = [text for each in caplog.records if "nobody could be notified" in (text := each.getMessage())]
    assert [text.rpartition(": ")[2] for text in told] == ["Internal Server Error"] * 2


@pytest.mark.slow
def test_a_report_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, sink: Sink, tmp_path: Path):
    """Its trials may have taken days."""
    from eagleray.ray_backend import sweep as ray_sweep

    def trained(sweep: Sweep, directory: Path, **_: Any) -> None:
        Record.create(directory, name="s", experiment="s", params={}, run=sweep.model_dump(mode="json"))

    def failing(*_: Any) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr(ray_sweep, "sweep", trained)
    monkeypatch.setattr("eagleray.app.conclude.conclude", failing)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(RuntimeError, match="no font"):
        launch.launch_sweep(a_sweep(sink.address), tmp_path / "s", tmp_path, None, resume=False, address=None)
    assert [each["event"] for each in sink.got] == ["failed"]


@pytest.mark.parametrize("text", ["epochs: 1\nnotify: touch it\n", "name: s\nvary: {seed: [0, 1]}\nnotify: touch it\n"])
def test_a_file_has_no_command_but_a_typed_one_is_fine(tmp_path: Path, text: str):
    file, load = tmp_path / "f.yaml", load_sweep if "vary" in text else load_run
    file.write_text(text)
    with pytest.raises(ConfigError, match="notify is a command, which a file from elsewhere must not run: type it"):
        load(file, [])
    file.write_text(text.replace("touch it", "https://host/path"))
    assert load(file, []).notify == "https://host/path"
    assert load(file, ["notify=touch it"]).notify == "touch it"
