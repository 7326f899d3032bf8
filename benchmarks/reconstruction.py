"""Is what is reconstructed what tells the classes? For methods that reconstruct images.

    python benchmarks/reconstruction.py FOLDER [--methods vae] [--share 0.9] [--epochs 10] [--seeds 3] [--out rows.csv]

The first principal components of the training images with 90 % of their variance (`most`) and all others (`rest`) are
looked at apart, as in Balestriero and LeCun 2024, https://arxiv.org/abs/2402.11337. A row is a run: of the labels of
all images on images that have one part only, or of a method that reconstructs, with the share of each part's variance
that its reconstructions of the validation images explain (1: all, 0: as much as the mean image does), and the linear
probe of its features. FOLDER has `train`, `val` and `test`, with images of one size in class folders.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rows import written
from sklearn.decomposition import PCA
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from eagleray.config import Run, load_run
from eagleray.data.images import Data, Images
from eagleray.loop import train
from eagleray.runs.assemble import images_of
from eagleray.runs.restore import restored

METHODS = ("denoising_autoencoder", "vae", "ebgan", "bigan")  # whose pictures have `reconstructed`
HEAD = ("run", "seed", "linear", "explained_most", "explained_rest")


@dataclass(frozen=True)
class Parts:
    """The mean of images and their first principal components."""

    mean: Tensor  # [D]
    first: Tensor  # [D, K], orthonormal

    @classmethod
    def of(cls, images: Tensor, share: float) -> "Parts":
        """Take as many components as have this share of the variance of images [N, ...]."""
        known = PCA(share, svd_solver="covariance_eigh").fit(images.flatten(1).double().numpy())
        return cls(torch.from_numpy(known.mean_), torch.from_numpy(known.components_.T))

    def split(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the part of images in these components, and the rest; the mean and both add up to the images."""
        centred = images.flatten(1).double() - self.mean
        most = centred @ self.first @ self.first.T
        return most.view(images.shape), (centred - most).view(images.shape)

    def explained(self, images: Tensor, reconstructed: Tensor) -> tuple[float, float]:
        """Return the share of the variance in both parts that reconstructions explain."""
        errors = self.split(reconstructed - images + self.mean.view(images.shape[1:]))
        most, rest = (
            1 - float(error.square().sum() / part.square().sum())
            for error, part in zip(errors, self.split(images), strict=True)
        )
        return most, rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--share", type=float, default=0.9)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    with written(a.out, *HEAD) as add, tempfile.TemporaryDirectory() as folder:
        for row in rows_of(a.folder, Path(folder), a.methods, a.share, a.epochs, a.seeds):
            add(*row)


def rows_of(
    source: Path, scratch: Path, methods: list[str], share: float, epochs: int, seeds: int
) -> Iterator[tuple[str | int | float, ...]]:
    """Train everything and yield a row for each run."""
    shared = ["data=folder", f"epochs={epochs}", "batch_size=128", "threads=1", f"evaluate.every={epochs}"]
    whole = images_of(load_run(None, [*shared, f"data.root={source}"]))
    parts = Parts.of(normalised(whole, whole.train), share)
    print(f"{parts.first.shape[1]} of {len(parts.mean)} components have {share:.0%} of the variance", file=sys.stderr)
    for which, name in enumerate(("most", "rest")):
        write_part(whole, parts, which, scratch / name)
        for seed in range(seeds):
            settings = [
                *shared,
                f"seed={seed}",
                f"data.root={scratch / name}",
                "method=supervised",
                "labels.fraction=1",
            ]
            linear = trained(load_run(None, settings), scratch / f"labels-{name}-{seed}")
            yield f"labels on {name}", seed, linear, "", ""
    for method in methods:
        for seed in range(seeds):
            directory = scratch / f"{method}-{seed}"
            run = load_run(None, [*shared, f"seed={seed}", f"data.root={source}", f"method={method}"])
            linear = trained(run, directory)
            yield method, seed, linear, *parts.explained(*reconstructions(run, directory))


def normalised(data: Data, images: Images) -> Tensor:
    """Return images as networks see them, [N, C, S, S]."""
    pixels = next(images.batches([torch.arange(len(images))]))
    assert isinstance(pixels, Tensor)
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.info.mean, data.info.std))
    return (pixels / 255 - mean) / std


def write_part(data: Data, parts: Parts, which: int, folder: Path) -> None:
    """Write a folder with one part of each image, around the mean image."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.info.mean, data.info.std))
    for name, images in (("train", data.train), ("val", data.validation), ("test", data.test)):
        assert images is not None
        assert images.labels is not None
        assert data.class_names is not None
        found = normalised(data, images)
        part = parts.split(found)[which] + parts.mean.view(found.shape[1:])
        pixels = ((part * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        for number, (image, label) in enumerate(zip(pixels, images.labels, strict=True)):
            place = folder / name / data.class_names[label] / f"{number:05d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            to_pil_image(image).save(place)


def trained(run: Run, directory: Path) -> float:
    """Train a run, and return its linear probe at the end."""
    *_, last = train(run, directory)
    return last.metrics["linear"]


@torch.no_grad()
def reconstructions(run: Run, directory: Path) -> tuple[Tensor, Tensor]:
    """Return the validation images of a finished run and their reconstructions."""
    built = restored(run, directory)
    assert built.data.validation is not None
    images = normalised(built.data, built.data.validation)
    method = built.method.eval()
    parts = [method.picture(batch)["reconstructed"] for batch in images.split(200)]
    return images, torch.cat(parts)


if __name__ == "__main__":
    main()
