"""Pages of lists: tokens that hold for the same arguments only, and sizes with a limit."""

from __future__ import annotations

from base64 import b64decode, urlsafe_b64encode
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.lists import (
    DEFAULT_PAGE_SIZE,
    MAX_PAGE_SIZE,
    Condition,
    Order,
    Page,
    PageRequest,
    Read,
    Seal,
    cursor_at,
    cut_page,
    joined_page,
)
from tests.builders import at
from tests.pages import KEY, page_of

SEAL = Seal(KEY, ())


def token_of(cursor: str, *arguments: str) -> str:
    """The token that a list hands out after the item of this key."""
    return cut_page([cursor, "more"], page_of(1, "", *arguments), str).next_token


def encoded(text: bytes) -> str:
    return urlsafe_b64encode(text).decode()


def read_all(items: list[int], page_size: int) -> list[int]:
    """Read a list to its end as a caller does, against a store that looks for keys and never counts."""
    read: list[int] = []
    token = ""
    while True:
        request = page_of(page_size, token, "dataset-1")
        after = [item for item in items if not request.cursor or item > int(request.cursor)]
        page = cut_page(after[: request.size + 1], request, str)
        read += page.items
        token = page.next_token
        if not token:
            return read


@pytest.mark.parametrize(
    ("asked", "given_size"),
    [
        (0, DEFAULT_PAGE_SIZE),
        (1, 1),
        (MAX_PAGE_SIZE, MAX_PAGE_SIZE),
        (MAX_PAGE_SIZE + 1, MAX_PAGE_SIZE),
        (2**31 - 1, MAX_PAGE_SIZE),
    ],
)
def test_a_page_has_the_size_asked_for_within_limits(asked: int, given_size: int) -> None:
    request = page_of(asked, "")

    assert request.size == given_size


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="must not be negative") as refused:
        page_of(-1, "")

    assert refused.value.metadata["field"] == "page_size"


def test_without_a_token_a_list_begins_at_the_beginning() -> None:
    request = page_of(10, "", "dataset-1")

    assert request.cursor == ""


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_token_brings_back_the_key_of_the_last_item(cursor: str) -> None:
    token = token_of(cursor, "dataset-1", "")

    assert page_of(5, token, "dataset-1", "").cursor == cursor


def test_the_size_may_change_from_page_to_page() -> None:
    token = token_of("7", "dataset-1")

    assert page_of(50, token, "dataset-1").cursor == "7"


@pytest.mark.parametrize(
    "others", [(), ("dataset-2", ""), ("", "dataset-1"), ("dataset-1",), ("dataset-1,",)]
)
def test_a_token_is_refused_with_other_arguments(others: tuple[str, ...]) -> None:
    token = token_of("7", "dataset-1", "")

    with pytest.raises(InvalidArgumentError, match="same other arguments") as refused:
        page_of(5, token, *others)

    assert refused.value.reason == "PAGE_TOKEN_INVALID"
    assert refused.value.metadata["field"] == "page_token"


@pytest.mark.parametrize(
    "token",
    [
        "1",
        "garbage",
        "é",
        "\ud800",
        encoded(b"\xff\xfe"),
        encoded(b"not JSON"),
        encoded(b"7"),
        encoded(b"null"),
        encoded(b'["7"]'),
        encoded(b'["7", "x", "y"]'),
        encoded(b'{"cursor": "7", "arguments": "x"}'),
        encoded(b'["7", null]'),
        encoded(b"[" * 100_000),
    ],
    ids=ascii,
)
def test_a_token_that_is_not_ours_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgumentError, match="next_page_token") as refused:
        page_of(5, token, "dataset-1")

    assert refused.value.reason == "PAGE_TOKEN_INVALID"


def test_a_token_of_another_installation_is_refused() -> None:
    token = Seal(b"another", ("dataset-1",)).token("7")

    with pytest.raises(InvalidArgumentError, match="next_page_token"):
        page_of(5, token, "dataset-1")


@pytest.mark.parametrize("cursor", ["7", "", "ünï", "part 1.csv 17", "x" * 1_000])
def test_a_token_that_was_changed_by_one_bit_or_one_letter_is_refused(cursor: str) -> None:
    seal = Seal(KEY, ("dataset-1",))
    token = seal.token(cursor)
    raw = b64decode(token, altchars=b"-_")
    flipped = [
        raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]
        for at, bit in product(range(len(raw))[:40], range(8))
    ]
    cut = [raw[:at] for at in range(len(raw))[:40]]
    longer = [raw + b"\0", b"\0" + raw, raw + raw]
    letters = [
        token[:at] + letter + token[at + 1 :] for at in range(len(token))[-8:] for letter in "AQgw9_-=+/ \n"
    ]

    for changed in (
        *map(encoded, (*flipped, *cut, *longer)),
        *letters,
        f"{token}=",
        f" {token}",
        f"{token}\n",
    ):
        if changed not in {"", token}:
            with pytest.raises(InvalidArgumentError) as refused:
                seal.cursor(changed)
            assert refused.value.reason == "PAGE_TOKEN_INVALID"


def test_what_a_token_is_bound_to_is_taken_apart_as_it_was_put_together() -> None:
    bound = [("a", "b"), ("ab",), ("a", "b", ""), ("", "a", "b"), ('a", "b',), ("a\0b",)]

    tokens = {Seal(KEY, one).token("7") for one in bound}

    assert len(tokens) == len(bound)


def test_a_seal_does_not_show_its_key() -> None:
    assert "key" not in repr(Seal(b"key", ("list",)))


@given(st.text())
def test_any_text_as_a_token_is_refused_and_breaks_nothing(token: str) -> None:
    if not token:
        assert page_of(5, token).cursor == ""
        return

    with pytest.raises(InvalidArgumentError):
        page_of(5, token)


def test_a_page_that_is_not_full_is_the_last() -> None:
    page = cut_page([1, 2], page_of(3, ""), str)

    assert (page.items, page.next_token) == ((1, 2), "")


def test_a_page_of_which_the_store_has_read_a_part_only_goes_on_behind_that() -> None:
    page = cut_page([1, 2], page_of(3), str, has_more=True)

    assert page.items == (1, 2)
    assert page_of(3, page.next_token).cursor == "2"


@pytest.mark.parametrize("items", [[1, 2, 3], [1, 2, 3, 4]])
def test_the_first_items_of_a_page_are_a_page_with_a_token_of_its_own(items: list[int]) -> None:
    page: Page[int] = cut_page(items, page_of(3), str)

    assert page.first(2).items == (1, 2)
    assert page_of(3, page.first(2).next_token).cursor == "2"
    assert page.first(3) == page


def test_a_page_turned_into_other_items_has_the_same_tokens() -> None:
    page = cut_page([1, 2, 3], page_of(2), str)

    turned = page.turned(lambda item: item * 10)

    assert (turned.items, turned.next_token) == ((10, 20), page.next_token)
    assert page_of(2, turned.first(1).next_token).cursor == "1"


def test_a_page_that_is_just_full_is_the_last_if_nothing_follows() -> None:
    page = cut_page([1, 2, 3], page_of(3, ""), str)

    assert (page.items, page.next_token) == ((1, 2, 3), "")


def test_a_page_with_more_behind_it_leaves_the_surplus_item_to_the_next() -> None:
    page = cut_page([1, 2, 3, 4], page_of(3, ""), str)

    assert page.items == (1, 2, 3)
    assert page_of(3, page.next_token).cursor == "3"


def test_a_page_of_nothing_is_the_last() -> None:
    nothing: list[int] = []

    page = cut_page(nothing, page_of(3, ""), str)

    assert (page.items, page.next_token) == ((), "")


@given(st.integers(0, 40), st.integers(1, 12))
def test_pages_together_are_the_whole_list_without_gap_or_repetition(count: int, page_size: int) -> None:
    items = list(range(1, count + 1))

    assert read_all(items, page_size) == items


def test_the_place_that_a_page_begins_behind_is_a_value_and_a_key() -> None:
    order = Order("create_time")
    place = order.place(Item("d1", at(1)))

    assert place == (at(1).timestamp() * 1_000_000, "d1")
    assert page_of(0, token_of(cursor_at(place))).after == place
    assert order.place(Item("d2", None)) == (0, "d2")
    assert page_of().after is None


@pytest.mark.parametrize("cursor", ["x", "7", "null", "[]", "[1]", "[1, 2, 3]"])
def test_a_key_of_another_list_is_refused(cursor: str) -> None:
    request = page_of(0, token_of(cursor))

    with pytest.raises(InvalidArgumentError) as refused:
        _ = request.after

    assert refused.value.reason == "PAGE_TOKEN_INVALID"


# --- Lists of what is built in beside what is stored ---


@dataclass(frozen=True)
class Item:
    id: str
    create_time: datetime | None = None
    name: str = ""


NAMES = st.sampled_from(["", "A", "a", "b", "é", "z", "\U0001f600"])
TIMES = st.integers(0, 3).map(at)


@given(
    st.lists(NAMES, max_size=3),
    st.lists(st.tuples(NAMES, TIMES), max_size=9),
    st.sampled_from(
        [None, *(Order(field, down) for field in ("create_time", "name") for down in (False, True))]
    ),
    NAMES,
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_pages_of_both_together_are_the_whole_list_in_its_order(
    built: list[str], made: list[tuple[str, datetime]], order: Order | None, least: str, size: int, room: int
) -> None:
    """Against a store of which a page reads as many as it asks for, or as there is room for."""
    built_in = [Item(f"b{number}", None, name) for number, name in enumerate(built)]
    stored = [Item(f"s{number}", time, name) for number, (name, time) in enumerate(made)]
    used = order or Order("create_time")
    wanted = [item for item in (*built_in, *stored) if item.name >= least]

    def read(request: PageRequest) -> Read[Item]:
        found = sorted((one for one in stored if one in wanted), key=used.place, reverse=used.descending)
        after = request.after
        behind = [one for one in found if after is None or used.is_behind(used.place(one), after)]
        return Read(behind[: min(request.size, room)], len(behind) > min(request.size, room))

    listed: list[Item] = []
    token = ""
    while True:
        request = replace(page_of(size, token), order=order, filter=(Condition("name", ">=", least),))
        page = joined_page(
            built_in, read(request), request, Order("create_time"), lambda one: {"name": one.name}
        )
        assert page.items or not page.next_token
        listed += page.items
        token = page.next_token
        if not token:
            break

    assert listed == sorted(wanted, key=used.place, reverse=used.descending)
