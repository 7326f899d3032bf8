"""Objects of a store, through fsspec.

Of fsspec and pyarrow.fs, which Ray brings both, fsspec names the version of an object (its ETag) and can create one
only if it is absent. An object is replaced as a whole: who reads it gets the old one or the new one.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from eagleray.contracts.address import without_password
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.paths import PACKAGES, address_of
from eagleray.contracts.report import Failed

AT_ONCE = 128  # objects that are fetched together
TRIES = {"config_kwargs": {"retries": {"max_attempts": 3}}}  # botocore's default takes a minute where nothing answers
OPTIONS: dict[str, dict[str, Any]] = {"s3": TRIES, "gs": {}}
REMEDIES = {  # by the name of an error's class
    "FileNotFoundError": "create it, or correct the address",
    "PermissionError": "correct the credentials, or ask for access",
    "NoCredentialsError": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role",
}


@dataclass(frozen=True)
class Item:
    """An object, as a store lists it."""

    size: int  # bytes
    tag: str  # another one if its content is


def filesystem(path: Path) -> Any:
    """Return the file system of fsspec for the address of a copy.

    Raises:
        ConfigError: the package for such addresses is not installed.
    """
    import fsspec

    scheme = _address(path).partition(":")[0]
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False, **OPTIONS[scheme])
    except ImportError as error:
        raise ConfigError(
            f"{scheme}:// needs the package {PACKAGES[scheme]} ({error}): pip install 'eagleray[{scheme}]'"
        ) from None


def items_at(path: Path) -> dict[str, Item]:
    """List the objects at and below the address of a copy, by names relative to it; an object itself is "".

    Raises:
        Failed: the store does not answer, or refuses.
        ConfigError: an object has a name that no file can have.
    """
    own = _key(path)
    with answering(path):
        found: Mapping[str, Mapping[str, Any]] = filesystem(path).find(own, detail=True)
    names = {key: key.removeprefix(own).removeprefix("/") for key in found if not key.endswith("/")}
    if strange := [name for name in names.values() if name and not _is_relative(name)]:
        raise ConfigError(f"{address_of(path)} has an object {strange[0]!r}, and no file can have that name; rename it")
    return {name: Item(int(found[key]["size"] or 0), _tag(found[key])) for key, name in names.items()}


def fetch(path: Path, names: Iterable[str]) -> Iterator[list[str]]:
    """Bring objects to their places in a copy, each whole or not at all.

    Nothing is forced to the disk: what a power cut damages has another size, and is fetched again.

    Yields:
        The names of those that have just arrived.

    Raises:
        Failed: the store does not answer, or refuses, or the disk is full.
    """
    waiting = iter(names)
    while some := list(islice(waiting, AT_ONCE)):
        places = [path / name if name else path for name in some]
        beside = [place.with_name(f".{place.name}.{os.getpid()}") for place in places]
        try:
            with answering(path):
                for folder in {place.parent for place in places}:
                    folder.mkdir(parents=True, exist_ok=True)
                filesystem(path).get([_key(place) for place in places], [str(each) for each in beside])
                for each, place in zip(beside, places, strict=True):
                    os.replace(each, place)
        finally:
            for each in beside:
                each.unlink(missing_ok=True)
        yield some


def send(path: Path) -> None:
    """Send a file of a copy to its address.

    Raises:
        Failed: the store does not answer, or refuses.
    """
    with answering(path):
        filesystem(path).put_file(str(path), _key(path))


def remove(paths: Iterable[Path]) -> None:
    """Remove the objects of some paths of copies, if they are there.

    Raises:
        Failed: the store does not answer, or refuses.
    """
    for path in paths:
        with answering(path):
            try:
                filesystem(path).rm_file(_key(path))
            except FileNotFoundError:  # Google's store tells; another may have removed it
                continue


def read(path: Path) -> bytes:
    """Return the object at the address of a copy.

    Raises:
        Failed: it is not there, or the store does not answer, or refuses.
    """
    with answering(path):
        return filesystem(path).cat_file(_key(path))


def write(path: Path, content: bytes, *, new: bool = False) -> bool:
    """Write an object to the address of a copy, and return whether it was written.

    Args:
        path: of the copy, which stays as it is.
        content: of the object.
        new: only if there is none yet; the store decides between several who try.

    Raises:
        Failed: the store does not answer, or refuses.
    """
    with answering(path):
        try:
            filesystem(path).pipe_file(_key(path), content, **({"mode": "create"} if new else {}))
        except FileExistsError:
            return False
    return True


@contextmanager
def answering(path: Path) -> Iterator[None]:
    """Tell why the block cannot use a store, in a sentence.

    Raises:
        Failed: what the store, or its library, has raised.
    """
    try:
        yield
    except (ConfigError, Failed):
        raise
    except Exception as error:  # each library has errors of its own
        why = without_password(" ".join(str(error).split()).rstrip(".") or type(error).__name__)
        remedy = REMEDIES.get(type(error).__name__, "")
        sentence = f"{address_of(path)} cannot be used ({why}){remedy and ': '}{remedy}"
        raise Failed(sentence, "infrastructure") from error


def _is_relative(name: str) -> bool:
    """Return whether a name is that of a file below a folder, written in the only way."""
    return os.path.normpath(name) == name and not name.startswith(("/", "..")) and "\0" not in name


def _address(path: Path) -> str:
    address = address_of(path)
    assert address is not None, f"{path} is no copy"
    return address


def _key(path: Path) -> str:
    """Return bucket and name of the object of a path."""
    return _address(path).partition("://")[2]


def _tag(facts: Mapping[str, Any]) -> str:
    return str(facts.get("ETag") or facts.get("etag") or facts.get("md5Hash") or facts.get("LastModified") or "").strip(
        '"'
    )
