"""Text from elsewhere, such as a file's name, as a terminal may show it."""

import re

# What moves the cursor, changes colours or the clipboard, or turns the direction of writing; halves of characters.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Write out the control characters in a text; lines and tabs stay.

    >>> visible("a\x1b[2Jb.png")
    'a\\x1b[2Jb.png'
    """
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def stripped(text: str) -> str:
    """Remove the control characters from a text, which have no width; lines and tabs stay."""
    return _HIDDEN.sub("", text)
