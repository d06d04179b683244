"""Who someone is, and the key that files on disk are sorted by."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profile_export.domain.export.plan import HIGHEST_KEY, LOWEST_KEY
from profile_export.domain.merging.identity import (
    Identity,
    fold_namespace,
    identity_key,
    key_digests,
    key_prefix,
    profile_id,
)

texts = st.text(st.characters(exclude_categories=["Cs"]))
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)

# What `printf 'email\0ann@example.com' | b2sum --length 128` says. Files on disk are sorted and joined by these keys:
# a change here means that every stored batch must be written anew.
GOLDEN = {
    ("Email", "ann@example.com"): "3fe4526425a22e6a275e1045693f06b8",
    ("email", ""): "9879b7e9596eba78cbb6147db8f71373",
    ("CRMID", " Zoë 👋"): "5c0aa9db45ddfbb9ee8f511547320b1e",
}


@pytest.mark.parametrize(("namespace", "identity"), GOLDEN)
def test_the_key_of_an_identity_is_the_one_that_files_were_written_with(
    namespace: str, identity: str
) -> None:
    high, low = identity_key(Identity(namespace, identity))

    written = high.to_bytes(8, signed=True) + low.to_bytes(8, signed=True)
    assert written.hex() == GOLDEN[namespace, identity]


@pytest.mark.parametrize(("namespace", "identity"), GOLDEN)
def test_a_profile_has_the_key_of_its_first_identity_in_hex_as_its_id(namespace: str, identity: str) -> None:
    # Whoever has kept an id joins later exports by it: a change here breaks that.
    assert profile_id(Identity(namespace.upper(), identity)) == GOLDEN[namespace, identity]


def test_keys_of_many_identities_are_those_of_each() -> None:
    texts_of_keys = [key_prefix(namespace) + identity.encode() for namespace, identity in GOLDEN]

    assert [key.hex() for key in key_digests(texts_of_keys)] == list(GOLDEN.values())


def test_the_halves_of_a_key_are_signed_and_the_high_one_comes_first() -> None:
    key = identity_key(Identity("email", ""))

    assert key == (-7459729094906824072, -3767801508042173581)


@given(names, texts)
def test_both_halves_of_a_key_fit_a_signed_integer_of_64_bits(namespace: str, identity: str) -> None:
    key = identity_key(Identity(namespace, identity))

    assert all(LOWEST_KEY <= half <= HIGHEST_KEY for half in key)


@given(names, texts)
def test_s2_an_identity_has_one_key_whatever_the_case_of_its_namespace(namespace: str, identity: str) -> None:
    folded = Identity(fold_namespace(namespace), identity)

    assert identity_key(Identity(namespace, identity)) == identity_key(folded)


def test_s2_namespaces_are_found_without_regard_to_case() -> None:
    spellings = ["Email", "EMAIL", "eMail"]

    assert {fold_namespace(spelling) for spelling in spellings} == {"email"}
    assert fold_namespace("STRASSE") == fold_namespace("straße")
    assert fold_namespace("Email") != fold_namespace("Emails")


def test_ids_differ_in_case() -> None:
    ann, shouted = Identity("Email", "ann"), Identity("Email", "ANN")

    assert identity_key(ann) != identity_key(shouted)


def test_the_key_knows_where_the_namespace_ends() -> None:
    one, other = Identity("ab", "c"), Identity("a", "bc")

    assert identity_key(one) != identity_key(other)


def test_identities_are_ordered_by_namespace_then_id() -> None:
    identities = [Identity("b", "1"), Identity("a", "2"), Identity("a", "1")]

    assert sorted(identities) == [Identity("a", "1"), Identity("a", "2"), Identity("b", "1")]
