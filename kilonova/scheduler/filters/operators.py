"""The comparison language of extra specs: `>= 4`, `s== text`, `<in> part`, `<or> a <or> b`, plain text."""

from __future__ import annotations

import operator
from collections.abc import Callable

_NUMERIC: dict[str, Callable[[float, float], bool]] = {
    "=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
}
_TEXT: dict[str, Callable[[str, str], bool]] = {
    "s==": operator.eq,
    "s!=": operator.ne,
    "s<": operator.lt,
    "s<=": operator.le,
    "s>": operator.gt,
    "s>=": operator.ge,
}


def matches(value: str, wanted: str) -> bool:
    """Whether a host's value meets what an extra spec wants of it.

    `=` means at least, for numbers. A comparison of numbers with something else is not met.
    """
    words = wanted.split()
    if not words:
        return value == wanted
    sign, operands = words[0], words[1:]
    if sign == "<or>":
        return value in " ".join(operands).split(" <or> ")
    if sign == "<in>":
        return " ".join(operands) in value
    if sign == "<all-in>":
        return all(operand in value for operand in operands)
    if sign in _TEXT:
        return _TEXT[sign](value, " ".join(operands))
    if sign in _NUMERIC:
        try:
            return _NUMERIC[sign](float(value), float(operands[0]))
        except (ValueError, IndexError):
            return False
    return value == wanted
