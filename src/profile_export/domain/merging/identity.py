"""Who someone is: identities, their namespaces, and the key that files are sorted by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from struct import Struct

MAX_IDENTITIES = 50
"""Profiles with more identities are left out (S7; Adobe's hard limit)."""

UNUSUALLY_MANY = 20
"""Of a profile with more identities than this, the one that links most is named: often it is nobody's own."""

_HALVES = Struct(">qq")
IdentityKey = tuple[int, int]


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """A namespaced id. `namespace` is spelled as it was sent unless said otherwise."""

    namespace: str
    id: str


def fold_namespace(namespace: str) -> str:
    """Return the form under which a namespace is found, whatever its case (S2)."""
    return namespace.casefold()


def identity_key(identity: Identity) -> IdentityKey:
    """Return the 128-bit identity key as two signed 64-bit halves, the high one first.

    Files lie sorted by it, and exports are cut into ranges of the high half. 128 bits, because among a billion
    identities two share a 64-bit hash with a probability of 3 %.
    """
    return key_of(identity.namespace, identity.id)


def key_of(namespace: str, identity_id: str) -> IdentityKey:
    """Return the `identity_key` of an identity in parts: ingestion asks for millions."""
    text = key_prefix(namespace) + identity_id.encode()
    high, low = _HALVES.unpack(blake2b(text, digest_size=16).digest())
    return high, low


def profile_id(first: Identity) -> str:
    """Return the id of the profile whose key is that of an identity: 32 hexadecimal characters, in lower case.

    It is the same for as long as the profile keeps the identity, whatever else of it changes.
    """
    return _HALVES.pack(*identity_key(first)).hex()


@lru_cache(1024)
def key_prefix(namespace: str) -> bytes:
    """Return the prefix that all keys of a namespace are hashed with.

    Cached: a tenant has few namespaces and many ids.
    """
    return f"{fold_namespace(namespace)}\0".encode()


def key_digests(texts: Iterable[bytes]) -> list[bytes]:
    """Return the keys of many identities, each 16 bytes with the high half first; a text is prefix and id."""
    return [blake2b(text, digest_size=16).digest() for text in texts]
