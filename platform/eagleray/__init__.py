"""Find the self-supervised method and settings that suit your images.

The names below are the public interface. Each is imported when it is first used, so `import eagleray` loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; `_HOMES` is the same for Python
    from eagleray.app.api import RunResult as RunResult
    from eagleray.app.api import SweepResult as SweepResult
    from eagleray.app.api import sweep as sweep
    from eagleray.app.api import train as train
    from eagleray.config import Run as Run
    from eagleray.config import Sweep as Sweep
    from eagleray.config import load_run as load_run
    from eagleray.config import load_sweep as load_sweep
    from eagleray.contracts.batch import Batch as Batch
    from eagleray.contracts.batch import DataInfo as DataInfo
    from eagleray.contracts.batch import Progress as Progress
    from eagleray.contracts.batch import StepResult as StepResult
    from eagleray.contracts.dataset import Dataset as Dataset
    from eagleray.contracts.dataset import Part as Part
    from eagleray.contracts.encoder import Encoder as Encoder
    from eagleray.contracts.encoder import TokenEncoder as TokenEncoder
    from eagleray.contracts.errors import ConfigError as ConfigError
    from eagleray.contracts.evaluator import Evaluator as Evaluator
    from eagleray.contracts.method import Method as Method
    from eagleray.contracts.metric import Metric as Metric
    from eagleray.contracts.ranges import Choice as Choice
    from eagleray.contracts.ranges import IntRange as IntRange
    from eagleray.contracts.ranges import LogUniform as LogUniform
    from eagleray.contracts.ranges import Uniform as Uniform
    from eagleray.contracts.recipe import Recipe as Recipe
    from eagleray.contracts.recipe import Recipes as Recipes
    from eagleray.contracts.report import Diverged as Diverged
    from eagleray.contracts.view import View as View
    from eagleray.runs.export.encoder import load_encoder as load_encoder

__version__ = "0.1.0"

_NAMES = {
    "app.api": "RunResult SweepResult sweep train",
    "config": "Run Sweep load_run load_sweep",
    "contracts.batch": "Batch DataInfo Progress StepResult",
    "contracts.dataset": "Dataset Part",
    "contracts.encoder": "Encoder TokenEncoder",
    "contracts.errors": "ConfigError",
    "contracts.evaluator": "Evaluator",
    "contracts.method": "Method",
    "contracts.metric": "Metric",
    "contracts.ranges": "Choice IntRange LogUniform Uniform",
    "contracts.recipe": "Recipe Recipes",
    "contracts.report": "Diverged",
    "contracts.view": "View",
    "runs.export.encoder": "load_encoder",
}
_HOMES = {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
