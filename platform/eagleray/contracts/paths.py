"""Paths in settings."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from eagleray.contracts.errors import ConfigError


def expanded(path: Path | str) -> Path:
    """Return a path whose `~` or `~name` is the home folder of that user.

    Raises:
        ConfigError: there is no such user, or it is an address, for which a folder of that name would be made.
    """
    if re.match(r"[A-Za-z][\w+.-]*:/", str(path)):
        raise ConfigError(f"{path} is an address, and only folders are possible; mount it, and name that place")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        name = Path(path).parts[0]
        raise ConfigError(f"{path}: there is no user {name[1:]} here; a folder of that name is ./{name}") from None


AbsolutePath = Annotated[Path, AfterValidator(expanded), AfterValidator(Path.absolute)]
