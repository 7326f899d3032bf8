"""The settings that all sources of images share; run files have them under `data`, beside a source's own."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ByteSize, Field


class DataSettings(BaseModel, frozen=True, extra="forbid"):
    """How images are split, kept and read, whichever source they come from."""

    validation: Annotated[
        float,
        Field(
            ge=0,
            le=0.5,
            description="share of train held out by the run's seed, unless the source brings its own",
        ),
    ] = 0.1
    limit: Annotated[
        int | None,
        Field(ge=2, description="train on so many images at most, drawn by the run's seed; null: on all"),
    ] = None
    memory_limit: Annotated[
        ByteSize,
        Field(gt=0, description="a folder that decodes to more (`4 GiB`, or bytes) is read anew every epoch"),
    ] = ByteSize(4 * 2**30)
    workers: Annotated[
        int,
        Field(
            ge=0,
            description="processes that decode a folder above memory_limit; 0: the training process does",
        ),
    ] = 2
    cache: Annotated[
        Path | None,
        AfterValidator(lambda path: path and path.expanduser().absolute()),
        Field(description="folder of decoded images, for all runs; null: eagleray in the user's cache folder"),
    ] = None
