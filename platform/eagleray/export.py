"""What is kept of a run for use elsewhere: the trained encoder, and a few lines that load it."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from eagleray.config import Run
from eagleray.encoder import Encoder
from eagleray.method import DataInfo, Method
from eagleray.reload import reloaded

LOADER = '''\
"""Loads the encoder beside this file. It was trained by {method} on {data}.

    python load_encoder.py IMAGE ...     # prints the features of some images
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from eagleray.augment import plain
from eagleray.declared import find

NAME, SETTINGS = {name!r}, {settings!r}
SIZE, CHANNELS = {size}, {channels}
MEAN, STD = {mean!r}, {std!r}


def load_encoder() -> torch.nn.Module:
    """What turns prepared images into features: [N, {channels}, {size}, {size}] -> [N, {dim}]."""
    encoder_class = find("encoder", NAME).load()
    encoder = encoder_class(NAME, encoder_class.Config(**SETTINGS), image_size=SIZE, channels=CHANNELS)
    encoder.load_state_dict(load_file(Path(__file__).with_name("encoder.safetensors")))
    return encoder.eval()


def prepare(images: torch.Tensor) -> torch.Tensor:
    """Square images as the encoder wants them: uint8 [N, {channels}, H, H] -> float, resized and normalised."""
    return plain(images, SIZE, MEAN, STD)


def read(path: str) -> torch.Tensor:
    """The centre of an image file, uint8 [1, {channels}, {size}, {size}]."""
    image = Image.open(path).convert({mode!r})
    scale = SIZE / min(image.size)
    image = image.resize([max(SIZE, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    left, top = ((side - SIZE) // 2 for side in image.size)
    pixels = image.crop((left, top, left + SIZE, top + SIZE)).tobytes()
    return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(1, SIZE, SIZE, CHANNELS).permute(0, 3, 1, 2)


if __name__ == "__main__":
    encoder = load_encoder()
    for path in sys.argv[1:]:
        with torch.no_grad():
            print(path, *encoder(prepare(read(path)))[0].tolist())
'''


def export(run: Run, directory: Path) -> bool:
    """Writes `encoder.safetensors` and `load_encoder.py` into the artifacts of a run.

    Args:
        run: what was trained.
        directory: of the run; its newest checkpoint is taken.

    Returns:
        False where features are more than an encoder's output, so that no encoder alone gives them.

    Raises:
        Refusal: there is no checkpoint.
    """
    judged = reloaded(run, directory)
    info = judged.method.data
    probe = torch.zeros(2, info.channels, info.image_size, info.image_size)
    encoder = used_encoder(judged.method.cpu().eval(), probe)
    if encoder is None:
        return False
    artifacts = directory / "artifacts"
    artifacts.mkdir(exist_ok=True)
    weights = {name: value.contiguous() for name, value in encoder.state_dict().items()}
    unfinished = artifacts / ".encoder.safetensors"
    save_file(weights, unfinished, metadata={"encoder": run.encoder.name, "method": run.method.name})
    unfinished.replace(artifacts / "encoder.safetensors")
    (artifacts / "load_encoder.py").write_text(_loader(run, info, encoder), encoding="utf-8")
    return True


@torch.no_grad()
def used_encoder(method: Method, images: Tensor) -> Encoder | None:
    """The encoder whose output is the method's representation, which may be a teacher's; None if none is."""
    outputs: list[tuple[nn.Module, Tensor]] = []
    encoders = [module for module in method.modules() if isinstance(module, Encoder)]
    hooks = [
        each.register_forward_hook(lambda module, _, output: outputs.append((module, output))) for each in encoders
    ]
    features = method.encode(images)
    for hook in hooks:
        hook.remove()
    found = [module for module, output in outputs if torch.equal(output, features)]
    return found[0] if found and isinstance(found[0], Encoder) else None


def _loader(run: Run, info: DataInfo, encoder: Encoder) -> str:
    return LOADER.format(
        method=run.method.name,
        data=run.data.name,
        name=run.encoder.name,
        settings=run.encoder.config.model_dump(mode="json"),
        size=info.image_size,
        channels=info.channels,
        mean=tuple(info.mean),
        std=tuple(info.std),
        dim=encoder.dim,
        mode="RGB" if info.channels == 3 else "L",
    )
