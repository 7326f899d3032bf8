"""The token that a Ray asks of its clients."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ray._private.authentication.authentication_token_setup import AUTH_MODE_ENV_VAR, _enable_token_auth
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._raylet import AuthenticationTokenLoader  # pyright: ignore[reportAttributeAccessIssue]  # compiled
from ray.exceptions import AuthenticationError

from eagleray.contracts.errors import ConfigError

Connection = TypeVar("Connection")

FILE = Path(".ray/auth_token")  # in the user's home: where Ray keeps its token
REMEDY = "put the cluster's token into ~/.ray/auth_token (chmod 600), or into RAY_AUTH_TOKEN"


def keep_private() -> None:
    """Make the token readable for its owner alone.

    Ray makes one when it first starts here, readable for all; so the file is made before, empty.
    """
    path = Path.home() / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(0o600)
    path.chmod(0o600)


def authenticated(connect: Callable[[], Connection], address: str) -> Connection:
    """Connect to a cluster, with this user's token if it asks for one.

    Args:
        connect: raises Ray's AuthenticationError if the token is missing or wrong.
        address: of the cluster, to be named.

    Raises:
        ConfigError: the token is missing or wrong.
    """
    if is_token_auth_enabled() and not _is_here():  # Ray would abort the process
        raise ConfigError(f"{AUTH_MODE_ENV_VAR}=token, but there is no token here: {REMEDY}")
    try:
        return connect()
    except AuthenticationError:
        if is_token_auth_enabled():
            raise ConfigError(
                f"the Ray at --address {address} does not accept the token found here: {REMEDY}"
            ) from None
        if AUTH_MODE_ENV_VAR in os.environ or not _is_here():
            raise ConfigError(
                f"the Ray at --address {address} asks for a token: {REMEDY}, and set {AUTH_MODE_ENV_VAR}=token"
            ) from None
    _enable_token_auth()
    return authenticated(connect, address)


def _is_here() -> bool:
    """Return whether this user has a token.

    Asked only where one is needed: a Ray that has looked for it would ask a cluster without tokens for it too, and lose
    every actor that it starts there.
    """
    return AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
