"""Which fields an export keeps: S23 to S26."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.export.selection import (
    MOST_MAPS_SQUARED,
    IdentitySelection,
    Selection,
    UnknownFieldError,
    UnknownPath,
    known_paths,
    select_fields,
)
from profile_export.domain.schemas.types import (
    BOOLEAN,
    DOUBLE,
    EMPTY,
    IDENTITY_MAP_TYPE,
    IDENTITY_MEMBERS,
    SEGMENT_MEMBERSHIP_TYPE,
    TEXT,
    TIMESTAMP,
    ArrayType,
    FieldType,
    MapSelection,
    MapType,
    ObjectType,
)

PERSON = ObjectType({"firstName": TEXT, "lastName": TEXT})
ITEM = ObjectType({"sku": TEXT, "price": DOUBLE, "tags": ArrayType(TEXT)})
ATTRIBUTES: dict[str, FieldType] = {
    "person": ObjectType({"name": PERSON, "active": BOOLEAN}),
    "loyal": BOOLEAN,
    "orders": ArrayType(ITEM),
    "baskets": ArrayType(ArrayType(ITEM)),
    "scores": MapType(ObjectType({"value": DOUBLE})),
    "shops": ArrayType(MapType(TEXT)),
    "segmentMembership": SEGMENT_MEMBERSHIP_TYPE,
}
SCHEMA = ObjectType({"identityMap": IDENTITY_MAP_TYPE, **ATTRIBUTES})


def selected(*paths: str) -> Selection:
    return select_fields(SCHEMA, paths, "spec.fields")


def kept(*paths: str) -> dict[str, FieldType]:
    return dict(selected(*paths).fields.fields)


def refusal_of(path: str, schema: ObjectType = SCHEMA) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as refused:
        select_fields(schema, [path], "spec.fields")
    return refused.value


# --- What is kept ---


def test_s26_without_paths_everything_is_kept_and_the_identity_map_whole() -> None:
    assert selected() == Selection(ObjectType(ATTRIBUTES), IdentitySelection(IDENTITY_MEMBERS))


def test_a_path_keeps_its_leaf_and_nothing_beside_it() -> None:
    selection = selected("person.name.firstName", "loyal")

    assert selection.fields == ObjectType(
        {"person": ObjectType({"name": ObjectType({"firstName": TEXT})}), "loyal": BOOLEAN}
    )
    assert selection.identities == IdentitySelection()


def test_a_path_of_an_object_keeps_all_of_it() -> None:
    assert kept("person.name") == {"person": ObjectType({"name": PERSON})}


@pytest.mark.parametrize(
    "paths", [("person", "person.name.firstName"), ("person.name.firstName", "person"), ("person", "person")]
)
def test_a_path_below_another_adds_nothing(paths: tuple[str, ...]) -> None:
    assert kept(*paths) == {"person": ATTRIBUTES["person"]}


def test_columns_stay_in_the_order_of_the_schema() -> None:
    selection = selected("orders", "loyal", "person")

    assert list(selection.fields.fields) == ["person", "loyal", "orders"]


def test_s24_a_path_through_an_array_trims_its_items() -> None:
    assert kept("orders.sku") == {"orders": ArrayType(ObjectType({"sku": TEXT}))}
    assert kept("orders.tags", "orders.price") == {
        "orders": ArrayType(ObjectType({"price": DOUBLE, "tags": ArrayType(TEXT)}))
    }


def test_s24_a_path_goes_through_arrays_of_arrays() -> None:
    assert kept("baskets.sku") == {"baskets": ArrayType(ArrayType(ObjectType({"sku": TEXT})))}


@pytest.mark.parametrize("name", ["orders", "baskets", "scores", "shops", "segmentMembership"])
def test_a_path_of_an_array_or_a_map_keeps_it_whole(name: str) -> None:
    assert kept(name) == {name: ATTRIBUTES[name]}


@pytest.mark.parametrize("path", [" loyal", "loyal\t", "\n loyal "])
def test_blanks_around_a_path_do_not_count(path: str) -> None:
    assert kept(path) == {"loyal": BOOLEAN}


@given(st.sets(st.sampled_from(known_paths(ObjectType(ATTRIBUTES))), min_size=1))
def test_s23_every_known_path_can_be_selected_and_finds_itself_again(paths: set[str]) -> None:
    chosen = selected(*paths).fields

    assert paths <= set(known_paths(chosen)) <= set(known_paths(SCHEMA))
    assert select_fields(chosen, sorted(paths), "spec.fields").fields == chosen


# --- Identities ---


@pytest.mark.parametrize(
    ("path", "members"),
    [
        ("identityMap", ("id", "authenticatedState", "primary")),
        ("identities", ("id", "authenticatedState", "primary")),
        ("identities.id", ("id",)),
        ("identities.authenticatedState", ("authenticatedState",)),
        ("identities.primary", ("primary",)),
        ("identities.namespace", ("id",)),
        ("identities.namespace.code", ("id",)),
        (" identities.namespace.code ", ("id",)),
    ],
)
def test_s25_identities_of_the_older_layout_select_from_the_identity_map(
    path: str, members: tuple[str, ...]
) -> None:
    assert selected(path) == Selection(EMPTY, IdentitySelection(members))


def test_s25_members_add_up_in_the_order_of_the_map() -> None:
    selection = selected("identities.primary", "loyal", "identities.namespace.code", "identities.id")

    assert selection == Selection(ObjectType({"loyal": BOOLEAN}), IdentitySelection(("id", "primary")))


@pytest.mark.parametrize(
    "path", ["identities.xid", "identities.namespace.id", "identities.id.x", "identityMaps"]
)
def test_s25_identities_have_no_other_members(path: str) -> None:
    assert refusal_of(path).reason == "UNKNOWN_FIELD"


# --- What is refused ---


@pytest.mark.parametrize("path", ["timeSeriesEvents", "timeSeriesEvents._id", " timeSeriesEvents "])
def test_s25_events_are_no_field_and_the_refusal_points_to_the_event_list(path: str) -> None:
    refused = refusal_of(path)

    assert refused.metadata["field"] == "spec.fields[0]"
    assert "'event_list'" in refused.message


def test_s23_an_unknown_path_is_refused_with_its_place_and_once_it_is_found_the_nearest_known_one() -> None:
    with pytest.raises(UnknownFieldError) as refused:
        select_fields(SCHEMA, ["loyal", " person.name.fistName "], "spec.event_list.fields")

    place = {"field": "spec.event_list.fields[1]", "path": "person.name.fistName"}
    assert (refused.value.reason, refused.value.metadata) == ("UNKNOWN_FIELD", place)
    assert "'person.name.fistName'" in refused.value.message
    told = refused.value.with_nearest("person.name.firstName")
    assert (told.reason, told.metadata) == ("UNKNOWN_FIELD", {**place, "nearest": "person.name.firstName"})
    assert "'person.name.fistName'" in told.message
    assert "'person.name.firstName'" in told.message


@pytest.mark.parametrize("path", ["_profile_id", "_batch_id"])
def test_s23_what_each_exported_row_has_is_no_field_and_the_refusal_says_so(path: str) -> None:
    with pytest.raises(UnknownFieldError) as refused:
        select_fields(SCHEMA, [path], "spec.fields")

    told = refused.value.with_nearest("loyal").message
    assert (
        told
        == f"spec.fields[0]: no source has a field '{path}'; each exported row has it without being asked for."
    )


@pytest.mark.parametrize("path", ["", " ", ".", "loyal.", ".loyal", "loyal.since", "orders[].sku"])
def test_a_path_with_an_empty_or_a_wrong_name_is_unknown(path: str) -> None:
    refused = refusal_of(path)

    assert (refused.reason, refused.metadata["path"]) == ("UNKNOWN_FIELD", path.strip())


def test_s23_behind_a_map_comes_a_key_and_every_key_is_known() -> None:
    assert kept("scores.a", "scores.never seen.value") == {
        "scores": MapSelection(
            ObjectType({"value": DOUBLE}),
            {"a": ObjectType({"value": DOUBLE}), "never seen": ObjectType({"value": DOUBLE})},
        )
    }
    assert kept("shops.ghent") == {"shops": ArrayType(MapSelection(TEXT, {"ghent": TEXT}))}


def test_s23_a_path_of_the_map_itself_keeps_every_key() -> None:
    assert kept("scores.a", "scores") == {"scores": ATTRIBUTES["scores"]}


def test_s23_members_chosen_under_one_key_are_not_kept_under_another() -> None:
    found = kept("segmentMembership.ups.s1.status", "segmentMembership.aam")

    memberships = MapType(
        ObjectType({"lastQualificationTime": TIMESTAMP, "status": TEXT, "validUntil": TIMESTAMP})
    )
    of_s1 = MapSelection(ObjectType({"status": TEXT}), {"s1": ObjectType({"status": TEXT})})
    assert found == {"segmentMembership": MapSelection(memberships, {"ups": of_s1, "aam": memberships})}


def within_maps(depth: int, leaf: FieldType) -> FieldType:
    return MapType(within_maps(depth - 1, leaf)) if depth else leaf


def by_key(depth: int, leaf: FieldType) -> FieldType:
    return MapSelection(within_maps(depth - 1, leaf), {"k": by_key(depth - 1, leaf)}) if depth else leaf


def test_s23_a_path_through_64_maps_is_cut_out_as_fast_as_each_map_once() -> None:
    depth = 64
    schema = ObjectType({"deep": within_maps(depth, ObjectType({"last": TEXT, "other": TEXT}))})
    path = ".".join(["deep", *["k"] * depth, "last"])

    found = select_fields(schema, [path], "spec.fields").fields

    assert found == ObjectType({"deep": by_key(depth, ObjectType({"last": TEXT}))})


def test_s23_what_some_key_keeps_is_possible_behind_every_map_above() -> None:
    leaf = ObjectType({"a": TEXT, "b": TEXT, "c": TEXT})

    found = select_fields(
        ObjectType({"m": within_maps(2, leaf)}), ["m.x.p.b", "m.y.p.a", "m.y.q.b"], "spec.fields"
    )

    one, both = (
        {"a": ObjectType({"a": TEXT}), "b": ObjectType({"b": TEXT})},
        ObjectType({"a": TEXT, "b": TEXT}),
    )
    kept = {
        "x": MapSelection(one["b"], {"p": one["b"]}),
        "y": MapSelection(both, {"p": one["a"], "q": one["b"]}),
    }
    assert found.fields == ObjectType({"m": MapSelection(MapType(both), kept)})


def test_paths_through_more_maps_within_maps_than_there_may_be_are_refused() -> None:
    schema = ObjectType({"deep": within_maps(10, TEXT)})
    paths = [".".join(["deep", f"k{number}", *["k"] * 9]) for number in range(MOST_MAPS_SQUARED // 100)]

    select_fields(schema, paths, "spec.fields")
    with pytest.raises(InvalidArgumentError, match="add up to 100,100, and may to 100,000") as caught:
        select_fields(schema, [*paths, paths[0]], "spec.fields")

    assert caught.value.reason == "TOO_MANY_ITEMS"
    assert [violation.field for violation in caught.value.violations] == ["spec.fields"]


def test_s2_a_key_that_is_a_namespace_is_found_without_regard_to_case() -> None:
    spellings = {"segmentMembership": {"ups": "UPS"}, "identityMap": {"email": "Email"}}

    selection = select_fields(
        SCHEMA, ["segmentMembership.ups", "identityMap.EMAIL"], "spec.fields", spellings
    )

    assert selection.identities == IdentitySelection((), {"Email": IDENTITY_MEMBERS})
    chosen = selection.fields.fields["segmentMembership"]
    assert isinstance(chosen, MapSelection)
    assert list(chosen.keys) == ["UPS"]


def test_s25_a_namespace_of_the_identity_map_comes_beside_members_of_all_of_them() -> None:
    found = selected("identities.id", "identityMap.Email.primary", "identityMap.CRM").identities

    assert found == IdentitySelection(("id",), {"Email": ("primary",), "CRM": IDENTITY_MEMBERS})
    assert found.any_members == IDENTITY_MEMBERS
    assert found.type == MapSelection(
        IDENTITY_MAP_TYPE.value,
        {"Email": ArrayType(ObjectType({"id": TEXT, "primary": BOOLEAN})), "CRM": IDENTITY_MAP_TYPE.value},
        ArrayType(ObjectType({"id": TEXT})),
    )


def test_s25_namespaces_alone_keep_no_others() -> None:
    chosen = selected("identityMap.Email.id").identities.type

    assert isinstance(chosen, MapSelection)
    assert chosen.others is None


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("scores.a.valeu", "scores.a.value"),
        ("segmentMembership.ups.s1.state", "segmentMembership.ups.s1.status"),
        ("identityMap.Email.idd", "identityMap.Email.id"),
        ("shops.ghent.street", "shops"),
        ("orders.skus", "orders.sku"),
    ],
)
def test_s23_an_unknown_path_may_have_been_meant_for_what_is_behind_the_keys_that_it_names(
    path: str, meant: str
) -> None:
    candidates = UnknownPath(path, SCHEMA).candidates()

    assert meant in candidates
    assert set(known_paths(SCHEMA)) <= set(candidates)


# --- Known paths ---


def test_known_paths_are_objects_and_their_members_through_arrays_and_not_behind_maps() -> None:
    assert known_paths(SCHEMA) == [
        "identityMap",
        "person",
        "person.name",
        "person.name.firstName",
        "person.name.lastName",
        "person.active",
        "loyal",
        "orders",
        "orders.sku",
        "orders.price",
        "orders.tags",
        "baskets",
        "baskets.sku",
        "baskets.price",
        "baskets.tags",
        "scores",
        "shops",
        "segmentMembership",
    ]
