"""A misspelt setting is an error for a type checker, in a method as in an encoder and a dataset."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
from eagleray.datasets.folder import Folder
from eagleray.encoders.convnet import ConvNet
from eagleray_methods.simclr import SimCLR


class Fancy(SimCLR):
    needs = frozenset({"tokens"})

    def hotter(self, encoder: ConvNet, data: Folder) -> float:
        known = self.config.temperature + encoder.config.width + len(str(data.config.root))
        return known + self.config.temperatur + encoder.config.widht + len(str(data.config.rot))


class Wrong(SimCLR):
    needs = frozenset({"token"})
"""


@pytest.mark.slow
def test_a_misspelt_setting_or_need_is_an_error_of_pyright(tmp_path: Path):
    (tmp_path / "typo.py").write_text(CODE)
    paths = [str(ROOT / "platform"), str(ROOT / "methods")]
    config = {"include": ["typo.py"], "extraPaths": paths, "typeCheckingMode": "standard"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=200)
    found = [(each["rule"], each["message"]) for each in json.loads(done.stdout)["generalDiagnostics"]]
    unknown = [message.partition("\n")[0] for rule, message in found if rule == "reportAttributeAccessIssue"]
    assert unknown == [
        f'Cannot access attribute "{name}" for class "Config"' for name in ("temperatur", "widht", "rot")
    ]
    assert [rule for rule, _ in found if rule != "reportAttributeAccessIssue"] == ["reportAssignmentType"], found
