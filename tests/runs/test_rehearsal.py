"""Before a sweep starts, its images are opened once and its networks are built."""

from pathlib import Path
from typing import Any

import pytest

from eagleray.app.plugin import write
from eagleray.config import Sweep, validated
from eagleray.contracts.errors import ConfigError
from eagleray.runs import assemble
from eagleray.runs.preflight import check_sweep, planned
from eagleray.runs.rehearsal import longest, rehearse

RUN = {"data": {"limit": 64}, "batch_size": 16, "encoder": {"width": 4}}


def test_images_are_opened_once_for_all_runs(monkeypatch: pytest.MonkeyPatch):
    opened: list[Any] = []
    load = assemble.load_data
    monkeypatch.setattr(assemble, "load_data", lambda *given: opened.append(given) or load(*given))
    varied = {"method.temperature": [0.1, 0.2], "data.validation": [0.1, 0.2]}
    sweep = validated(Sweep, {"name": "s", "run": RUN, "vary": varied, "seeds": 2})
    assert len(rehearse(sweep, planned(sweep))) == len(opened) == 2


def test_a_sweep_of_steps_knows_its_epochs_from_the_images():
    vary = {"steps": [5, 9]}
    sweep = validated(Sweep, {"name": "s", "run": RUN, "vary": vary, "scheduler": "asha", "grace": 2})
    runs = planned(sweep)
    assert longest(runs) == 3, "an epoch of 64 images has four steps of 16"
    assert check_sweep(sweep) == runs
    late = validated(Sweep, {**sweep.model_dump(mode="json"), "grace": 3})
    for check in (check_sweep, lambda sweep: rehearse(sweep, runs)):
        with pytest.raises(ConfigError, match=r"grace=3 is longer than a trial: run\.steps=5 end in epoch 2"):
            check(late)


def test_a_method_may_have_lists_of_settings(tmp_path: Path):
    file = tmp_path / "fancy.py"
    write("method", file)
    file.write_text(
        file.read_text().replace("    config: Config\n", "        widths: list[int] = [16, 8]\n\n    config: Config\n")
    )
    tree = {"name": "s", "run": {**RUN, "method": {"name": str(file)}}, "vary": {"optimizer.lr": [0.1, 0.2]}}
    sweep = validated(Sweep, tree)
    assert planned(sweep)[0].method.config.model_dump()["widths"] == [16, 8]
    assert len(rehearse(sweep, planned(sweep))) == 1
