"""Measure views per second and core: whole batches as tensors against lightly's SimCLR transform on PIL images.

    python benchmarks/augment.py --seconds 30 --out augment.json [--images FOLDER]

Both sides make two normalised views of every image with the same settings, on one thread. They take turns in one run,
and CPU time is counted, so that other programs affect both alike. Ratios are computed for each turn; medians are
printed.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import lightly
import torch
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from eagleray.augment import View, make_views
from eagleray.runs.allocator import keep_freed_memory

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    keep_freed_memory()  # as training does
    images = _folder(arguments) if arguments.images else _clouds(arguments.batch, arguments.size)
    rows = [_compare(images, blur, arguments) for blur in (0.0, 0.5)]
    print(f"{'blur':>5}{'lightly':>12}{'exact':>12}{'fast':>12}{'exact':>10}{'fast':>10}")
    for row in rows:
        speeds = (f"{row[name]:>10,.0f}/s" for name in ("lightly", "exact", "fast"))
        print(f"{row['blur']:>5}", *speeds, f"{row['exact_ratio']:>8.1f}x {row['fast_ratio']:>8.1f}x", sep="")
    if arguments.out:
        arguments.out.write_text(json.dumps({"settings": _settings(arguments), "rows": rows}, indent=2) + "\n")


def _compare(images: torch.Tensor, blur: float, arguments: argparse.Namespace) -> dict[str, float]:
    """Return the median views per second of CPU time of each side, and the median ratios to lightly."""
    sides = _sides(images, blur, arguments.size)
    for side in sides.values():
        side()
    turns = 7
    limit = arguments.seconds / 2 / turns / len(sides)
    speeds = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            speeds[name].append(_views_a_second(side, limit))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ratios = {
        f"{name}_ratio": statistics.median(a / b for a, b in zip(speeds[name], speeds["lightly"], strict=True))
        for name in ("fast", "exact")
    }
    return {"blur": blur, **medians, **ratios}


def _sides(images: torch.Tensor, blur: float, size: int) -> dict[str, Callable[[], int]]:
    """Return the three contenders: each call makes two views of some images and returns the number of views."""
    view = View(crop=(0.08, 1.0), flip=0.5, jitter=0.5, grayscale=0.2, blur=blur)
    transform = SimCLRTransform(
        input_size=size, cj_strength=0.5, gaussian_blur=blur, normalize={"mean": list(MEAN), "std": list(STD)}
    )
    pictures = [to_pil_image(image) for image in images[:32]]
    step = iter(range(10**9))

    def ours(exact: bool) -> int:
        views = make_views((view, view), images, size=size, seed=(next(step),), mean=MEAN, std=STD, exact=exact)
        return sum(map(len, views))

    return {
        "lightly": lambda: sum(len(transform(picture)) for picture in pictures),
        "exact": lambda: ours(exact=True),
        "fast": lambda: ours(exact=False),
    }


def _views_a_second(side: Callable[[], int], seconds: float) -> float:
    views, start, end = 0, time.process_time(), time.perf_counter() + seconds
    while time.perf_counter() < end or not views:
        views += side()
    return views / (time.process_time() - start)


def _clouds(count: int, size: int) -> torch.Tensor:
    """Draw random images that are smooth with some grain, like photographs: uint8 [count, 3, size, size]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    grain = 0.05 * torch.randn(count, 3, size, size, generator=generator)
    return ((smooth + grain).clamp(0, 1) * 255).to(torch.uint8)


def _folder(arguments: argparse.Namespace) -> torch.Tensor:
    files = sorted(path for path in arguments.images.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise SystemExit(f"no image found below {arguments.images}")
    side = (arguments.size, arguments.size)
    return torch.stack(
        [pil_to_tensor(Image.open(path).convert("RGB").resize(side)) for path in files[: arguments.batch]]
    )


def _settings(arguments: argparse.Namespace) -> dict[str, str | int | float]:
    images = arguments.images.name if arguments.images else "clouds"
    versions = {"torch": torch.__version__, "lightly": lightly.__version__, "machine": platform.machine()}
    return {
        "images": images,
        "size": arguments.size,
        "batch": arguments.batch,
        "seconds": arguments.seconds,
        **versions,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to measure")
    parser.add_argument("--size", type=int, default=32, help="side of the images and of the views, in pixels")
    parser.add_argument("--batch", type=int, default=256, help="images in a batch")
    parser.add_argument("--images", type=Path, help="folder of images to use instead of random ones")
    parser.add_argument("--out", type=Path, help="where to write the numbers as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
