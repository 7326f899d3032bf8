"""Hostile images: refused in a sentence, or left out and counted."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from eagleray.config.registry import find
from eagleray.config.sections import DataSettings
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.visible import visible
from eagleray.data.archive import open_archive
from hostile.images import HARMLESS, KINDS, noise
from hostile.watched import watched

CASES = [(kind, mode) for kind in KINDS for mode in ("error", "skip")]
GOOD = 6


def test_all_of_the_audit_are_here():
    assert (len(KINDS), len(CASES)) == (31, 62)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "root"
    subprocess.run(["rm", "-r", tmp_path / "root"], check=True)  # pytest cannot remove folders that are so deep


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("kind", "mode"), CASES)
def test_an_image_is_refused_or_left_out(tmp_path: Path, root: Path, kind: str, mode: str):
    cache = tmp_path / "cache"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(GOOD // 2):
            noise().save(root / name / f"{number}.png")
    KINDS[kind](root / "cat")
    before = sorted(os.listdir(root / "cat"))
    said, archive = "", None
    with watched(cache) as result:
        dataset = find("data", "folder").load()(
            "folder", find("data", "folder").Config(root=root, bad_images=mode, labels="folders")
        )
        try:
            archive = open_archive(dataset, DataSettings(cache=cache))
        except ConfigError as error:
            said = str(error)
    result.check()
    assert sorted(os.listdir(root / "cat")) == before
    assert not (root / "cat" / "canary").exists()
    if mode == "error" and kind not in HARMLESS:
        assert "1 of 7 files cannot be read as images: " in visible(said)
        assert visible(said).count("\n") == 0
        assert "\x1b" not in visible(said)
        return
    assert said == ""
    assert archive is not None
    assert archive.about.skipped == (kind not in HARMLESS)
    assert sum(map(len, archive.rows.values())) == GOOD + (kind == "1,200 folders in each other")
