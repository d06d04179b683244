"""Fields, their types and the identities in them as messages and back. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

from profile_export.api.values import MOST_LEVELS
from profile_export.domain import schema
from profile_export.domain.catalog import FieldDeclaration, IdentityField
from profile_export.domain.errors import InvalidArgumentError
from profile_export.v1 import dataset_pb2

_SCALARS = {
    schema.ScalarKind.TEXT: dataset_pb2.SCALAR_TYPE_STRING,
    schema.ScalarKind.BOOLEAN: dataset_pb2.SCALAR_TYPE_BOOLEAN,
    schema.ScalarKind.LONG: dataset_pb2.SCALAR_TYPE_LONG,
    schema.ScalarKind.DOUBLE: dataset_pb2.SCALAR_TYPE_DOUBLE,
    schema.ScalarKind.DATE: dataset_pb2.SCALAR_TYPE_DATE,
    schema.ScalarKind.TIMESTAMP: dataset_pb2.SCALAR_TYPE_TIMESTAMP,
}
_KINDS = {wire: kind for kind, wire in _SCALARS.items()}


def write_fields(
    value: schema.ObjectType, into: RepeatedCompositeFieldContainer[dataset_pb2.Field], level: int = 0
) -> None:
    """Write named fields, sorted by name, into a field of a message; types below `MOST_LEVELS` are left unset.

    In place, since a message that is given to another is copied with all that is in it, at each level again.
    """
    for name in sorted(value.fields):
        added = into.add()
        added.name = name
        _write_type(value.fields[name], added.type, level)


def identity_fields(message: Iterable[dataset_pb2.IdentityField]) -> tuple[IdentityField, ...]:
    """Read identity fields."""
    return tuple(
        IdentityField(tuple(field.path.split(".")), field.namespace, field.primary) for field in message
    )


def identity_field(value: IdentityField) -> dataset_pb2.IdentityField:
    """Write an identity field."""
    return dataset_pb2.IdentityField(
        path=".".join(value.path), namespace=value.namespace, primary=value.primary
    )


def declarations(message: Sequence[dataset_pb2.FieldDeclaration], where: str) -> tuple[FieldDeclaration, ...]:
    """Read declared fields; `where` is the field of the request that holds them.

    Raises:
        InvalidArgumentError: A type is none.
    """
    return tuple(
        FieldDeclaration(tuple(one.path.split(".")), _read_type(one.type, f"{where}[{index}].type"))
        for index, one in enumerate(message)
    )


def write_declarations(
    values: Iterable[FieldDeclaration], into: RepeatedCompositeFieldContainer[dataset_pb2.FieldDeclaration]
) -> None:
    """Write declared fields into a field of a message."""
    for value in values:
        added = into.add()
        added.path = ".".join(value.path)
        _write_type(value.type, added.type, 0)


def _write_type(value: schema.FieldType, into: dataset_pb2.FieldType, level: int) -> None:
    # Told apart from every type by having no kind; the field must be there all the same.
    into.SetInParent()
    if level > MOST_LEVELS:
        return
    match value:
        case schema.Scalar(kind):
            into.scalar = _SCALARS[kind]
        case schema.ObjectType():
            into.object.SetInParent()
            write_fields(value, into.object.fields, level + 1)
        case schema.ArrayType(item):
            _write_type(item, into.array.item, level + 1)
        case schema.MapType(member):
            _write_type(member, into.map.value, level + 1)
        case schema.DecimalType(precision, scale):
            into.decimal.precision, into.decimal.scale = precision, scale


def _read_type(message: dataset_pb2.FieldType, where: str) -> schema.FieldType:
    match message.WhichOneof("kind"):
        case "scalar" if message.scalar in _KINDS:
            return schema.Scalar(_KINDS[message.scalar])
        case "decimal":
            return _read_decimal(message.decimal, f"{where}.decimal")
        case "object":
            members: dict[str, schema.FieldType] = {}
            for member in message.object.fields:
                if member.name in members:
                    raise InvalidArgumentError.of_field(where, f"names the field '{member.name}' twice.")
                members[member.name] = _read_type(member.type, f"{where}.object.{member.name}")
            return schema.ObjectType(members)
        case "array":
            return schema.ArrayType(_read_type(message.array.item, f"{where}.array.item"))
        case "map":
            return schema.MapType(_read_type(message.map.value, f"{where}.map.value"))
    raise InvalidArgumentError.of_field(where, "is required: say what the field holds.", "FIELD_REQUIRED")


def _read_decimal(message: dataset_pb2.DecimalType, where: str) -> schema.DecimalType:
    if not 1 <= message.precision <= schema.MAX_DECIMAL_DIGITS or not 0 <= message.scale <= message.precision:
        raise InvalidArgumentError.of_field(
            where,
            f"needs a precision of 1 to {schema.MAX_DECIMAL_DIGITS}, and a scale of 0 to the precision.",
        )
    return schema.DecimalType(message.precision, message.scale)
