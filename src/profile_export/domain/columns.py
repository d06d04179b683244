"""The system columns of a data file: what ingestion adds to a row and every engine relies on.

Batch number and ingest time are not among them: they are known only at the commit, stand on the batch's row and
are bound to a plan (DESIGN §7).
"""

from __future__ import annotations

BATCH_ID = "_batch_id"
"""text: the batch that the row belongs to; also in exported files."""
ROW = "_row"
"""64-bit integer: the row's number in its batch, from 0."""
NAMESPACE = "_namespace"
"""text: namespace of the primary identity, spelled as sent."""
IDENTITY = "_identity"
"""text: id of the primary identity."""
AUTHENTICATED_STATE = "_authenticated_state"
"""text or null: the primary identity's state, null where it is absent or `ambiguous` (S6)."""
KEY_HIGH = "_key_high"
KEY_LOW = "_key_low"
"""64-bit integers: the halves of the primary identity's key. A file is sorted by (high, low, row)."""
LINKS = "_links"
"""list or null: the record's other identities, each {namespace, id, authenticated_state, key_high, key_low}; null
where there is none."""

SYSTEM_COLUMNS = (BATCH_ID, ROW, NAMESPACE, IDENTITY, AUTHENTICATED_STATE, KEY_HIGH, KEY_LOW, LINKS)
