"""Request and response bodies: typed in, linked out."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta
from starlette.requests import Request

from kilonova.domain.errors import InvalidInput
from kilonova.embedded.http import json_object, root_url

B = TypeVar("B", bound=msgspec.Struct)

Name = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"\S")]
ShortText = Annotated[str, Meta(max_length=255)]
Text = Annotated[str, Meta(max_length=65535)]
Secret = Annotated[str, Meta(min_length=1, max_length=4096)]
Attributes = dict[str, Any]


async def parse(request: Request, key: str, type_: type[B]) -> tuple[B, Attributes]:
    """The object under `key` of the request body: what `type_` knows of it, and all other attributes.

    Raises InvalidInput.
    """
    outer = await json_object(request)
    inner = outer.get(key)
    if not isinstance(inner, dict):
        raise InvalidInput(f"The request body must hold an object {key!r}.")
    known = set(type_.__struct_fields__)
    extra = {name: value for name, value in inner.items() if name not in known | {"id", "links"}}
    return convert(inner, type_), extra


def convert(value: Any, type_: type[B]) -> B:
    """Raises InvalidInput with the place and reason."""
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"The request is not valid: {error}") from error


def given(body: msgspec.Struct) -> Attributes:
    """The attributes that the client sent."""
    return {name: value for name in body.__struct_fields__ if (value := getattr(body, name)) is not UNSET}


def required(body: msgspec.Struct, *names: str) -> None:
    """Raises InvalidInput if one of the attributes was not sent."""
    for name in names:
        if getattr(body, name) is UNSET:
            raise InvalidInput(f"The attribute {name!r} is required.")


def chosen(value: Any, default: Any) -> Any:
    """What was sent, or the default if nothing (or null) was."""
    return default if value is UNSET or value is None else value


def self_link(request: Request, *path: str) -> dict[str, str]:
    return {"self": "/".join((f"{root_url(request)}/v3", *path))}


def listing(request: Request, plural: str, items: list[Any], next_marker: str | None = None) -> Attributes:
    """A list with its links. next_marker: id to go on after, if there is more. Spec: EMI-07."""
    here = request.url
    own = f"{root_url(request)}{here.path.removeprefix(request.scope.get('root_path', ''))}"
    query = f"?{here.query}" if here.query else ""
    following = None
    if next_marker is not None:
        following = f"{own}?{here.include_query_params(marker=next_marker).query}"
    return {plural: items, "links": {"self": own + query, "next": following, "previous": None}}


def flag(request: Request, name: str) -> bool | None:
    """A boolean query parameter: present without a value is true; None if absent."""
    value = request.query_params.get(name)
    return None if value is None else value.strip().lower() not in ("0", "false", "no", "off")
