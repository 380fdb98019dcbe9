"""What a query string may hold, declared like bodies are. Spec: API-028 to API-030, API-052."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from kilonova.api.microversions import FIRST, LATEST
from kilonova.api.schema import Invalid, Reading, Schema
from kilonova.domain.errors import InvalidInput

MOST_PARAMETERS = 1000


class Param(msgspec.Struct, frozen=True):
    """One query parameter.

    Args:
        single_since: the microversion from which a repeated parameter is refused, None for never.
    """

    schema: Schema
    since: int = FIRST
    until: int = LATEST
    single_since: int | None = None


class QueryValues:
    """The parameters of a request, checked and normalised."""

    __slots__ = ("text", "values")

    def __init__(self, values: dict[str, list[Any]], text: str) -> None:
        self.values = values
        self.text = text

    def last(self, name: str, default: Any = None) -> Any:
        """The value that counts where a parameter takes one. Spec: API-052."""
        found = self.values.get(name)
        return found[-1] if found else default

    def first(self, name: str, default: Any = None) -> Any:
        found = self.values.get(name)
        return found[0] if found else default

    def all(self, name: str) -> list[Any]:
        return self.values.get(name, [])

    def __contains__(self, name: str) -> bool:
        return name in self.values


class Query:
    """The parameters a route takes.

    Args:
        strict_since: from this microversion an unknown parameter is refused; None for never. Spec: API-029.
        refused: names that are refused at every microversion, as filters that nobody may use.
    """

    def __init__(self, params: Mapping[str, Param] | None = None, *, strict_since: int | None = 102,
                 refused: Callable[[str], bool] | None = None) -> None:
        self.params = params or {}
        self.strict_since = strict_since
        self.refused = refused

    def read(self, text: bytes, reading: Reading) -> QueryValues:
        """Check a query string. Raises InvalidInput."""
        if not text:
            return QueryValues({}, "")
        pairs, decoded = _parse(text)
        values: dict[str, list[Any]] = {}
        unknown: list[str] = []
        for name, value in pairs:
            if self.refused is not None and self.refused(name):
                raise InvalidInput("Invalid filter field")
            param = self.params.get(name)
            if param is None or not param.since <= reading.version <= param.until:
                unknown.append(name)
                continue
            try:
                values.setdefault(name, []).append(param.schema.read(value, reading))
            except Invalid as invalid:
                raise invalid.inside(name).as_input_error(query=True) from None
            single = param.single_since is not None and reading.version >= param.single_since
            if single and len(values[name]) > 1:
                raise InvalidInput(
                    f"Invalid input for query parameters {name}. Value: {values[name]}. "
                    f"{values[name]} is too long"
                )
        if unknown and self.strict_since is not None and reading.version >= self.strict_since:
            names = ", ".join(repr(name) for name in dict.fromkeys(unknown))
            verb = "was" if len(set(unknown)) == 1 else "were"
            raise InvalidInput(f"Additional properties are not allowed ({names} {verb} unexpected)")
        return QueryValues(values, decoded)


def _parse(text: bytes) -> tuple[list[tuple[str, str]], str]:
    try:
        decoded = text.decode()
        pairs = parse_qsl(decoded, keep_blank_values=True, errors="strict", max_num_fields=MOST_PARAMETERS)
    except UnicodeDecodeError as error:
        raise InvalidInput("Query string is not UTF-8 encoded") from error
    except ValueError as error:
        raise InvalidInput("The query string has too many parameters.") from error
    if "\0" in decoded or any("\0" in name or "\0" in value for name, value in pairs):
        raise InvalidInput("The query string holds a character that no value may have.")
    return pairs, decoded
