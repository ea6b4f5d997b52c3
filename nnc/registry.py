"""Ids of the format: a number in the file, a value in the program.  An id names one meaning for ever."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import Corruption, InvalidArgument


class Table:
    """Two-way table between the ids of a field and what they stand for."""

    def __init__(self, field: str, entries: Mapping[int, object]):
        self.field = field
        self._value = dict(entries)
        self._id = {value: key for key, value in self._value.items()}

    def values(self) -> list:
        return list(self._value.values())

    def value(self, number: int):
        """What a number read from a file stands for."""
        if number not in self._value:
            raise Corruption(f"{self.field} has the unknown id {number}: the file is damaged or from a newer version")
        return self._value[number]

    def id(self, value) -> int:
        """The number to write for a value."""
        if value not in self._id:
            raise InvalidArgument(f"{self.field} = {value!r}: must be one of {self.values()}")
        return self._id[value]
