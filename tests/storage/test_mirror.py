"""Who works in a copy and at an address, and what happens while the store does not answer."""

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from buckets import Bucket
from eagleray.contracts.errors import ConfigError, Noted
from eagleray.contracts.paths import located
from eagleray.contracts.report import Failed
from eagleray.storage import lease, mirror
from eagleray.storage.copy import is_sent
from eagleray.storage.lease import claimed
from eagleray.storage.mirror import flush, forget, input_at_hand, mirrored, records_at_hand, refresh, send_unsent

RUN = "s3://lab/runs/e/r"


@pytest.fixture
def place(bucket: Bucket) -> Path:
    place = Path(located(RUN))
    place.mkdir(parents=True)
    return place


def test_a_folder_of_this_machine_is_left_alone(tmp_path: Path):
    with mirrored(tmp_path / "run", is_alone=True):
        refresh(tmp_path / "run")
        flush(tmp_path / "run")
        forget(tmp_path / "run")
    assert records_at_hand(tmp_path) == input_at_hand(tmp_path) == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_block_fetches_first_sends_meanwhile_and_the_rest_at_the_end(
    bucket: Bucket,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(mirror, "EVERY", 0.05)
    bucket.own.pipe_file("lab/runs/e/r/record.json", b"old")
    with mirrored(place, is_alone=True):
        assert (place / "record.json").read_text() == "old"
        (place / "metrics.jsonl").write_text("row")
        for _ in range(400):
            if "runs/e/r/metrics.jsonl" in bucket.names():
                break
            threading.Event().wait(0.1)
        assert bucket.names() == [f"runs/e/r/{name}" for name in ("lock", "metrics.jsonl", "record.json")]
        (place / "status.json").write_text("end")
    assert bucket.names() == [f"runs/e/r/{name}" for name in ("metrics.jsonl", "record.json", "status.json")]

    def failing() -> None:
        with mirrored(place):
            (place / "status.json").write_text("failed")
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        failing()
    assert bucket.own.cat_file("lab/runs/e/r/status.json") == b"failed"
    forget(place)
    assert bucket.names() == []


def test_of_several_one_has_an_address(bucket: Bucket, place: Path):
    with claimed(place):
        bucket.on("there")
        other = Path(located(RUN))
        said = rf"another process \({os.getpid()} on .*\) trains in {RUN}; wait for"
        with pytest.raises(ConfigError, match=said), mirrored(other, is_alone=True):
            pass
        bucket.on("here")
    bucket.on("there")
    with mirrored(other, is_alone=True):
        assert bucket.names() == ["runs/e/r/lock"]
    assert bucket.names() == []


def test_the_lock_of_a_dead_process_is_taken_and_that_of_a_silent_machine_after_a_while(
    bucket: Bucket,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    node = os.uname().nodename
    for owner in (
        f"key {node} {ended.pid} 1.0 7",
        f"key {node} {os.getpid()} 1.0 7",
    ):  # the second number is used again
        bucket.own.pipe_file("lab/runs/e/r/lock", owner.encode())
        with claimed(place):
            assert bucket.own.cat_file("lab/runs/e/r/lock") != owner.encode()
    monkeypatch.setattr(lease, "ALIVE", 2)
    bucket.own.pipe_file("lab/runs/e/r/lock", b"key elsewhere 1 1.0 7")
    with claimed(place):
        pass
    counts = iter(range(100))
    monkeypatch.setattr(lease, "read", lambda path: f"key elsewhere 1 1.0 {next(counts)}".encode())
    bucket.own.pipe_file("lab/runs/e/r/lock", b"key elsewhere 1 1.0 7")
    with pytest.raises(ConfigError, match="1 on elsewhere"), claimed(place):
        pass


def test_who_has_lost_an_address_sends_no_more(
    bucket: Bucket,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(mirror, "EVERY", 0.05)

    def robbed() -> None:
        with mirrored(place, is_alone=True):
            bucket.own.pipe_file("lab/runs/e/r/lock", b"another elsewhere 1 1.0 7")
            while not any(isinstance(each, mirror._Sending) and each.is_failing for each in threading.enumerate()):
                threading.Event().wait(0.05)
            (place / "status.json").write_text("mine")

    with pytest.warns(Noted, match=f"another process has taken {RUN}"), pytest.raises(Failed, match="stop one of them"):
        robbed()
    assert bucket.names() == ["runs/e/r/lock"]


@pytest.mark.slow
def test_a_store_that_vanishes_stops_nothing_and_gets_the_rest_later(
    bucket: Bucket,
    place: Path,
    s3_server: ThreadedMotoServer,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(mirror, "EVERY", 0.05)
    monkeypatch.setattr(mirror, "PATIENCE", 0)

    def cut_off() -> None:
        with mirrored(place):
            (place / "record.json").write_text("1")
            flush(place)
            monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
            bucket.own.clear_instance_cache()
            (place / "metrics.jsonl").write_text("rows")
            while not any(isinstance(each, mirror._Sending) and each.is_failing for each in threading.enumerate()):
                threading.Event().wait(0.05)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(Failed, match=rf"Nothing is lost: .*`eagleray sync {RUN}` sends it") as ended:
            cut_off()
    assert ended.value.kind == "infrastructure"
    notes = [each for each in said if issubclass(each.category, Noted)]
    assert len(notes) == 1, "said once, not every time"
    assert (place / "metrics.jsonl").read_text() == "rows"
    assert not is_sent(place)
    host, port = s3_server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    bucket.own.clear_instance_cache()
    send_unsent(Path(located("s3://lab/runs")))
    assert bucket.names() == ["runs/e/r/metrics.jsonl", "runs/e/r/record.json"]


FETCHES = """
import s3fs
from pathlib import Path
from eagleray.contracts.paths import located
from eagleray.storage.mirror import input_at_hand

asked, call = [], s3fs.S3FileSystem._call_s3

async def noted(store, method, *args, **more):
    asked.append(method)
    return await call(store, method, *args, **more)

s3fs.S3FileSystem._call_s3 = noted
input_at_hand(Path(located("s3://lab/images")))
print(asked.count("get_object"))
"""


@pytest.mark.slow
def test_images_are_fetched_once_by_all_processes_and_again_only_if_they_changed(bucket: Bucket):
    for number in range(20):
        bucket.own.pipe_file(f"lab/images/{number % 2}/{number}.png", bytes([number]))
    place = Path(located("s3://lab/images"))
    command = [sys.executable, "-c", FETCHES]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    assert sorted(int(each.communicate(timeout=200)[0]) for each in both) == [0, 20]
    assert len(list(place.rglob("*.png"))) == 20
    bucket.count("get_object")
    input_at_hand(place)
    assert bucket.count("get_object") == 0
    bucket.own.pipe_file("lab/images/0/0.png", b"changed")
    bucket.own.rm_file("lab/images/0/2.png")
    mirror._seen.clear()
    input_at_hand(place)
    assert bucket.count("get_object") == 1
    assert (place / "0/0.png").read_bytes() == b"changed"
    assert not (place / "0/2.png").exists()
