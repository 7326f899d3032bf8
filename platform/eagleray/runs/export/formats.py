"""The formats in which an encoder is exported.

Whatever was written is loaded again by its own loader and compared with the encoder before it gets its name.
"""

import importlib.util
import json
import runpy
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from eagleray.contracts.errors import ConfigError
from eagleray.contracts.files import make_folder, place, writable
from eagleray.contracts.seeds import generator
from eagleray.runs.export.encoder import WEIGHTS, ExportedEncoder, write_weights
from eagleray.runs.export.graph import NetworkCode, network_code, traced
from eagleray.runs.export.loaders import loader

LOADER = "load_encoder.py"
ALIKE = 1e-4  # largest difference of features after the round trip, as a share of the largest feature
_CODES: dict[str, NetworkCode] = {}  # by build: the trials of a sweep often share one


def write(form: str, encoder: ExportedEncoder, folder: Path, facts: Mapping[str, str], card: str) -> list[Path]:
    """Write an encoder, its loader and its card.

    Args:
        form: one of FORMATS.
        encoder: on the CPU, in eval mode.
        folder: created if missing; files of the same names are replaced once all are complete.
        facts: plain texts to keep with the weights.
        card: the text of its README.md.

    Returns:
        The files.

    Raises:
        ConfigError: the encoder cannot be written so, or a package is missing.
        Failed: there is no room on the disk, or the folder cannot be written.
    """
    with writable(folder / LOADER), _unfinished(folder) as unfinished:
        script = FORMATS[form](encoder, unfinished, facts)
        (unfinished / LOADER).write_text(script, encoding="utf-8")
        _check(encoder, unfinished)
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        files = [path for path in sorted(unfinished.iterdir()) if path.is_file()]
        make_folder(folder)
        return [place(path, folder / path.name) for path in files]


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """Make a hidden folder on the same disk, removed at the end.

    Those that killed processes have left are removed, too.
    """
    for left in folder.glob(".export-*"):
        shutil.rmtree(left)
    there = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    with tempfile.TemporaryDirectory(prefix=".export-", dir=there, ignore_cleanup_errors=True) as unfinished:
        yield Path(unfinished)


def _check(encoder: ExportedEncoder, folder: Path) -> None:
    """Compare what was written with the encoder.

    The number of images differs from that of the example.
    """
    images = _example(encoder, 3)
    given = images.numpy() if (folder / "encoder.onnx").exists() else images
    with torch.no_grad():
        wanted = encoder(images)
        found = torch.as_tensor(runpy.run_path(str(folder / LOADER))["load"](folder)(given))
    if found.shape != wanted.shape or not (found - wanted).abs().max() <= ALIKE * wanted.abs().max().clamp(min=1):
        raise ConfigError("this network cannot be exported so: read again, it computes other features")


def _example(encoder: ExportedEncoder, count: int) -> Tensor:
    build = encoder.build
    return torch.randn(count, build.channels, build.side, build.side, generator=generator(0, count))


def _safetensors(encoder: ExportedEncoder, folder: Path, facts: Mapping[str, str]) -> str:
    network, build = encoder.encoder, encoder.build
    if (key := build.json()) not in _CODES:
        _CODES[key] = network_code(network, _example(encoder, 2))
    code = _CODES[key]
    weights = {name: value.detach().contiguous() for name, value in network.state_dict().items()}
    extra = {name: value.contiguous() for name, value in code.constants.items() if name not in weights}
    buffers = [*extra, *(name for name, _ in network.named_buffers() if name in weights)]
    metadata = {**facts, "build": key, "buffers": json.dumps(buffers), "constants": json.dumps(list(extra))}
    write_weights(folder / WEIGHTS, {**weights, **extra}, metadata)
    return loader("safetensors", build, folder, facts["eagleray"], code.text)


def _torchscript(encoder: ExportedEncoder, folder: Path, facts: Mapping[str, str]) -> str:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch would rather see torch.export; the result is checked below
        script = torch.jit.trace(encoder, _example(encoder, 2), check_trace=False)
        torch.jit.save(script, str(folder / "encoder.torchscript.pt"))
    return loader("torchscript", encoder.build, folder, facts["eagleray"])


def _onnx(encoder: ExportedEncoder, folder: Path, facts: Mapping[str, str]) -> str:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"--format onnx needs {', '.join(missing)}: pip install 'eagleray[export]'")
    program = traced(encoder, _example(encoder, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            program,
            (),
            folder / "encoder.onnx",
            input_names=["images"],
            output_names=["features"],
            external_data=False,
            verbose=False,
        )
    return loader("onnx", encoder.build, folder, facts["eagleray"])


def _timm(encoder: ExportedEncoder, folder: Path, facts: Mapping[str, str]) -> str:
    build, plan = encoder.build, encoder.encoder.as_timm()
    if plan is None:
        raise ConfigError(
            f"--format timm: timm has no network like this {build.name}; --format safetensors needs torch alone"
        )
    architecture, options, network = plan
    weights = {name: value.detach().contiguous() for name, value in network.state_dict().items()}
    (folder / "model.safetensors").write_bytes(save(weights, dict(facts)))
    side = build.side
    config: dict[str, Any] = {  # as timm itself saves a model for the hub
        "architecture": architecture,
        "num_classes": 0,
        "num_features": encoder.dim,
        "model_args": options,
        "pretrained_cfg": {
            "input_size": [build.channels, side, side],
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": build.mean,
            "std": build.std,
            "num_classes": 0,
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return loader("timm", build, folder, facts["eagleray"], constants={"ARCHITECTURE": architecture})


FORMATS: dict[str, Callable[[ExportedEncoder, Path, Mapping[str, str]], str]] = {
    "safetensors": _safetensors,
    "torchscript": _torchscript,
    "onnx": _onnx,
    "timm": _timm,
}
