"""The floors under every comparison: the same encoder before any training, and the raw pixels."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from eagleray.config import Run
from eagleray.runs.assemble import assemble

LARGEST = 32  # side in pixels to which raw images are shrunk: distances between larger ones cost much and say no more


@dataclass(frozen=True)
class Floor:
    """Something untrained to be measured like a trained run."""

    name: str  # "random init convnet digits", "raw pixels digits"
    run: Run  # whose data and encoder it takes
    raw: bool

    def measure(self) -> dict[str, float]:
        """What needs no trained method: kNN, linear probe, spread and pairs; on the test part too."""
        built = assemble(self.run)
        encode: Callable[[Tensor], Tensor] = pixels if self.raw else built.method.eval().encode
        return built.evaluation.judge(encode, built.autocast, test=True)


def floors(runs: Iterable[Run]) -> Iterator[Floor]:
    """The floors of some runs: pixels once for each data and image size, untrained encoders once for each of these."""
    seen: dict[str, set[str]] = {}  # name -> what is measured under it
    for run in runs:
        file, start = run.file(), run.encoder.declaration.load().start
        for words, keys in (("raw pixels", ("data",)), (start, ("encoder", "data"))):
            what = json.dumps([file[key] for key in (*keys, "image_size")])
            name = " ".join([words, *(file[key]["name"] for key in keys)])
            kinds = seen.setdefault(name, set())
            if what not in kinds:
                kinds.add(what)
                number = f" {len(kinds)}" if len(kinds) > 1 else ""
                yield Floor(name + number, run, raw=words == "raw pixels")


def pixels(images: Tensor) -> Tensor:
    """Images as their own features, shrunk to 32 pixels a side where larger: [N, C, H, W] -> [N, C * h * w]."""
    if max(images.shape[-2:]) > LARGEST:
        images = adaptive_avg_pool2d(images, LARGEST)
    return images.flatten(1)
