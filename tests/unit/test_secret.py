"""A secret is compared and used, and never shown."""

from __future__ import annotations

from profile_export.config import Secret


def test_a_secret_is_shown_to_who_asks_for_it_alone() -> None:
    secret = Secret("postgresql://me:hidden@db/x")

    assert secret.reveal() == "postgresql://me:hidden@db/x"
    for shown in (str(secret), repr(secret), f"{secret}", f"{[secret]}"):
        assert "hidden" not in shown


def test_secrets_are_alike_where_their_texts_are() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
    assert Secret("a") != "a"
