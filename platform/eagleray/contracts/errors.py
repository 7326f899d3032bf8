"""The one error for bad input: a sentence for the person who typed it."""


class ConfigError(ValueError):
    """Bad input, described in one clear sentence that names the thing and the remedy.

    The command line prints only the sentence and exits with 2, before anything has started.
    """
