"""Paths in settings, of which some are addresses.

An address (`s3://bucket/folder`) is, in a process, the path of its copy on this machine: `s3/bucket/folder` below the
folder of copies. Either can be made from the other, on every node, so all code works with folders, and files of runs
keep the address. What the copy holds is the work of `eagleray.storage`.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

from eagleray.contracts.address import without_password
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.machine import user_cache

PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}  # schemes of addresses, and what reads them
ADDRESS = re.compile(r"([A-Za-z][\w+.-]*):/+")  # a Path has lost one of two slashes


def copies() -> Path:
    """Return the folder of copies of what lies at addresses."""
    return Path(os.path.abspath(user_cache() / "storage"))


def parses(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Mark a function that a recorded setting needs, too, to become a value (config/recorded.py)."""
    function.parses = True  # type: ignore[attr-defined]
    return function


@parses
def located(value: Any) -> Any:
    """Return the path of an address's copy on this machine, of the same type; anything else stays.

    Raises:
        ConfigError: the address holds a password, or names nothing.
    """
    match = ADDRESS.match(str(value)) if isinstance(value, str | Path) else None
    if match is None or match[1] not in PACKAGES:
        return value
    scheme, names = match[1], [name for name in str(value)[match.end() :].split("/") if name]
    address = f"{scheme}://{'/'.join(names)}"
    if without_password(address) != address or "@" in address:
        raise ConfigError(
            f"{without_password(address)}: keys and passwords belong into the environment (docs/cluster.md)"
        )
    if not names or {".", ".."} & set(names) or re.search(r"[?#\x00-\x1f]", address):
        raise ConfigError(f"{address!r} names no place of a bucket: write {scheme}://BUCKET/FOLDER")
    return type(value)(copies().joinpath(scheme, *names))


def address_of(path: Path | str) -> str | None:
    """Return the address of which a path is the copy.

    None: it is a place of its own.
    """
    path = Path(os.path.abspath(path))
    if not path.is_relative_to(copies()):
        return None
    scheme, *names = path.relative_to(copies()).parts or ("",)
    return f"{scheme}://{'/'.join(names)}" if scheme in PACKAGES and names else None


def shared(path: Path | str) -> str:
    """Return what names a place on every machine: its address, or else its path."""
    return address_of(path) or str(path)


def named(text: str) -> str:
    """Return a text for people, in which addresses stand for the paths of their copies."""
    return re.sub(rf"{re.escape(str(copies()))}/({'|'.join(PACKAGES)})/", r"\1://", text)


def expanded(path: Path | str) -> Path:
    """Return a path whose `~` or `~name` is the home folder of that user.

    Raises:
        ConfigError: there is no such user, or it is an address, for which a folder of that name would be made.
    """
    if match := ADDRESS.match(str(path)):
        possible = "folders are" if match[1] in PACKAGES else "folders, s3:// and gs:// are"
        raise ConfigError(f"{path} is an address, and here only {possible} possible; mount it, and name that place")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        name = Path(path).parts[0]
        raise ConfigError(f"{path}: there is no user {name[1:]} here; a folder of that name is ./{name}") from None


AbsolutePath = Annotated[Path, AfterValidator(expanded), AfterValidator(Path.absolute)]
Place = Annotated[  # an AbsolutePath, or the copy of an address
    Path,
    BeforeValidator(located),
    AfterValidator(expanded),
    AfterValidator(Path.absolute),
    PlainSerializer(shared, return_type=str, when_used="json"),
]
