"""`kilonova config`: the options of an installation, what they mean, and whether they make sense."""

from __future__ import annotations

import ast
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
import typer

from kilonova.cli.installation import DataDir, Json, configuration, directory

app = typer.Typer(help="The configuration.", no_args_is_help=True)

URL_PASSWORD = re.compile(r"(?<=://)([^/@:]*):[^/@]*@")
HIDDEN = "(hidden)"


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One option. name: with its sections, separated by dots. value: what it has, without passwords."""

    name: str
    type: str
    default: Any
    value: Any
    meaning: str


@app.command("show")
def show(data_dir: DataDir = None, json: Json = False) -> None:
    """Print every option with the value it has, as TOML."""
    config = configuration(data_dir)
    if json:
        print(msgspec.json.encode({option.name: option.value for option in options(config)}).decode())
        return
    section = ""
    for option in options(config):
        own, _, name = option.name.rpartition(".")
        if own != section:
            section = own
            print(f"\n[{section}]")
        print(f"{name} = {_toml(option.value)}")


@app.command("explain")
def explain(data_dir: DataDir = None, json: Json = False) -> None:
    """Print every option with its meaning, type and default."""
    found = list(options(configuration(data_dir)))
    if json:
        print(msgspec.json.encode({"options": found}).decode())
        return
    for option in found:
        changed = f", here {_toml(option.value)}" if option.value != option.default else ""
        print(f"{option.name} ({option.type}, default {_toml(option.default)}{changed})\n    {option.meaning}")


@app.command("check")
def check(data_dir: DataDir = None) -> None:
    """Tell whether the configuration can be read and makes sense. Fails if not."""
    config = configuration(data_dir)
    file = directory(data_dir) / "kilonova.toml"
    changed = [option for option in options(config) if option.value != option.default and option.name != "data_dir"]
    print(f"{file}{'' if file.exists() else ' does not exist, which'} is fine; "
          f"{len(changed)} options differ from their defaults.")
    for option in changed:
        print(f"  {option.name} = {_toml(option.value)}")


def options(config: msgspec.Struct, section: str = "") -> Iterator[Option]:
    """The options of a configuration tree: those of a section before its subsections."""
    meanings = _meanings(type(config))
    below: list[tuple[str, msgspec.Struct]] = []
    for field in msgspec.structs.fields(type(config)):
        value = getattr(config, field.name)
        if isinstance(value, msgspec.Struct):
            below.append((f"{section}{field.name}", value))
            continue
        yield Option(
            name=f"{section}{field.name}", type=_type_name(field.type), default=_default(field),
            value=_shown(value), meaning=meanings.get(field.name, ""),
        )
    for name, subsection in below:
        yield from options(subsection, f"{name}.")


def _meanings(tree: type) -> dict[str, str]:
    """The texts that stand below the fields of a class and of those that it extends, by field."""
    if tree is msgspec.Struct:
        return {}
    assert tree.__base__ is not None
    found = _meanings(tree.__base__)
    parsed = ast.parse(inspect.getsource(tree)).body[0]
    assert isinstance(parsed, ast.ClassDef)
    for before, after in zip(parsed.body, parsed.body[1:], strict=False):
        if (
            isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name)
            and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        ):
            found[before.target.id] = " ".join(str(after.value.value).split())
    return found


def _default(field: Any) -> Any:
    if field.default is not msgspec.NODEFAULT:
        return _plain(field.default)
    return _plain(field.default_factory()) if field.default_factory is not msgspec.NODEFAULT else None


def _shown(value: Any) -> Any:
    """Without the passwords in URLs."""
    plain = _plain(value)
    return URL_PASSWORD.sub(rf"\1:{HIDDEN}@", plain) if isinstance(plain, str) else plain


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)


def _type_name(type_: Any) -> str:
    if typing.get_origin(type_) is Annotated:
        return _type_name(typing.get_args(type_)[0])
    if typing.get_origin(type_) is Literal:
        return " or ".join(str(one) for one in typing.get_args(type_))
    if typing.get_origin(type_) is tuple:
        return f"list of {_type_name(typing.get_args(type_)[0])}s"
    if typing.get_origin(type_) is dict:
        return "table"
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        return "table"
    text = type_.__name__ if isinstance(type_, type) else str(type_).replace("typing.", "")
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(text, text)


def _toml(value: Any) -> str:
    """JSON is TOML for all the values that options have but tables."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_toml(key)} = {_toml(one)}' for key, one in value.items() if one is not None)}}}"
    return msgspec.json.encode(value).decode()
