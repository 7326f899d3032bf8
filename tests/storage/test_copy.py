"""A copy and its address: what is sent, fetched and removed, in which order, and what a failure in between leaves."""

import shutil
from pathlib import Path

import pytest

from buckets import Bucket
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.paths import located
from eagleray.contracts.report import Failed
from eagleray.storage import copy, store
from eagleray.storage.copy import Notes, of_record, of_run, pull, push

RUN = "s3://lab/runs/e/r"


def run(**files: str) -> Path:
    """Write a run's files to the copy; `__` stands for a folder."""
    place = Path(located(RUN))
    for name, text in files.items():
        path = place / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return place


def told(place: Path) -> dict[str, str]:
    return {str(path.relative_to(place)): path.read_text() for path in sorted(place.rglob("*")) if path.is_file()}


def test_another_machine_gets_what_was_sent_and_nothing_of_this_machine(bucket: Bucket):
    here = run(record="1", checkpoints__a="c", lock="x", trials__t__record="t")
    (here / ".room").write_text("x")
    (here / ".status.json.123").write_text("half")
    (here / ".pulse-0").write_text("beat")
    push(here)
    bucket.on("there")
    there = Path(located(RUN))
    pull(there, of_record)
    assert told(there) == {"record": "1", ".pulse-0": "beat"}
    pull(there, of_run)
    assert told(there) == {"record": "1", ".pulse-0": "beat", "checkpoints/a": "c"}


def test_nothing_is_sent_or_fetched_twice(bucket: Bucket):
    here = run(record="1", checkpoints__a="c")
    push(here)
    assert bucket.count("put_object") == 2
    push(here)
    pull(here, of_run)
    assert (bucket.count("put_object"), bucket.count("get_object")) == (0, 0)
    (here / "record").write_text("2")
    push(here)
    assert bucket.count("put_object") == 1
    bucket.on("there")
    for fetched in (2, 0):
        pull(Path(located(RUN)), of_run)
        assert bucket.count("get_object") == fetched


def test_rows_are_sent_before_checkpoints_and_the_end_last(bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    here, order = run(), list[str]()
    real = copy.send
    monkeypatch.setattr(copy, "send", lambda path: (order.append(str(path.relative_to(here))), real(path)))
    run(**{"checkpoints__a": "c", "status.json": "s", "metrics.jsonl": "m", "artifacts__z": "z", "record.json": "r"})
    push(here)
    assert order == ["artifacts/z", "record.json", "metrics.jsonl", "checkpoints/a", "status.json"]
    (here / "status.json").unlink()
    (here / "checkpoints/a").unlink()
    run(checkpoints__b="d")
    push(here)
    left = ("artifacts/z", "checkpoints/b", "metrics.jsonl", "record.json")
    assert bucket.names("runs/e/r") == [f"runs/e/r/{name}" for name in left]


def test_what_was_not_sent_stays_unless_another_machine_has_gone_on(bucket: Bucket):
    here = run(record="1", checkpoints__a="c")
    push(here)
    run(record="2", checkpoints__b="d")  # and then this machine was lost
    pull(here, of_run, is_mine=True)
    assert told(here) == {"record": "2", "checkpoints/a": "c", "checkpoints/b": "d"}
    bucket.on("there")
    there = Path(located(RUN))
    pull(there, of_run)
    (there / "record").write_text("other")
    (there / "checkpoints/a").unlink()
    push(there)
    bucket.on("here")
    pull(here, of_run, is_mine=True)
    assert told(here) == {"record": "other"}


def test_what_a_run_removed_stays_removed_and_what_a_person_removed_is_fetched_again(bucket: Bucket):
    here = run(**{"record": "1", "checkpoints__a": "c", "status.json": "s"})
    push(here)
    for name in ("record", "checkpoints/a", "status.json"):
        (here / name).unlink()
    pull(here, of_run, is_mine=True)
    assert told(here) == {"record": "1"}
    push(here)
    assert bucket.names() == ["runs/e/r/record"]
    shutil.rmtree(here)
    pull(here, of_run, is_mine=True)
    assert told(here) == {"record": "1"}
    push(here)
    assert bucket.names() == ["runs/e/r/record"]


def test_sending_that_fails_half_way_is_done_again_and_leaves_no_half_object(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    here = run(record="1", checkpoints__a="c")
    real = copy.send

    def failing(path: Path) -> None:
        if path.name == "a":
            raise Failed("no answer", "infrastructure")
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(copy, "send", failing)
        with pytest.raises(Failed):
            push(here)
    assert bucket.names() == ["runs/e/r/record"]
    assert not copy.is_sent(here)
    push(here)
    assert bucket.names() == ["runs/e/r/checkpoints/a", "runs/e/r/record"]
    assert copy.is_sent(here)
    parts = bucket.own.call_s3("create_multipart_upload", Bucket="lab", Key="runs/e/r/large")
    bucket.own.call_s3("upload_part", Bucket="lab", Key="runs/e/r/large", UploadId=parts["UploadId"], PartNumber=1,
                       Body=b"x" * 100)  # fmt: skip
    assert "large" not in store.items_at(here)


def test_a_process_killed_while_it_sent_finds_its_objects_again(bucket: Bucket):
    here = run(record="1")
    push(here)
    run(record="22")
    before = Notes(here)
    before.keep("record", "")
    before.save()  # it was killed before the object was there
    pull(here, of_run, is_mine=True)
    assert told(here) == {"record": "1"}, "the object has another size, so it is another"
    run(record="22")
    push(here)  # and here after it
    bucket.count("get_object")
    pull(here, of_run, is_mine=True)
    assert told(here) == {"record": "22"}
    assert bucket.count("get_object") == 0


def test_fetching_that_fails_leaves_no_half_file(bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    for number in range(3):
        bucket.own.pipe_file(f"lab/images/{number}", b"whole")
    place = Path(located("s3://lab/images"))
    real = store.filesystem(place)

    def torn(keys: list[str], files: list[str]) -> None:
        for file in files:
            Path(file).write_text("wh")
        raise ConnectionError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(real, "get", torn)
        with pytest.raises(Failed, match=r"s3://lab/images cannot be used \(cut\)"):
            pull(place)
    assert list(place.iterdir()) == []
    pull(place)
    assert told(place) == {"0": "whole", "1": "whole", "2": "whole"}
    (place / "1").write_text("broke")
    pull(place)
    assert told(place)["1"] == "whole", "images are never changed here"


@pytest.mark.parametrize("name", ["../../../../outside", "a/../../b", "a//b", "/x"])
def test_names_that_no_file_can_have_are_refused(bucket: Bucket, name: str):
    bucket.own.call_s3("put_object", Bucket="lab", Key=f"images/{name}", Body=b"x")
    with pytest.raises(ConfigError, match="no file can have that name; rename it"):
        pull(Path(located("s3://lab/images")))
    assert not [path for path in bucket.caches.rglob("*") if path.name in ("outside", "b", "x")]


def test_one_object_is_one_file(bucket: Bucket):
    bucket.own.pipe_file("lab/labels.csv", b"path,label")
    bucket.own.pipe_file("lab/labels.csv.old", b"x")
    pull(place := Path(located("s3://lab/labels.csv")))
    assert place.read_text() == "path,label"
    bucket.own.pipe_file("lab/labels.csv", b"changed")
    pull(place)
    assert place.read_text() == "changed"
    bucket.count("get_object")
    pull(place)
    assert bucket.count("get_object") == 0


def test_folders_as_consoles_make_them_are_no_files(bucket: Bucket):
    bucket.own.call_s3("put_object", Bucket="lab", Key="images/a/", Body=b"")
    bucket.own.pipe_file("lab/images/a/b", b"x")
    pull(place := Path(located("s3://lab/images")))
    assert told(place) == {"a/b": "x"}
