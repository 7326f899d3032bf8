"""What is kept of a run for use elsewhere: the trained encoder, and a few lines that load it."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from eagleray.config import Run
from eagleray.contracts.batch import DataInfo
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.runs.restore import restored

LOADER = '''\
"""Loads the encoder beside this file. It was trained by {method} on {data}.

    python load_encoder.py IMAGE ...     # prints the features of some images
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from eagleray.augment import plain
from eagleray.data.decode import decode_all
from eagleray.data.images import batched
from eagleray.config.registry import find

NAME, SETTINGS = {name!r}, {settings!r}
SIZE, STORED, CHANNELS = {size}, {stored}, {channels}
MEAN, STD = {mean!r}, {std!r}


def load_encoder() -> torch.nn.Module:
    """What turns prepared images into features: [N, {channels}, {size}, {size}] -> [N, {dim}]."""
    encoder_class = find("encoder", NAME).load()
    encoder = encoder_class(NAME, encoder_class.Config(**SETTINGS), image_size=SIZE, channels=CHANNELS)
    encoder.load_state_dict(load_file(Path(__file__).with_name("encoder.safetensors")))
    return encoder.eval()


def prepare(images):
    """Images as the encoder wants them: uint8 -> float [N, {channels}, {size}, {size}], resized and normalised."""
    return plain(images, SIZE, MEAN, STD)


if __name__ == "__main__":
    images = batched(decode_all(sys.argv[1:], STORED, CHANNELS))
    with torch.no_grad():
        features = load_encoder()(prepare(images))
    for path, feature in zip(sys.argv[1:], features.tolist(), strict=True):
        print(path, *feature)
'''


def export(run: Run, directory: Path) -> bool:
    """Writes `encoder.safetensors` and `load_encoder.py` into the artifacts of a run.

    Args:
        run: what was trained.
        directory: of the run; its newest checkpoint is taken.

    Returns:
        False where features are more than an encoder's output, so that no encoder alone gives them.

    Raises:
        ConfigError: there is no checkpoint.
    """
    method = restored(run, directory).method
    info = method.data
    probe = torch.zeros(2, info.channels, info.image_size, info.image_size)
    encoder = used_encoder(method.cpu().eval(), probe)
    if encoder is None:
        return False
    artifacts = directory / "artifacts"
    artifacts.mkdir(exist_ok=True)
    weights = {name: value.contiguous() for name, value in encoder.state_dict().items()}
    unfinished = artifacts / ".encoder.safetensors"
    save_file(weights, unfinished, metadata={"encoder": encoder.name, "method": run.method.name})
    unfinished.replace(artifacts / "encoder.safetensors")
    (artifacts / "load_encoder.py").write_text(_loader(run, info, encoder), encoding="utf-8")
    return True


@torch.no_grad()
def used_encoder(method: Method, images: Tensor) -> Encoder | None:
    """The encoder whose output is the method's representation, which may be a teacher's; None if none is."""
    outputs: list[tuple[Any, Any]] = []
    encoders = [module for module in method.modules() if isinstance(module, Encoder)]
    hooks = [
        each.register_forward_hook(lambda module, _, output: outputs.append((module, output))) for each in encoders
    ]
    features = method.encode(images)
    for hook in hooks:
        hook.remove()
    return next((module for module, output in outputs if torch.equal(output, features)), None)


def _loader(run: Run, info: DataInfo, encoder: Encoder) -> str:
    return LOADER.format(
        method=run.method.name,
        data=run.data.name,
        name=encoder.name,
        settings=encoder.config.model_dump(mode="json"),
        size=info.image_size,
        stored=info.stored_size,
        channels=info.channels,
        mean=tuple(info.mean),
        std=tuple(info.std),
        dim=encoder.dim,
    )
