"""The one error for bad input."""


class ConfigError(ValueError):
    """Bad input, in one clear sentence.

    It names the thing and the remedy. The command line prints only the sentence and exits with 2, before anything has
    started.
    """
