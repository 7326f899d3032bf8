"""The commands about files of a user's own."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from eagleray.app.line import app, say
from eagleray.contracts.errors import ConfigError


@app.command()
def new(
    kind: Annotated[str, typer.Argument(metavar="method|encoder|dataset|evaluator")],
    file: Annotated[Path, typer.Argument(metavar="FILE.py", help="the file to write")],
) -> None:
    """Write a method, encoder, dataset or evaluator that works.

    It is a start to change; `eagleray check FILE.py` tells whether it still keeps to its contract.
    """
    from eagleray.app.plugin import write

    write(kind, file)
    name = str(file) if file.is_absolute() else f"./{file}"
    use = {"evaluator": f"evaluate.also=[{name}]", "dataset": f"data={name}"}.get(kind, f"{kind}={name}")
    train, check = (shlex.join(["eagleray", *words]) for words in (("train", use), ("check", str(file))))
    say(f"{file}: train with it ({train}), and check it after every change ({check})")


def check_file(name: str, settings: list[str]) -> None:
    """Check a plugin file, and print a line for each check.

    Raises:
        ConfigError: a check failed.
    """
    from eagleray.app.plugin import findings, the_declaration
    from eagleray.config.registry import WORDS

    one, failed, total = the_declaration(name), 0, 0
    for finding in findings(one, settings):
        failed, total = failed + bool(finding.complaints), total + 1
        say(f"{'failed' if finding.complaints else 'ok':<7} {finding.check}")
        for complaint in finding.complaints:
            say(f"        {complaint}")
    if failed:
        raise ConfigError(f"{name}: {failed} of {total} checks failed")
    say(f"{name} is a valid {WORDS[one.kind]}: {one.class_name}")
