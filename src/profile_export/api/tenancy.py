"""Whose data a call is about: read from its metadata once, known to everything the call runs."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from functools import lru_cache

from profile_export.application.doors import compute_for
from profile_export.domain.catalog.datasets import Tenant
from profile_export.domain.errors import InvalidArgumentError

ORG = "x-gw-ims-org-id"
SANDBOX = "x-sandbox-name"

# A context variable, because the context of a call takes no attributes; every call runs in a context of its own.
_TENANT: ContextVar[Tenant] = ContextVar("tenant")
_DEFAULT = Tenant()


def current_tenant() -> Tenant:
    """Return the tenant of the call that runs; LookupError outside of a call."""
    return _TENANT.get()


def enter(metadata: Iterable[tuple[str, str | bytes]]) -> Tenant:
    """Make the tenant that a call's metadata names the current one, and return it.

    Raises:
        InvalidArgumentError: A name is not of the agreed form, or given twice with different values.
    """
    named: dict[str, str] = {}
    for key, value in metadata:
        if key in {ORG, SANDBOX}:
            text = str(value)
            if named.setdefault(key, text) != text:
                raise InvalidArgumentError.of_field(key, "is given twice, with different values.")
    tenant = (
        _tenant(named.get(ORG, _DEFAULT.org), named.get(SANDBOX, _DEFAULT.sandbox)) if named else _DEFAULT
    )
    _TENANT.set(tenant)
    compute_for(tenant)
    return tenant


@lru_cache(maxsize=1_024)  # few tenants make many calls
def _tenant(org: str, sandbox: str) -> Tenant:
    return Tenant(org, sandbox)
