"""Is it the dictionary or the code? For the methods that learn a dictionary of image patches.

    python benchmarks/dictionaries.py FOLDER [--seeds 2] [--out rows.csv]

Dictionaries of 400 entries, from sparse coding and k-means trained with their small recipes, from patches of training
images and from random directions, code the same whitened patches: by triangles, and shrunk products, whose signs are
dropped or kept apart (Coates and Ng 2011, The Importance of Encoding Versus Training with Sparse Coding and Vector
Quantization). Products are of entries of length 1, and are shrunk by 0.5; both signs have twice as many features.
Triangles have entries of any length. A row is the linear probe and kNN of one of each, codes summed over quadrants.
FOLDER has `train`, `val` and `test`, with images in class folders.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import torch
from rows import written
from torch import Tensor
from torch.nn import functional as F

from eagleray.blocks.patch_codes import PatchCodes, full_precision, layer_of, shrink, signs_apart
from eagleray.blocks.patch_features import image_patches, positions, quadrant_sums, triangle_codes
from eagleray.config import load_run
from eagleray.contracts.seeds import generator
from eagleray.loop import train
from eagleray.runs.assemble import Assembly
from eagleray.runs.restore import restored
from eagleray_methods.sparse_coding import SparseCoding

METHODS = ("sparse_coding", "kmeans_features")
THRESHOLD = 0.5
Code = Callable[[Tensor, Tensor], Tensor]  # patches [N, P, D], entries [K, D] -> [N, P, codes]
CODES: dict[str, Code] = {
    "triangle": triangle_codes,
    "shrunk, without sign": lambda patches, entries: shrunk(patches, entries).abs(),
    "shrunk, both signs": lambda patches, entries: signs_apart(shrunk(patches, entries)),
}


def shrunk(patches: Tensor, entries: Tensor) -> Tensor:
    """Shrink products with entries of length 1, [N, P, D], [K, D] -> [N, P, K]."""
    return shrink(patches @ F.normalize(entries, dim=1).T, torch.tensor(THRESHOLD))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    head = ("dictionary", "code", "seed", "linear", "knn")
    with written(a.out, *head) as add, tempfile.TemporaryDirectory() as scratch:
        for seed in range(a.seeds):
            settings = ["data=folder", f"data.root={a.folder}", f"epochs={a.epochs}", "batch_size=128", "threads=1"]
            settings += [f"seed={seed}", f"evaluate.every={a.epochs}", "evaluate.protocols=[knn,linear]"]
            for dictionary, code, *values in rows_of(settings, Path(scratch), seed):
                add(dictionary, code, seed, *values)


def rows_of(settings: list[str], scratch: Path, seed: int) -> Iterator[tuple[str, str, float, float]]:
    """Train, and yield the linear probe and kNN of every dictionary with every code."""
    sparse, grouped = (trained([*settings, f"method={name}"], scratch / f"{name}-{seed}") for name in METHODS)
    layer, draw = layer_of(sparse.method.encoder), generator(seed, purpose="dictionaries")
    assert isinstance(sparse.method, SparseCoding)
    width, inputs = layer.dictionary.shape
    # K-means is fitted to the patches that sparse coding whitens with: both have the same whitening.
    torch.testing.assert_close(layer.whitening, layer_of(grouped.method.encoder).whitening)
    dictionaries = {
        "sparse coding": sparse.method.decoder.weight.detach().T,
        "k-means": layer_of(grouped.method.encoder).dictionary.detach(),
        "patches": patches_of(sparse, width, draw),
        "random directions": F.normalize(torch.randn(width, inputs, generator=draw), dim=1).to(layer.dictionary),
    }
    for (name, entries), (code, function) in product(dictionaries.items(), CODES.items()):
        encode = partial(summed, layer, entries, function)
        found = sparse.evaluation.measure(encode, sparse.autocast, test=False)
        yield name, code, found["linear"], found["knn"]


def trained(settings: list[str], directory: Path) -> Assembly:
    """Train a run, and restore it."""
    run = load_run(None, settings)
    for _ in train(run, directory):
        pass
    return restored(run, directory)


@torch.no_grad()
def patches_of(built: Assembly, count: int, draw: torch.Generator) -> Tensor:
    """Draw a whitened patch of each of some training images, [count, D]."""
    layer, images = layer_of(built.method.encoder), built.data.train
    chosen = torch.randperm(len(images), generator=draw)[:count]
    normalised = (built.loader.evaluation_view(batch) for batch in images.batches(chosen.split(64)))
    return torch.cat([layer.draw(batch, 1, draw)[:, 0] for batch in normalised])


def summed(layer: PatchCodes, entries: Tensor, code: Code, images: Tensor) -> Tensor:
    """Code an image's patches, and sum over its quadrants, [N, C, H, W] -> [N, 4 * K]."""
    with full_precision(images):
        pixels = layer.pixels(images)
        patches = layer.whitened(image_patches(pixels, layer.side))
        return quadrant_sums(patches, positions(pixels, layer.side), lambda each: code(each, entries))


if __name__ == "__main__":
    main()
