"""Find the pictures there are, without importing what draws them."""

from collections.abc import Callable, Collection
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from eagleray.config.mistakes import nearest
from eagleray.contracts.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["run", "sweep"]
FOLDERS: dict[Kind, str] = {"run": "of_runs", "sweep": "of_sweeps"}


class Absent(Exception):
    """A sentence that says why a picture has nothing to show."""


class Picture(Protocol):
    """A file of `of_runs/` or `of_sweeps/`."""

    __doc__: str
    CHECK: str
    draw: "Callable[[Any], Figure]"


def names(kind: Kind) -> list[str]:
    """List the pictures of runs or of sweeps."""
    return sorted(file.stem for file in (Path(__file__).parent / FOLDERS[kind]).glob("[!_]*.py"))


def chosen(asked: Collection[str], kind: Kind) -> list[str]:
    """Return the pictures that are asked for, or all.

    Args:
        asked: names, each alone or several with commas between them.
        kind: what is drawn.

    Raises:
        ConfigError: there is no such picture; names the nearest.
    """
    known = names(kind)
    wanted = [name.strip() for text in asked for name in text.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            other: Kind = "sweep" if kind == "run" else "run"
            hint = f", which is one of {other}s" if name in names(other) else nearest(name, known)
            raise ConfigError(
                f"--only {name}: there is no such picture of a {kind}{hint} (there are: {', '.join(known)})"
            )
    return [name for name in known if name in wanted or not wanted]


def picture(name: str, kind: Kind) -> Picture:
    """Import a picture."""
    return cast(Picture, import_module(f"eagleray.pictures.{FOLDERS[kind]}.{name}"))
