"""Running the `openstack` command as a user does."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from kilonova.cli.progress import Story
from kilonova.domain.errors import KilonovaError

LIMIT = 400.0
"""Seconds that a command may take."""


class OpenStackClient:
    """The client of this Python environment, as the administrator of one installation.

    Args:
        story: where each command is told before it runs. clouds_file: the installation's clouds.yaml.

    Raises:
        KilonovaError: the client is not installed.
    """

    def __init__(self, story: Story, clouds_file: Path) -> None:
        self._story = story
        self._program = Path(sys.executable).with_name("openstack")
        if not self._program.exists():
            raise KilonovaError("The openstack client is not installed.",
                                hint="`pip install 'kilonova[client]'`, or `script/bootstrap` in a checkout")
        self._environment = os.environ | {"OS_CLIENT_CONFIG_FILE": str(clouds_file), "OS_CLOUD": "kilonova"}

    def run(self, command: str, *arguments: str, show: Callable[[str], Iterable[str]] = lambda _output: ()) -> str:
        """Run a command to its end.

        Args:
            command: the words that name it. show: the lines of its output that are told.

        Returns:
            What it printed.

        Raises:
            KilonovaError: it failed.
        """
        with self._story.chapter("$ openstack") as chapter:
            chapter.outcome = f"{command} {shlex.join(arguments)}"
            chapter.doing(chapter.outcome)
            ended = subprocess.run(
                [str(self._program), *command.split(), *arguments], env=self._environment, timeout=LIMIT,
                stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            )
        if ended.returncode != 0:
            raise KilonovaError(f"`openstack {command}` failed: {ended.stderr.strip()}")
        for line in show(ended.stdout):
            self._story.say(f"             | {line}")
        return ended.stdout
