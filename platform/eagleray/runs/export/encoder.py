"""The trained encoder of a run, from its checkpoint or from the file that was exported."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from eagleray.augment import evaluation_view
from eagleray.augment.copies import mean_over_copies
from eagleray.config.recorded import settings_of
from eagleray.config.registry import find
from eagleray.contracts.batch import DataInfo
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError, Damaged
from eagleray.contracts.files import DIGITS, digest
from eagleray.contracts.method import Method
from eagleray.contracts.ragged import Ragged
from eagleray.data.decode import decode_all
from eagleray.data.images import batched
from eagleray.runs.restore import newest_method

WEIGHTS = "encoder.safetensors"
NO_DIGEST = "0" * DIGITS  # in its place while the digest is computed


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
    encoded_size: int | None = None  # side of the images that it encodes; None: image_size, for which it was built
    mirrored: bool = False  # features are the mean over an image and its mirror image,
    shift: int = 0  # and over copies of them moved by that many pixels in four directions

    @property
    def side(self) -> int:
        """Side in pixels of the images that it encodes."""
        return self.encoded_size or self.image_size

    @classmethod
    def of(cls, encoder: Encoder, info: DataInfo) -> "Build":
        """Describe an encoder and the images it was trained on."""
        settings = encoder.config.model_dump(mode="json")
        return cls(
            name=encoder.name,
            settings=settings,
            image_size=info.image_size,
            stored_size=info.stored_size,
            channels=info.channels,
            mean=tuple(info.mean),
            std=tuple(info.std),
            encoded_size=info.encoded_size,
            mirrored=info.mirrored,
            shift=info.shift,
        )

    def json(self) -> str:
        return json.dumps(asdict(self))


class ExportedEncoder(nn.Module):
    """A trained encoder in eval mode.

    Prepared images [N, C, S, S] -> features [N, dim].
    """

    def __init__(self, encoder: Encoder, build: Build):
        super().__init__()
        self.encoder, self.build, self.dim = encoder, build, encoder.dim

    def forward(self, images: Tensor) -> Tensor:
        """Encode prepared images: float [N, C, S, S] -> [N, dim]."""
        return mean_over_copies(self.encoder, images, self.build.mirrored, self.build.shift)

    def prepare(self, images: Tensor | Ragged) -> Tensor:
        """Prepare images as evaluation does.

        They are resized, cut and normalised: uint8 [N, C, H, W] -> float [N, C, S, S].
        """
        return evaluation_view(images, self.build.side, self.build.mean, self.build.std)

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
        Damaged: the file is not as it was written.
    """
    place = Path(place)
    files = [place / WEIGHTS, place / "artifacts" / WEIGHTS, place]
    file = next((each for each in files if each.is_file()), None)
    if file is None:
        raise ConfigError(
            f"{place} has no {WEIGHTS}: name a finished run or its artifacts; of a sweep with keep=best only the best "
            "have one, and `eagleray export RUN` writes it"
        )
    check_weights(file)
    try:
        with safe_open(file, "pt") as opened:
            facts = opened.metadata()
            build, extra = Build(**json.loads(facts["build"])), json.loads(facts["constants"])
            names = [name for name in opened.keys() if name not in extra]  # noqa: SIM118 - no mapping
            weights = {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is not an encoder that Eagleray exported: {error!r}") from None
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then replaced: keep the caller's generator
        encoder_class = find("encoder", build.name).load()
        config = settings_of(encoder_class.Config, build.settings)
        encoder = encoder_class(build.name, config, image_size=build.image_size, channels=build.channels)
    encoder.load_state_dict(weights)
    return ExportedEncoder(encoder, build).eval()


def write_weights(path: Path, weights: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write a safetensors file that holds a digest of itself."""
    data = save(dict(weights), {**facts, "digest": NO_DIGEST})  # save_file would make it private to its owner
    path.write_bytes(data.replace(_entry(NO_DIGEST), _entry(digest(data)), 1))


def check_weights(path: Path) -> None:
    """Check that a file is as `write_weights` wrote it.

    Raises:
        Damaged: it is not.
    """
    data = path.read_bytes()
    found = re.search(_entry(f"([0-9a-f]{{{DIGITS}}})"), data)
    if found is None or digest(data.replace(found[0], _entry(NO_DIGEST), 1)) != found[1].decode():
        raise Damaged(f"{path} is not an encoder that Eagleray exported, or it is damaged: export it again")


def _entry(value: str) -> bytes:
    """Return the text of a digest in the header of a safetensors file."""
    return f'"digest":"{value}"'.encode()


def trained_encoder(directory: Path) -> tuple[ExportedEncoder, DataInfo] | None:
    """Return the encoder of a run's newest checkpoint, on the CPU.

    What its method was told of the images is returned too. Return None if the method's features are not the output of
    one of its encoders.

    Raises:
        ConfigError: there is no checkpoint, or it does not fit.
    """
    method = newest_method(directory)
    info = method.data
    encoder = used_encoder(method, torch.zeros(2, info.channels, info.side, info.side))
    return None if encoder is None else (ExportedEncoder(encoder, Build.of(encoder, info)).eval(), info)


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
