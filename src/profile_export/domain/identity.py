"""Who someone is: identities, their namespaces, and the key that files are sorted by."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from struct import Struct

MAX_IDENTITIES = 50
"""Profiles with more identities are left out (S7; Adobe's hard limit)."""

_HALVES = Struct(">qq")
IdentityKey = tuple[int, int]


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """A namespaced id. `namespace` is spelled as it was sent unless said otherwise."""

    namespace: str
    id: str

    @property
    def folded(self) -> Identity:
        """The same identity with its namespace as compared (S2): without regard to case."""
        return Identity(fold_namespace(self.namespace), self.id)


def fold_namespace(namespace: str) -> str:
    """Return the form under which a namespace is found, whatever its case (S2)."""
    return namespace.casefold()


def identity_key(identity: Identity) -> IdentityKey:
    """Return the 128-bit identity key as two signed 64-bit halves, the high one first.

    Files lie sorted by it, and exports are cut into ranges of the high half. 128 bits, because among a billion
    identities two share a 64-bit hash with a probability of 3 %.
    """
    text = f"{fold_namespace(identity.namespace)}\0{identity.id}".encode()
    high, low = _HALVES.unpack(blake2b(text, digest_size=16).digest())
    return high, low
