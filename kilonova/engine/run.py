"""A run: one operation as its steps see it."""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from kilonova.domain.operation import Entry, EntryState, OperationRecord

Request = TypeVar("Request", bound=msgspec.Struct, covariant=True)
Output = TypeVar("Output", bound=msgspec.Struct)


class Run(Generic[Request]):
    """What a step may know: the request, the results of earlier steps, and who asked.

    Args:
        record: the journal so far. request: decoded. outputs: result types by step name.
    """

    __slots__ = ("_types", "record", "request")

    def __init__(self, record: OperationRecord, request: Request, types: dict[str, type[msgspec.Struct]]) -> None:
        self.record = record
        self.request = request
        self._types = types

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def subject(self) -> str:
        return self.record.subject

    @property
    def round(self) -> int:
        return self.record.round

    def find(self, type_: type[Output]) -> Output | None:
        """The newest result of that type, if a step has produced one and was not undone."""
        for entry in reversed(self.record.entries):
            if self._types.get(entry.step) is type_ and not entry.undo and entry.state is EntryState.DONE:
                found = msgspec.json.decode(entry.output, type=type_ | None)
                if found is not None:  # a step that was passed over gave none
                    return found
        return None

    def output(self, type_: type[Output]) -> Output:
        """The newest result of that type. Raises LookupError if there is none: a mistake in the declaration."""
        found = self.find(type_)
        if found is None:
            raise LookupError(f"{self.record.kind} {self.id}: no step has given a {type_.__name__} yet")
        return found

    def entry(self, step: str, *, undo: bool = False) -> Entry | None:
        """The journal line of a step in this round."""
        for entry in reversed(self.record.entries):
            if entry.step == step and entry.undo == undo and entry.round == self.record.round:
                return entry
        return None
