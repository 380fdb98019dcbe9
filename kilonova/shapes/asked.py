"""Reading what a flavor and an image ask for, strictly: what is not understood is refused, never ignored."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from kilonova.domain.errors import InvalidInput

T = TypeVar("T")
W = TypeVar("W", bound=str)

TRUE, FALSE = frozenset({"1", "t", "true", "on", "y", "yes"}), frozenset({"0", "f", "false", "off", "n", "no"})
_SET_PART = re.compile(r"(?P<not>\^?)(?P<first>\d{1,4})(-(?P<last>\d{1,4}))?", re.ASCII)
_NUMBERED = re.compile(r"(?P<key>.+)\.(?P<index>\d{1,3})", re.ASCII)

Parse = Callable[[str, str], T]
"""Makes a value of a key and its text. Raises InvalidInput."""


@dataclass(frozen=True)
class Asked:
    """Extra specs of the flavor (`hw:cpu_policy`) and properties of the image (`hw_cpu_policy`), by one name.

    A key is written as in the flavor; in the image its first colon is an underscore.
    """

    extra_specs: Mapping[str, str]
    properties: Mapping[str, str]

    def of_flavor(self, key: str, parse: Parse[T]) -> T | None:
        """What the flavor asks for, None if nothing."""
        text = self.extra_specs.get(key)
        return None if text is None else parse(key, text)

    def of_image(self, key: str, parse: Parse[T]) -> T | None:
        """What the image asks for."""
        name = image_key(key)
        text = self.properties.get(name)
        return None if text is None else parse(name, text)

    def agreed(self, key: str, parse: Parse[T]) -> T | None:
        """What either asks for. Raises InvalidInput if they ask for different things."""
        flavor, image = self.of_flavor(key, parse), self.of_image(key, parse)
        if flavor is not None and image is not None and flavor != image:
            raise InvalidInput(
                f"Image property {image_key(key)} = {image} is not permitted, because the flavor sets {key} = {flavor}."
            )
        return image if flavor is None else flavor

    def flavor_first(self, key: str, parse: Parse[T]) -> T | None:
        """What the flavor asks for, else what the image does."""
        flavor, image = self.of_flavor(key, parse), self.of_image(key, parse)
        return image if flavor is None else flavor

    def image_first(self, key: str, parse: Parse[T]) -> T | None:
        """What the image asks for, else what the flavor does."""
        flavor, image = self.of_flavor(key, parse), self.of_image(key, parse)
        return flavor if image is None else image

    def one_side(self, key: str, parse: Parse[T]) -> T | None:
        """What either asks for. Raises InvalidInput if both do."""
        flavor, image = self.of_flavor(key, parse), self.of_image(key, parse)
        if flavor is not None and image is not None:
            raise InvalidInput(f"Image property {image_key(key)} is not permitted, because the flavor sets {key}.")
        return image if flavor is None else flavor

    def indices(self, key: str) -> frozenset[int]:
        """The numbers N for which `key.N` is asked for."""
        found = set()
        for name, mapping in ((key, self.extra_specs), (image_key(key), self.properties)):
            for asked in mapping:
                match = _NUMBERED.fullmatch(asked)
                if match is not None and match["key"] == name:
                    found.add(int(match["index"]))
        return frozenset(found)


def image_key(key: str) -> str:
    """The image property that says the same as an extra spec."""
    return key.replace(":", "_", 1)


def word(*allowed: W) -> Parse[W]:
    def parse(key: str, text: str) -> W:
        for one in allowed:
            if text == one:
                return one
        raise InvalidInput(f"Invalid value {text!r} of {key}: it is one of {', '.join(allowed)}.")

    return parse


def boolean(key: str, text: str) -> bool:
    value = text.strip().lower()
    if value in TRUE or value in FALSE:
        return value in TRUE
    raise InvalidInput(f"Invalid value {text!r} of {key}: it is a boolean.")


def whole(least: int = 0, most: int | None = None) -> Parse[int]:
    limits = f"from {least} to {most}" if most is not None else f"of at least {least}"

    def parse(key: str, text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least or (most is not None and number > most):
            raise InvalidInput(f"Invalid value {text!r} of {key}: it is an integer {limits}.")
        return number

    return parse


def cpu_set(highest: int) -> Parse[frozenset[int]]:
    """A list such as `0-3,^2`. One that only excludes begins with all CPUs.

    Args:
        highest: the highest number that is a CPU of the guest.
    """
    def parse(key: str, text: str) -> frozenset[int]:
        found: set[int] = set()
        excluded: set[int] = set()
        only_excludes = True
        for part in text.split(","):
            match = _SET_PART.fullmatch(part.strip())
            if match is None:
                raise InvalidInput(f"Invalid value {text!r} of {key}: it is a list of CPUs such as 0-3,^2.")
            first, last = int(match["first"]), int(match["last"] or match["first"])
            if last < first or last > highest:
                raise InvalidInput(f"Invalid value {text!r} of {key}: CPUs are numbered from 0 to {highest}.")
            (excluded if match["not"] else found).update(range(first, last + 1))
            only_excludes = only_excludes and bool(match["not"])
        if only_excludes:
            found = set(range(highest + 1))
        return frozenset(found - excluded)

    return parse
