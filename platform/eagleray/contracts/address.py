"""Addresses that may hold a password, as `http://me:secret@host` does."""

import re

SECRETS = (
    r"(?<=:)()//[^/?#\s]*@",
    r"(?<=:)(?<!http:)(?<!https:)()//[^/?#\s:@]*:[^@\s]*@",  # a database's password may have / ? and #
    r"(?<=:)()/[^/?#\s:@]+:[^/?#\s]*@",  # an address that was taken for a path
    r"(?i)([?&][^=&#\s]*(?:pass|pwd|secret|token|api_?key)[^=&#\s]*=)[^&#\s]*",
)


def without_password(text: str) -> str:
    """Remove names and passwords from the addresses in a text.

    >>> without_password("http://me:secret@host:5000"), without_password("postgresql://host/db?password=secret")
    ('http://host:5000', 'postgresql://host/db?password=')
    """
    for pattern in SECRETS:
        text = re.sub(pattern, lambda found: found[1] or "//", text)
    return text
