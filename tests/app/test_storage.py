"""Commands on runs and images at addresses: what is refused before anything starts, and readers."""

from pathlib import Path
from typing import Any

import fsspec
import pytest

from buckets import SECRET, Bucket
from command_line import Outcome, command_line
from eagleray.contracts.paths import located
from eagleray.runs.record import Record
from eagleray.storage import store
from eagleray.storage.mirror import mirrored
from recorded_runs import recorded_run, recorded_sweep

SWEEP = "name: s\nvary: {augment.flip: [0, 1]}\nrun: {tracking: {runs: 's3://nowhere/runs'}}\n"


@pytest.fixture
def eagleray(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command with a bucket at hand."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{bucket.caches}/mlflow.db")
    return command_line(monkeypatch, capsys)


def refused(outcome: Outcome, bucket: Bucket) -> str:
    assert outcome.code == 2
    (told,) = outcome.err.splitlines()
    assert bucket.names() == []
    assert not list(bucket.caches.rglob("record.json"))
    return told


def test_a_bucket_that_is_not_there_is_said_by_every_command_before_anything_starts(eagleray: Any, bucket: Bucket):
    Path("s.yaml").write_text(SWEEP)
    said = "s3://nowhere/runs cannot be used (The specified bucket does not exist): create it, or correct the address"
    for words in ("train tracking.runs=s3://nowhere/runs", "check s.yaml", "sweep s.yaml"):
        assert refused(eagleray(*words.split()), bucket).endswith(f"tracking.runs: {said}")
    for words in ("runs ls s3://nowhere/runs", "sync s3://nowhere/runs", "evaluate s3://nowhere/runs"):
        assert said in refused(eagleray(*words.split()), bucket)
    assert "s3://nowhere/images cannot be used" in refused(
        eagleray("train", "data=folder", "data.root=s3://nowhere/images"), bucket
    )
    assert "data.root=s3://lab/images does not exist" in refused(
        eagleray("train", "data=folder", "data.root=s3://lab/images"), bucket
    )


def test_a_bucket_that_may_not_be_written_is_said_before_anything_starts(
    eagleray: Any, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(store.filesystem(Path(located("s3://lab"))), "pipe_file", denied)
    told = refused(eagleray("train", "tracking.runs=s3://lab/runs"), bucket)
    why = "cannot be used (Access Denied): correct the credentials, or ask for access"
    assert told == f"eagleray: tracking.runs: s3://lab/runs {why}"


def test_a_missing_package_is_named_with_what_installs_it(
    eagleray: Any, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    def absent(scheme: str, **_: Any) -> None:
        raise ImportError("No module named 'gcsfs'")

    monkeypatch.setattr(fsspec, "filesystem", absent)
    told = refused(eagleray("train", "tracking.runs=gs://lab/runs"), bucket)
    assert "gs:// needs the package gcsfs" in told
    assert "pip install 'eagleray[gs]'" in told


@pytest.mark.slow
def test_runs_of_another_machine_are_listed_shown_compared_and_sent(eagleray: Any, bucket: Bucket):
    here = Path(located("s3://lab/runs"))
    for place, make in ((here / "eagleray/one", recorded_run), (here / "s/two", recorded_sweep)):
        with mirrored(place):
            make(place)
    for child in Record.open(here / "s/two").children():
        with mirrored(child.directory):
            pass
    bucket.on("there")
    listed = eagleray("runs", "ls", "s3://lab/runs")
    assert "eagleray/one" in listed.out
    assert "s/two" in listed.out
    assert "s3://lab/runs/eagleray/one/run.yaml" in eagleray("runs", "show", "s3://lab/runs/eagleray/one").out
    assert "raw pixels" in eagleray("compare", "s3://lab/runs/s").out
    assert "raw pixels" in eagleray("compare", "s/two", "tracking.runs=s3://lab/runs").out
    synced = eagleray("sync", "s3://lab/runs")
    assert synced.code == 0, synced.err
    assert "0 could not be sent" in synced.out
    assert not synced.out.startswith("0 runs sent")
    for file in [path for path in bucket.caches.rglob("*") if path.is_file()]:
        assert SECRET.encode() not in file.read_bytes(), file
