"""Export the trained encoder of a run.

A short script that loads it is written too.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from eagleray.augment import evaluation_view
from eagleray.config import Run
from eagleray.config.recorded import settings_of
from eagleray.config.registry import find
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.contracts.ragged import Ragged
from eagleray.data.decode import decode_all
from eagleray.data.images import batched
from eagleray.runs.restore import restored

WEIGHTS = "encoder.safetensors"
LOADER = '''\
"""Load the encoder in the folder of this file.

    python load_encoder.py IMAGE ...     # prints the features of some images
"""

import sys
from pathlib import Path

import torch

from eagleray import load_encoder

encoder = load_encoder(Path(__file__).parent)

if __name__ == "__main__":
    with torch.no_grad():
        features = encoder(encoder.read(sys.argv[1:]))
    for path, feature in zip(sys.argv[1:], features.tolist(), strict=True):
        print(path, *feature)
'''


@dataclass(frozen=True)
class Build:
    """What an exported encoder is built from.

    It is stored as JSON in the metadata of the weights.
    """

    name: str
    settings: dict[str, Any]
    image_size: int
    stored_size: int  # the shorter side that image files are reduced to before they are resized and cut
    channels: int
    mean: tuple[float, ...]  # of each channel, images scaled to 0..1
    std: tuple[float, ...]


class ExportedEncoder(nn.Module):
    """A trained encoder in eval mode.

    Prepared images [N, C, S, S] -> features [N, dim].
    """

    def __init__(self, encoder: Encoder, build: Build):
        super().__init__()
        self.encoder, self.build, self.dim = encoder, build, encoder.dim

    def forward(self, images: Tensor) -> Tensor:
        """Encode prepared images: float [N, C, S, S] -> [N, dim]."""
        return self.encoder(images)

    def prepare(self, images: Tensor | Ragged) -> Tensor:
        """Prepare images as evaluation does.

        They are resized, cut and normalised: uint8 [N, C, H, W] -> float [N, C, S, S].
        """
        return evaluation_view(images, self.build.image_size, self.build.mean, self.build.std)

    def read(self, paths: Sequence[str | Path]) -> Tensor:
        """Read and prepare image files: float [N, C, S, S].

        Raises:
            ConfigError: a file cannot be read.
        """
        images = decode_all([str(path) for path in paths], self.build.stored_size, self.build.channels)
        return self.prepare(batched(images))


def load_encoder(place: Path | str) -> ExportedEncoder:
    """Load the encoder that a finished run exported.

    It is on the CPU and in eval mode.

    Args:
        place: the directory of the run, its artifacts, or the file `encoder.safetensors` itself.

    Raises:
        ConfigError: there is no such encoder, or it cannot be built.
    """
    place = Path(place)
    files = [place / WEIGHTS, place / "artifacts" / WEIGHTS, place]
    file = next((each for each in files if each.is_file()), None)
    if file is None:
        raise ConfigError(f"{place} has no {WEIGHTS}; name the directory of a finished run, or its artifacts")
    try:
        with safe_open(file, "pt") as opened:
            build = Build(**json.loads(opened.metadata()["build"]))
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is not an encoder that Eagleray exported: {error!r}") from None
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then replaced: keep the caller's generator
        encoder_class = find("encoder", build.name).load()
        config = settings_of(encoder_class.Config, build.settings)
        encoder = encoder_class(build.name, config, image_size=build.image_size, channels=build.channels)
    encoder.load_state_dict(weights)
    return ExportedEncoder(encoder, build).eval()


def export(run: Run, directory: Path) -> bool:
    """Export a run's encoder into its artifacts.

    The files are `encoder.safetensors` and `load_encoder.py`.

    Args:
        run: the trained run.
        directory: of the run; its newest checkpoint is exported.

    Returns:
        False if nothing was exported: the method's features are not the output of one of its encoders.

    Raises:
        ConfigError: there is no checkpoint.
    """
    method = restored(run, directory).method
    info = method.data
    probe = torch.zeros(2, info.channels, info.image_size, info.image_size)
    encoder = used_encoder(method.cpu().eval(), probe)
    if encoder is None:
        return False
    settings = encoder.config.model_dump(mode="json")
    build = Build(
        encoder.name, settings, info.image_size, info.stored_size, info.channels, tuple(info.mean), tuple(info.std)
    )
    artifacts = directory / "artifacts"
    artifacts.mkdir(exist_ok=True)
    weights = {name: value.contiguous() for name, value in encoder.state_dict().items()}
    unfinished = artifacts / f".{WEIGHTS}"
    metadata = {"method": run.method.name, "data": run.data.name, "build": json.dumps(asdict(build))}
    save_file(weights, unfinished, metadata=metadata)
    unfinished.replace(artifacts / WEIGHTS)
    (artifacts / "load_encoder.py").write_text(LOADER, encoding="utf-8")
    return True


@torch.no_grad()
def used_encoder(method: Method, images: Tensor) -> Encoder | None:
    """Return the encoder that gives the method's representation.

    It may be a teacher's. Return None if the representation is no encoder's output.
    """
    outputs: list[tuple[Any, Any]] = []
    encoders = [module for module in method.modules() if isinstance(module, Encoder)]
    hooks = [
        each.register_forward_hook(lambda module, _, output: outputs.append((module, output))) for each in encoders
    ]
    features = method.encode(images)
    for hook in hooks:
        hook.remove()
    return next((module for module, output in outputs if torch.equal(output, features)), None)
