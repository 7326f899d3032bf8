"""The names of timm's networks, read from its source.

Importing timm imports torch, which takes seconds.
"""

import importlib.util
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

VITS = ("vision_transformer", "deit")  # files whose networks are plain ViTs, with patches that methods may mask
_ENTRY = re.compile(r"^@register_model\s*\ndef (\w+)\(", re.MULTILINE)


def timm_family(name: str) -> str | None:
    """Return the encoder that builds a network of timm.

    It is `timm`, `vit_tiny` for a plain ViT, or None if timm has no such network.
    """
    file = timm_names().get(name)
    if file is None:
        return None
    return "vit_tiny" if file in VITS and "distilled" not in name else "timm"


@cache
def timm_names() -> Mapping[str, str]:
    """Return timm's networks: name -> file that defines it."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None, "timm is one of our dependencies"
    assert spec.origin is not None
    files = sorted(Path(spec.origin).parent.glob("models/*.py"))
    return {name: file.stem for file in files for name in _ENTRY.findall(file.read_text(encoding="utf-8"))}
