"""`kilonova image`: images to try a cloud with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Images to try a cloud with.", no_args_is_help=True)


@app.callback()
def images() -> None:
    """Images to try a cloud with."""


@app.command("build-test")
def build_test(
    output: Annotated[Path, typer.Argument(help="The qcow2 file to write.")],
    tiny: Annotated[bool, typer.Option("--tiny", help="Without SSH server and guest agent.")] = False,
) -> None:
    """Make a small bootable image from packages of the distribution."""
    from kilonova.cli.progress import Story
    from kilonova.guestimage.build import Variant, build

    with Story().chapter("image") as chapter:
        chapter.doing("make it from packages of the distribution")
        build(output, variant=Variant.TINY if tiny else Variant.FULL)
        chapter.outcome = f"{output}, {output.stat().st_size / 1e6:.1f} MB"
