"""Damaged files are found before anything is read from them, and one of them does not stop the others."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from eagleray.app.line import split
from eagleray.contracts.errors import Damaged, Skipped
from eagleray.contracts.files import YAML
from eagleray.runs.checkpoint import checkpoints, last_state, load_checkpoint, newest_checkpoint, save_checkpoint
from eagleray.runs.export.encoder import check_weights, write_weights
from eagleray.runs.record import Record, find_records, sound

READ: dict[str, Callable[[Path], Any]] = {
    "record.json": Record.open,
    "status.json": lambda place: Record.open(place).status,
    "run.yaml": lambda place: Record.open(place).file(),
    "data.json": lambda place: Record.open(place).data(),
    "metrics.jsonl": lambda place: Record.open(place).metrics(),
    "system.jsonl": lambda place: Record.open(place).read(file="system.jsonl"),
}


def make(directory: Path) -> Record:
    run = {"method": {"name": "simclr", "temperature": 0.2}, "seed": 1}
    record = Record.create(directory, name="a", experiment="e", params={"seed": 1}, run=run, tags={"why": "ä"})
    record.keep_data({"digest": "0" * 64, "images": 3})
    for step in range(3):
        record.append(step, {"loss": 1 / (step + 1)}, step)
        record.append(step, {"system/cpu": 1.5}, step, file="system.jsonl")
    record.finish("finished", summary={"knn": 0.75})
    return record


def damages(data: bytes, block: int) -> Iterator[bytes]:
    """Yield all flips of a bit, all cuts, and zeros in place of every block."""
    for place in range(len(data)):
        yield data[:place]
        for bit in range(8):
            yield data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
    for place in range(0, len(data), block):
        size = len(data[place : place + block])
        yield data[:place] + bytes(size) + data[place + size :]


@pytest.mark.parametrize("name", READ)
def test_no_damage_of_a_text_file_is_read(tmp_path, name):
    make(tmp_path)
    READ[name](tmp_path)
    whole, count = (tmp_path / name).read_bytes(), 0
    for data in damages(whole, 16):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(Damaged, match=rf"{name} is damaged"):
            READ[name](tmp_path)
        count += 1
    assert count > 600


def state_at(step: int) -> dict[str, Any]:
    return {"step": step, "weights": torch.randn(20_000, generator=torch.Generator().manual_seed(step))}


def random_damages(data: bytes) -> Iterator[bytes]:
    """Yield 300 flips of a bit, 100 blocks of zeros and 100 cuts."""
    draw = random.Random(0)
    for _ in range(300):
        place = draw.randrange(len(data))
        yield data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
    for _ in range(100):
        place = draw.randrange(len(data) - 4096)
        yield data[:place] + bytes(4096) + data[place + 4096 :]
    for _ in range(100):
        yield data[: draw.randrange(len(data))]


def test_no_damaged_checkpoint_is_loaded(tmp_path):
    path = save_checkpoint(tmp_path, state_at(1), keep=1)
    for data in random_damages(path.read_bytes()):
        path.write_bytes(data)
        with pytest.raises(Damaged, match=rf"{path.name} is damaged"):
            load_checkpoint(path)


def test_no_damaged_encoder_is_loaded(tmp_path):
    path = tmp_path / "encoder.safetensors"
    write_weights(path, {"weight": state_at(1)["weights"]}, {"build": "{}"})
    check_weights(path)
    for data in random_damages(path.read_bytes()):
        path.write_bytes(data)
        with pytest.raises(Damaged, match="or it is damaged"):
            check_weights(path)


def test_the_newest_checkpoint_that_is_whole_is_used_and_the_others_are_named(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, state_at(step), keep=3)
    first, second, third = checkpoints(tmp_path)
    third.write_bytes(third.read_bytes()[:1000])
    second.write_bytes(b"")
    with pytest.warns(Skipped) as said:
        assert newest_checkpoint(tmp_path) == first
    assert [str(each.message).partition(" ")[0] for each in said] == [str(third), str(second)]
    with pytest.warns(Skipped):
        assert last_state(tmp_path)["step"] == 1
    first.write_bytes(b"")
    with pytest.warns(Skipped), pytest.raises(Damaged, match=r"all checkpoints of .* are damaged: train it again"):
        last_state(tmp_path)


def test_a_step_that_is_saved_again_replaces_its_checkpoint(tmp_path):
    for step, seed in ((1, 1), (2, 2), (2, 3)):  # what a run measured of its speed differs when it is resumed
        path = save_checkpoint(tmp_path, {**state_at(seed), "step": step}, keep=2)
    assert [each.name[:14] for each in checkpoints(tmp_path)] == ["step-000000001", "step-000000002"]
    assert checkpoints(tmp_path)[-1] == path


def test_what_a_killed_process_left_of_a_checkpoint_goes_with_the_next(tmp_path):
    left = tmp_path / "checkpoints/step-000000001.4711.tmp"
    left.parent.mkdir()
    left.write_bytes(b"part")
    path = save_checkpoint(tmp_path, state_at(2), keep=2)
    assert list(left.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["record.json", "status.json"])
def test_a_damaged_neighbour_is_named_and_left_out(tmp_path, name):
    for each in "abc":
        make(tmp_path / "e" / each)
    (tmp_path / "e/b" / name).write_text("{")
    with pytest.warns(Skipped, match=rf"e/b/{name} is damaged.* It is left out") as said:
        found = find_records(tmp_path)
    assert [record.directory.name for record in found] == ["a", "c"]
    assert len(said) == 1
    shutil.rmtree(tmp_path / "e/b")
    assert len(sound([tmp_path / "e/a", tmp_path / "e/c"])) == 2


def test_a_cut_run_file_of_a_run_is_not_taken_for_a_short_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = make(tmp_path / "a").directory / "run.yaml"
    assert split(["a/run.yaml", "epochs=2"]) == (Path("a/run.yaml"), ["epochs=2"])
    file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(Damaged, match=r"a/run.yaml is damaged or was edited: .*\. Edit copies of it"):
        split(["a/run.yaml"])


def test_a_record_with_aliases_is_refused_before_they_are_followed(tmp_path: Path):
    """A digest keeps off damage, not a person who writes a new one."""
    record = make(tmp_path / "a")
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    (record.directory / "run.yaml").write_bytes(YAML.put("\n".join(lines) + "\n"))
    with pytest.raises(Damaged, match="it has aliases"):
        record.file()


def test_a_record_writes_equal_parts_out(tmp_path: Path):
    both = [1, 2]
    record = Record.create(tmp_path, name="a", experiment="e", params={}, run={"a": both, "b": both})
    assert record.file() == {"a": both, "b": both}
