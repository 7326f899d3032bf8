"""Gather the files that a submitted job needs into one archive.

What a cluster must not have or does not need is left out and named: secrets, results, caches, files that are large.
"""

import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from eagleray.contracts.errors import ConfigError

MIB = 2**20
LARGEST = 10 * MIB  # bytes of a file
MOST = 100 * MIB  # bytes of all together
NAMED = 12  # files of a folder that are listed one by one
CACHES = ("__pycache__", "node_modules", "*.pyc", "*.egg-info")
MLFLOW = ("mlflow.db*", "basic_auth.db*", "mlruns", "mlartifacts")
SECRETS = ("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.pem", "*.key", "*.ppk", "*.p12", "*.pfx", "*.jks",
           "*.kdbx", "*.gpg", "*.env", "*credential*", "*secret*", "*auth_token*", "kubeconfig*")  # fmt: skip
PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY")
RUNS = ("record.json", "*/record.json", "*/*/record.json")  # what a folder of runs has


@dataclass(frozen=True)
class Shipment:
    """What is sent to a cluster, and what is not."""

    files: Mapping[str, bytes]  # by their places in the archive
    left_out: Mapping[str, str]  # place -> why

    def lines(self) -> Iterator[str]:
        """Yield a line for each file that is sent, or for each large folder, and one for each reason to leave out."""
        folders: dict[str, dict[str, bytes]] = {}
        for place, content in sorted(self.files.items()):
            folders.setdefault(place.partition("/")[0], {})[place] = content
        for top, files in folders.items():
            if len(files) > NAMED:
                yield f"{_size(sum(map(len, files.values()))):>10}  {top}/ ({len(files)} files)"
            else:
                yield from (f"{_size(len(content)):>10}  {place}" for place, content in files.items())
        for why in sorted(set(self.left_out.values())):
            yield f"  left out  {', '.join(place for place, each in self.left_out.items() if each == why)} ({why})"

    def archive(self) -> bytes:
        """Return the files as a zip archive, the same bytes for the same files."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for place, content in sorted(self.files.items()):
                archive.writestr(zipfile.ZipInfo(place), content, zipfile.ZIP_DEFLATED)
        return packed.getvalue()


def gather(folder: Path, packages: Mapping[str, Path], texts: Mapping[str, str]) -> Shipment:
    """Gather the files of a folder, of packages that lie elsewhere, and texts that are no files.

    Args:
        folder: the working directory of the job.
        packages: name -> the folder or file of a Python package.
        texts: place -> content.

    Raises:
        ConfigError: they are too large together.
    """
    files, left_out = dict[str, bytes](), dict[str, str]()
    size = 0
    sources = [("", folder), *packages.items()]
    for place, path in (each for name, source in sources for each in _inside(source, name)):
        if why := _unwanted(path):
            # Of caches the name is enough: every folder may have one.
            left_out[path.name if why == "a cache" else place + "/" * path.is_dir()] = why
            continue
        files[place] = path.read_bytes()
        size += len(files[place])
        if PRIVATE_KEY.search(files[place]):
            del files[place]
            left_out[place] = "holds a private key"
        if size > MOST:
            raise ConfigError(
                f"{folder} has more than {MOST // MIB} MiB to send (the last file was {place}): submit from the "
                "folder of the experiment alone, and keep images where the nodes see them"
            )
    return Shipment(files | {place: text.encode() for place, text in texts.items()}, left_out)


def _inside(path: Path, place: str) -> Iterator[tuple[str, Path]]:
    """Yield the files of a folder, and folders that are left out, with their places."""
    if place and (path.is_file() or _unwanted(path)):
        yield place, path
        return
    for each in sorted(path.iterdir()):
        yield from _inside(each, f"{place}/{each.name}".lstrip("/"))


def _unwanted(path: Path) -> str | None:
    """Return why a file or folder is left out; None: it is sent."""
    name = path.name.lower()
    if path.is_symlink():
        return "a link"
    if any(fnmatch(name, each) for each in CACHES):
        return "a cache"
    if any(fnmatch(name, each) for each in SECRETS):
        return "may be a secret, by its name"
    if name.startswith("."):
        return "hidden"
    if any(fnmatch(name, each) for each in MLFLOW):
        return "MLflow's own"
    if path.is_dir():
        is_runs = any(True for pattern in RUNS for _ in path.glob(pattern))
        return "a virtual environment" if (path / "pyvenv.cfg").exists() else "runs" if is_runs else None
    if not path.is_file():
        return "no regular file"
    return f"over {LARGEST // MIB} MiB" if path.stat().st_size > LARGEST else None


def _size(count: int) -> str:
    """Return bytes as text for people."""
    return f"{count / MIB:.1f} MiB" if count >= MIB else f"{count / 1024:.1f} KiB" if count >= 1024 else f"{count} B"
