"""Addresses in settings: each is the path of its copy here, and run files keep the address."""

from pathlib import Path

import pytest

from eagleray.config import load_run, read_run
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.paths import address_of, copies, located, named, shared


def test_an_address_and_the_path_of_its_copy_are_made_from_each_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    for text in ("s3://lab/runs/a", "s3://lab//runs/a/", Path("s3://lab/runs/a")):
        path = Path(located(text))
        assert path == Path("/cache/eagleray/storage/s3/lab/runs/a")
        assert address_of(path) == shared(path) == "s3://lab/runs/a"
    assert address_of(located("gs://lab")) == "gs://lab"
    for text in ("runs", "/runs", "http://host/x", "auto"):
        assert located(text) == text
        assert address_of(text) is None
        assert shared(text) == text
    assert address_of(copies()) is address_of(copies() / "s3") is address_of(copies() / "other/lab") is None
    assert named(f"{path}/x is in {copies()}/gs/lab") == "s3://lab/runs/a/x is in gs://lab"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("s3://", "names no place of a bucket: write s3://BUCKET/FOLDER"),
        ("gs:///", "names no place of a bucket: write gs://BUCKET/FOLDER"),
        ("s3://lab/../../x", "names no place"),
        ("s3://lab/a?versionId=1", "names no place"),
        ("s3://me:key@lab/x", "keys and passwords belong into the environment"),
        ("s3://lab/x?token=key", "keys and passwords belong into the environment"),
        ("http://host/x", "is an address, and here only folders, s3:// and gs:// are possible"),
        ("file:///x", "is an address"),
    ],
)
def test_addresses_that_name_nothing_or_too_much_are_refused(address: str, said: str):
    for key in ("tracking.runs", "data.root"):
        with pytest.raises(ConfigError, match=key) as refused:
            load_run(None, ["data=folder", "data.root=x", f"{key}={address}"])
        assert said in str(refused.value)
        assert "key@" not in str(refused.value)
    with pytest.raises(ConfigError, match="is an address"):
        load_run(None, ["data.cache=s3://lab/cache"])


def test_run_files_keep_addresses_and_give_them_back_on_any_machine(monkeypatch: pytest.MonkeyPatch):
    words = ["data=folder", "data.root=s3://lab/images", "data.labels=s3://lab/labels.csv",
             "tracking.runs=s3://lab/runs", "encoder=pretrained", "encoder.run=gs://lab/runs/e/r"]  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", "/one")
    run = load_run(None, words)
    file = run.file()
    assert [file["data"]["root"], file["data"]["labels"], file["tracking"]["runs"], file["encoder"]["run"]] == [
        word.partition("=")[2] for word in words if "://" in word
    ]
    assert read_run(file) == run
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert read_run(file).tracking.runs == "/two/eagleray/storage/s3/lab/runs"
    assert read_run(file).file() == file
