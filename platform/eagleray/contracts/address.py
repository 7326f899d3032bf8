"""Addresses that may hold a password, as `http://me:secret@host` does."""

import re


def without_password(text: str) -> str:
    """Remove names and passwords from the addresses in a text.

    >>> without_password("http://me:secret@host:5000")
    'http://host:5000'
    """
    return re.sub(r"//[^/?#\s]*@", "//", text)
