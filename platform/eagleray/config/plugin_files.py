"""Files of a user's own, named by their path: `method=./fancy.py`, or `./fancy.py:Fancy` where a file has several."""

import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from types import ModuleType

from eagleray.config.source import Source
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.paths import expanded

HERE = "EAGLERAY_HERE"  # environment variable: the working directory of the driver, for workers on other machines
_PATTERN = re.compile(r"(?P<path>.+\.py)(?::(?P<name>\w+))?")
_JOB = re.compile(r".*/_ray_pkg_[0-9a-f]+/")  # a folder that Ray makes of the files of a job, named by their digest


@dataclass(frozen=True)
class PluginFile:
    """A Python file, and the class in it that is meant."""

    path: Path  # absolute, so that every process and every later run finds it
    class_name: str | None = None  # None: the only one

    @classmethod
    def of(cls, name: str) -> "PluginFile | None":
        """Return the file that a name means; None: the name is no path."""
        match = _PATTERN.fullmatch(name)
        return match and cls(_at_hand(Path(os.path.abspath(expanded(match["path"])))), match["name"])

    def __str__(self) -> str:
        return str(self.path) if self.class_name is None else f"{self.path}:{self.class_name}"

    @property
    def title(self) -> str:
        """A short name for tables and folders."""
        return self.class_name or self.path.stem

    @property
    def source(self) -> Source:
        """The source as the file is now.

        Raises:
            ConfigError: the file is gone.
            SyntaxError: it is not Python.
        """
        return _source(self.path, self.changed)

    @property
    def module(self) -> ModuleType:
        """The imported file.

        Raises:
            ConfigError: the file is gone, or importing it fails.
        """
        return _module(self.path, self.changed)

    @property
    def changed(self) -> int:
        """When the file was changed, in nanoseconds since 1970.

        Raises:
            ConfigError: the file is gone.
        """
        try:
            return self.path.stat().st_mtime_ns
        except OSError:
            message = f"there is no file {self.path}; put it back where it was, or name another"
            raise ConfigError(message) from None


def _at_hand(path: Path) -> Path:
    """Return a file's place now: that of an earlier job lies in the folder of this one, or where one works now.

    A job that is sent again, to continue, has another folder as soon as any file in it has changed.
    """
    job, here = _JOB.match(str(path)), os.environ.get(HERE) or os.getcwd()
    if job is None or not (_JOB.match(f"{here}/") or not path.exists()):
        return path
    same = Path(here, str(path)[job.end() :])
    return same if same.exists() else path


@contextmanager
def here_importable() -> Iterator[None]:
    """Let modules be imported from the working directory, after all others, inside the block.

    Not longer, because many packages try to import what may not be installed: in a folder of downloaded images, a file
    of that name would be run. On a cluster, the working directory of the driver counts too (see HERE).
    """
    places = [os.getcwd(), os.environ.get(HERE, "")]
    added = [place for place in dict.fromkeys(places) if place and place not in sys.path]
    sys.path += added
    try:
        yield
    finally:
        for place in added:
            sys.path.remove(place)


def import_file(name: str, path: Path) -> ModuleType:
    """Import a file as the module of this name."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _source(path: Path, _: int) -> Source:
    return Source(_module_name(path), path)


@cache
def _module(path: Path, _: int) -> ModuleType:
    try:
        return import_file(_module_name(path), path)
    except Exception as error:
        raise ConfigError(f"{place_in(path, error)}: {type(error).__name__}: {error}") from error


def place_in(path: Path, error: BaseException) -> str:
    """Return the last line of a file that an error passed, as text."""
    lines = [each.lineno for each in traceback.extract_tb(error.__traceback__) if each.filename == str(path)]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def _module_name(path: Path) -> str:
    """Return a name that no other file has."""
    stem = re.sub(r"\W", "_", path.stem)
    return f"_file_{blake2b(os.fsencode(path), digest_size=6).hexdigest()}_{stem}"
