"""The one error that bad input gets: a sentence for the person who typed it."""


class ConfigError(ValueError):
    """Bad input, said in one clear sentence that names the thing and the remedy.

    The command line prints the sentence alone and exits with 2; nothing has been started by then.
    """
