"""The one error for bad input, and what is said of damaged files."""


class ConfigError(ValueError):
    """Bad input, in one clear sentence.

    It names the thing and the remedy. The command line prints only the sentence and exits with 2, before anything has
    started.
    """


class Damaged(ConfigError):
    """A file that is not as it was written."""


class Noted(UserWarning):
    """What a person should know while the work goes on, in one sentence."""


class Skipped(Noted):
    """What was left out because it is damaged."""
