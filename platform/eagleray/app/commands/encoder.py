"""Commands for a trained encoder: features of a folder, and files for others."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from eagleray.app.line import app, console, say
from eagleray.app.plan import counted
from eagleray.contracts.errors import ConfigError
from eagleray.runs.browse import open_run

Trained = Annotated[Path, typer.Argument(metavar="RUN", help="the directory of a run")]


@app.command()
def embed(
    directory: Trained,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="images, in sub-folders or not")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="the file to write: .parquet or .npz")],
    batch_size: Annotated[int, typer.Option(min=1, help="images encoded at a time")] = 256,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="auto: a GPU if there is one")] = "auto",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="leave out images that cannot be read")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace the file if it exists")] = False,
) -> None:
    """Write the features of a folder's images to a file."""
    if out.exists() and not force:
        raise ConfigError(f"--out {out} exists already; name another file, or add --force to replace it")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}")
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {device} is not one of auto, cpu, cuda")
    record = open_run(directory)
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from eagleray.app.exporting import facts_of
    from eagleray.runs.device import pick_device
    from eagleray.runs.embed import embed as encode
    from eagleray.runs.embed import writer_for
    from eagleray.runs.restore import newest_method

    writer_for(out)
    on = pick_device(device)
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("images", total=None)
        done = encode(
            newest_method(record.directory),
            folder,
            out,
            facts_of(record),
            device=on,
            batch_size=batch_size,
            skip_bad=skip_bad,
            progress=lambda count, total: bar.update(task, completed=count, total=total),
        )
    others = counted(done.stray, "other file")
    say(f"{out}: {counted(done.images, 'image')}, {done.dim} features each; {others} skipped")
    if done.bad:
        say(f"left out, because they cannot be read: {', '.join(done.bad)}")


@app.command()
def export(
    directory: Trained,
    form: Annotated[
        Literal["safetensors", "torchscript", "onnx", "timm"],
        typer.Option("--format", help="what the loader needs: torch, torch, onnxruntime, or timm"),
    ] = "safetensors",
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="where to write; by default RUN/exports/FORMAT")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace files that are there")] = False,
) -> None:
    """Export a run's encoder: weights, a loader, a model card.

    The loader imports nothing of Eagleray.
    """
    folder = out or directory / "exports" / form
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise ConfigError(f"--out {folder} is not empty; name another folder, or add --force to replace its files")
    record = open_run(directory)
    from eagleray.app.exporting import export_encoder

    written = export_encoder(record, form, folder)
    if not written:
        method = record.file()["method"]["name"]
        raise ConfigError(f"{directory}: the features of {method} are no encoder's output; `eagleray embed` gives them")
    for path in written:
        say(str(path))
