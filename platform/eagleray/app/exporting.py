"""Export the encoder of a run, with its model card."""

from pathlib import Path

from eagleray.report.card import card
from eagleray.runs.checkpoint import newest_checkpoint
from eagleray.runs.environment import version_of
from eagleray.runs.export.encoder import trained_encoder
from eagleray.runs.export.formats import write
from eagleray.runs.record import Record


def export_encoder(record: Record, form: str, folder: Path) -> list[Path]:
    """Export a run's encoder; return the files.

    The folder is created if it is missing. Files of the same names are replaced. There are no files if the method's
    features are not the output of one of its encoders.

    Raises:
        ConfigError: there is no checkpoint, or the format does not suit the network.
    """
    trained = trained_encoder(record.directory)
    if trained is None:
        return []
    encoder, info = trained
    return write(form, encoder, folder, facts_of(record), card(record, info, encoder.dim))


def facts_of(record: Record) -> dict[str, str]:
    """Return what identifies a run's weights, as text."""
    file, saved = record.file(), newest_checkpoint(record.directory)
    names = {section: file[section]["name"] for section in ("method", "encoder", "data")}
    checkpoint = saved.name if saved else ""
    return {**names, "run": record.key, "checkpoint": checkpoint, "eagleray": version_of("eagleray") or "from source"}
