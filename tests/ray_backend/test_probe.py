"""What a node lacks is said before the first trial, in one sentence for each thing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from ray.exceptions import GetTimeoutError, WorkerCrashedError

from eagleray.config import Run, load_run
from eagleray.contracts.errors import ConfigError
from eagleray.data.facts import Files
from eagleray.ray_backend import probe
from eagleray.ray_backend.probe import Sight, check_nodes, look


class Nodes:
    """Nodes that see what this machine sees, but for what a test changes."""

    def __init__(self, patch: pytest.MonkeyPatch, **changes: Any):
        self.changes, self.asked = changes, list[str]()
        self.names = ["first", *changes]
        known = [{"NodeID": name, "Alive": True, "Resources": {"CPU": 1}, "NodeManagerHostname": name,
                  "NodeManagerAddress": "10.0.0.1"} for name in self.names]  # fmt: skip
        gone = {"NodeID": "gone", "Alive": False, "Resources": {"CPU": 1}}
        idle = {"NodeID": "head", "Alive": True, "Resources": {"memory": 1}}
        patch.setattr(probe.ray, "nodes", lambda: [*known, gone, idle])
        patch.setattr(probe.ray, "remote", lambda **_: lambda function: self)
        patch.setattr(probe.ray, "get", lambda answer, timeout: answer())
        patch.setattr(probe, "NodeAffinitySchedulingStrategy", lambda node, soft: node)
        self.node = ""

    def options(self, scheduling_strategy: str) -> "Nodes":
        self.node = scheduling_strategy
        return self

    def remote(self, needed: list[dict[str, Any]], note: str) -> Any:
        self.asked.append(self.node)
        change = self.changes.get(self.node)
        seen = look(needed, "/nowhere/note" if change == "storage" else note)

        def answered() -> Sight | str:
            if isinstance(change, Exception):
                raise change
            return change if isinstance(change, str) and change != "storage" else replace(seen, **change or {})

        return answered if change != "storage" else lambda: seen


def run_of(*more: str) -> Run:
    return load_run(None, ["data.limit=64", "batch_size=16", *more])


def refused(runs: list[Run], directory: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_nodes(runs, directory)
    return str(caught.value).splitlines()


def test_nodes_that_see_the_same_are_asked_once_each_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    nodes = Nodes(monkeypatch, second={})
    check_nodes([run_of(), run_of("seed=1"), run_of("method=byol")], tmp_path / "sweep")
    assert nodes.asked == ["first", "second"], "neither those that are gone nor those that run nothing"
    assert list((tmp_path / "sweep").iterdir()) == []


def test_every_lack_is_one_sentence_with_its_nodes_and_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    versions = look([], str(tmp_path)).versions
    old = {"versions": {**versions, "torch": "2.9.0"}}
    bare = "eagleray cannot be imported (No module named 'eagleray'): install it"
    failing = {"hung": GetTimeoutError(), "crashed": WorkerCrashedError()}
    Nodes(monkeypatch, old=old, older=old, far="storage", bare=bare, **failing)
    lines = refused([run_of()], tmp_path / "sweep")
    assert len(lines) == 5
    assert lines[0] == (
        f"torch is 2.9.0, and {versions['torch']} where this starts: install the same "
        "(on node old 10.0.0.1, node older 10.0.0.1)"
    )
    assert lines[1] == (
        f"{tmp_path}/sweep is not the folder of that name where this starts: set tracking.runs to a folder that all "
        "machines share (on node far 10.0.0.1)"
    )
    assert lines[2].startswith("eagleray cannot be imported")
    assert lines[3].startswith("no answer in 120 seconds")
    assert lines[4].startswith("the node cannot run a task")
    assert list((tmp_path / "sweep").iterdir()) == []


def test_other_images_on_a_node_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("L", (8, 8), number).save(tmp_path / f"images/{name}/{number}.png")
    run = run_of("data=folder", f"data.root={tmp_path}/images")
    (source, files), *_ = look([run.file()], "x").files.items()
    assert files.count == 40
    Nodes(monkeypatch, fewer={"files": {source: Files(39, "x")}}, other={"files": {source: Files(40, "x")}},
          none={"lacks": ("data.root=/x does not exist",)})  # fmt: skip
    fewer, other, none = refused([run], tmp_path / "sweep")
    assert fewer.startswith(f"data=folder {tmp_path}/images has 39 files, and 40 where this starts")
    assert other.startswith(f"data=folder {tmp_path}/images has other files than where this starts")
    assert none == "data.root=/x does not exist (on node none 10.0.0.1)"
    (tmp_path / "images/a/0.png").write_bytes(b"shorter")
    assert look([run.file()], "x").files[source] != files


def test_a_machine_says_what_it_does_not_have(tmp_path: Path):
    absent = run_of("data=folder", f"data.root={tmp_path}").file()
    absent["data"]["root"] = "/nowhere"
    plugin = run_of().file()
    plugin["method"] = {"name": "nobodys_lab.fancy"}
    lacks = look([absent, plugin], "/nowhere/note").lacks
    assert "data.root=/nowhere does not exist" in lacks
    assert any("nobodys_lab.fancy" in each for each in lacks)
    assert look([], "/nowhere/note").note is None
