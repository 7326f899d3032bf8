"""From a run file to the things it names: the method with its encoder, the device, the precision."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from eagleray.config import Run, read_run
from eagleray.contracts.batch import DataInfo
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method

BF16_FLAGS = {"amx_bf16", "avx512_bf16"}  # Intel from Cooper Lake on, AMD from Zen 4 on


def fitted(run: Run, data: DataInfo) -> DataInfo:
    """What the method gets to know: the data, at the run's image and batch size, and who shares it.

    Raises:
        ConfigError: the run asks for something these images do not have.
    """
    if run.batch_size > data.samples:
        raise ConfigError(
            f"batch_size={run.batch_size} is larger than the data: {data.samples} training images "
            f"(allowed: 2 to {data.samples})"
        )
    if data.channels == 1 and run.augment.grayscale:
        raise ConfigError(f"augment.grayscale={run.augment.grayscale} does nothing: these images are grey already")
    if run.labels is not None and data.classes is None:
        raise ConfigError(
            f"method={run.method.name} needs labels, and these images have none; sort some into class folders"
        )
    size = run.image_size or data.image_size
    return replace(data, image_size=size, batch_size=run.batch_size, workers=run.workers, seed=run.seed)


def build_method(run: Run, data: DataInfo) -> Method:
    """The method with freshly initialised weights, as `run.seed` draws them; the global generator is left seeded."""
    torch.manual_seed(run.seed)
    encoder_class = run.encoder.declaration.load()
    encoder = encoder_class(
        run.encoder.name,
        run.encoder.declaration.real(run.encoder.config),
        image_size=data.image_size,
        channels=data.channels,
    )
    method_class = run.method.declaration.load()
    return method_class(encoder, run.method.declaration.real(run.method.config), data)


def blueprint(run: Run, method: Method) -> dict[str, Any]:
    """What a method was built from, as plain values that need no file beside them; checkpoints carry it."""
    return {
        "method": {"name": run.method.name, **method.config.model_dump(mode="json")},
        "encoder": {"name": method.encoder.name, **method.encoder.config.model_dump(mode="json")},
        "data": asdict(method.data),
    }


def from_blueprint(plan: Mapping[str, Any]) -> Method:
    """The same method once more, its weights freshly initialised.

    Raises:
        ConfigError: its settings are none that it has today.
    """
    run = read_run({section: plan[section] for section in ("method", "encoder")})
    return build_method(run, DataInfo(**plan["data"]))


def pick_device(wanted: str) -> torch.device:
    """`auto` is a GPU where there is one.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError("device=cuda: torch sees no GPU here; take device=auto or device=cpu")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def precision(run: Run, device: torch.device) -> AbstractContextManager:
    """What a run's forward passes are made in: bfloat16 where that pays, else as it is.

    On a CPU it also says how attention is computed: torch's fused kernel goes backward far more slowly in bfloat16 than
    in float32, the matrix products that it fuses do not.
    """
    bf16 = uses_bf16(run.precision, device)
    if device.type == "cpu":
        # These settings bear CUDA's name, and are the CPU's too.
        torch.backends.cuda.enable_flash_sdp(not bf16)
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(bf16)
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether matrix products run in bfloat16; `auto` says yes where the hardware has units for it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # On CPUs without instructions for it, bfloat16 is slower than float32.
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and not BF16_FLAGS.isdisjoint(flags.read_text().split())
