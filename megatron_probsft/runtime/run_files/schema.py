"""JSON objects are written from dataclasses, with a schema version, and checked when they are read."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.read_files import read_json_object

SCHEMA_VERSION = 1
_VERSION_KEY = "schema_version"
_NOT_GIVEN: Any = object()

Number = float | None
"""A number in a file, or null where it was not finite."""


def key(name: str) -> Any:
    """Declare a field whose key in the file is no Python name."""
    return dataclasses.field(metadata={"key": name})


def may_be_missing() -> Any:
    """Declare a field that has no key in the file where it is not given."""
    return _NOT_GIVEN


@dataclass(frozen=True, kw_only=True)
class FileContent:
    """A JSON object that is a file's content, one of its lines, or a part that others read.

    Every field is a key of it. Writers construct one, so that none is forgotten; readers use the JSON object
    itself after `check`, since a file of before may have fewer keys.
    """

    @classmethod
    def from_keys(cls, content: Mapping[str, Any]) -> Self:
        """Construct one from the file's keys; raises TypeError where one is unknown or missing."""
        names = {_key_of(field): field.name for field in dataclasses.fields(cls)}
        return cls(**{names.get(name, name): value for name, value in content.items()})

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of a file or line, with the schema version."""
        return {_VERSION_KEY: SCHEMA_VERSION, **self.to_part()}

    def to_part(self) -> dict[str, Any]:
        """Return the JSON object without a version, to stand in another one."""
        values = {_key_of(field): getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not _NOT_GIVEN}

    @classmethod
    def read_file(cls, file: Path, needs: Collection[str] = ()) -> dict[str, Any]:
        """Return a file's JSON object. Raises UserError as `read_json_object` and `check` do."""
        return cls.check(read_json_object(file), str(file), needs)

    @classmethod
    def check(cls, content: Any, where: str, needs: Collection[str] = ()) -> dict[str, Any]:
        """Return `content`, a JSON object whose values are of the fields' types.

        Args:
            where: the file, and the line or part, for messages.
            needs: the keys that must be there.

        Raises:
            UserError: it is no object or of a newer schema version, or a value is missing or of another type.
        """
        kinds = _kinds(cls)
        assert kinds.keys() >= {*needs}
        check_version(content, where)
        check_kinds(content, where, {name: kind for name, kind in kinds.items() if name in needs})
        check_kinds(content, where, kinds, optional=True)
        return content


def check_version(content: Any, where: str) -> None:
    """Raise UserError where `content` is no JSON object, or one of a newer schema version."""
    if not isinstance(content, dict):
        raise UserError(f"{where} must be a JSON object, got {type(content).__name__}")
    version = content.get(_VERSION_KEY, 1)
    check_kinds({_VERSION_KEY: version}, where, {_VERSION_KEY: int})
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{where} has schema version {version}, and this megatron_probsft reads up to {SCHEMA_VERSION}: "
            "use the one that wrote it, or a newer one"
        )


def check_kinds(
    content: Any, where: str, kinds: Mapping[str, type | tuple[type, ...]], *, optional: bool = False
) -> None:
    """Raise UserError where a key is missing, unless `optional`, or its value is of another type."""
    if not isinstance(content, dict):
        raise UserError(f"{where} must be a JSON object, got {type(content).__name__}")
    for name, kind in kinds.items():
        if name not in content and optional:
            continue
        if name not in content:
            raise UserError(f"{where} is not what a run writes: it has no {name!r}")
        if not isinstance(content[name], kind):
            raise UserError(f"{where} is not what a run writes: {name!r} is {str(content[name])[:40]!r}")


def _key_of(field: dataclasses.Field[Any]) -> str:
    return field.metadata.get("key", field.name)


@functools.cache
def _kinds(content: type[FileContent]) -> dict[str, tuple[type, ...]]:
    """Return, by key, the Python types that values from JSON may have."""
    hints = typing.get_type_hints(content)
    return {_key_of(field): _json_types(hints[field.name]) for field in dataclasses.fields(content)}


def _json_types(hint: Any) -> tuple[type, ...]:
    if isinstance(hint, types.UnionType):
        return tuple(one for part in hint.__args__ for one in _json_types(part))
    if hint is Any:
        return (object,)
    if hint is float:
        return (float, int)
    return (typing.get_origin(hint) or hint,)
