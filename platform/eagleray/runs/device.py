"""The device and the precision of a run."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from eagleray.contracts.errors import ConfigError


def pick_device(wanted: str) -> torch.device:
    """Return the device that a setting names.

    `auto` is a GPU if there is one.

    Raises:
        ConfigError: the setting asks for a GPU, and torch finds none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError("device=cuda: torch finds no GPU here; set device=auto or device=cpu")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def autocast_for(precision: str, device: torch.device) -> AbstractContextManager:
    """Return the context of a run's forward passes.

    It is bfloat16 where that is faster, else none. On a CPU it also selects the attention kernel: the backward pass of
    torch's fused kernel is far slower in bfloat16 than in float32, although the matrix products that it fuses are not.
    """
    bf16 = uses_bf16(precision, device)
    if device.type == "cpu":
        # These settings are named after CUDA, but apply to the CPU too.
        torch.backends.cuda.enable_flash_sdp(not bf16)
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(bf16)
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Return whether matrix products run in bfloat16.

    With `auto` they do if the hardware has units for it.
    """
    return precision_reason(device).startswith("bf16") if precision == "auto" else precision == "bf16"


def precision_reason(device: torch.device) -> str:
    """Return the precision that `auto` chooses, and why."""
    if device.type == "cuda":
        has_units = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16: the GPU has units for it" if has_units else "fp32: the GPU has no units for bf16"
    cpu = Path("/proc/cpuinfo")
    words = set(cpu.read_text().split()) if cpu.is_file() else set[str]()
    if "amx_bf16" in words:
        return "bf16: the CPU has amx_bf16"
    # From Zen 4 on. Intel's CPUs have the same instructions, but are faster in fp32 where a machine hides their AMX
    # (docs/performance.md).
    if {"avx512_bf16", "AuthenticAMD"} <= words:
        return "bf16: the CPU has avx512_bf16"
    return "fp32: bf16 would be slower on this CPU"
