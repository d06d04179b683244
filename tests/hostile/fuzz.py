"""Calls that no client makes, one like the other for one seed: which method, which bytes, and who sends them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from tests.hostile.methods import BESIDE, CONTRACT, Metadata, Method, methods
from tests.hostile.mutations import mutated
from tests.hostile.oddities import Oddities
from tests.hostile.recording import Recording

_HURRY = 0.03
"""The share of calls whose caller hangs up before most answers."""
_ODD_METADATA: Sequence[Metadata] = (
    (("x-gw-ims-org-id", "a/../b"), ("x-sandbox-name", "prod")),
    (("x-gw-ims-org-id", ""), ("x-sandbox-name", "x" * 65)),
    (("x-gw-ims-org-id", "one"), ("x-gw-ims-org-id", "two")),
    (("x-request-id", "y" * 4_000), ("x-odd-bin", b"\0\xff")),
    (("x-gw-ims-org-id", "nobody"),),
)


@dataclass(frozen=True)
class Call:
    """`kind` says how its bytes were made; `timeout` is None for a caller who waits."""

    method: Method
    kind: str
    messages: Sequence[bytes]
    metadata: Metadata
    timeout: float | None


class Calls:
    """Makes calls, most of them as the tenant that was recorded."""

    def __init__(self, dice: random.Random, recording: Recording, metadata: Metadata) -> None:
        self._dice, self._recording, self._metadata = dice, recording, metadata
        known = {name: list(values) for name, values in recording.values.items()}
        known["page_token"] += known["next_page_token"]
        known["after_revision"] = known["revision"]
        known["path"] = known["order_by"] = known["fields"]
        self._odd = Oddities(dice, known)
        self._methods = [*methods(*CONTRACT), *methods(*BESIDE)]
        self._all = [message for calls in recording.calls.values() for sent in calls for message in sent]
        self._kinds = {
            "random": self._random,
            "odd": self._made,
            "changed": self._changed,
            "mutated": self._mutated,
            "of another method": self._misled,
        }

    def next(self) -> Call:
        method = self._dice.choice(self._methods)
        (kind,) = self._dice.choices(list(self._kinds), (1, 4, 4, 4, 1))
        messages = self._kinds[kind](method)
        metadata = self._dice.choice(_ODD_METADATA) if self._dice.random() < 0.05 else self._metadata
        timeout = self._dice.choice((0.001, 0.01, 0.05)) if self._dice.random() < _HURRY else None
        return Call(method, kind, messages, metadata, timeout)

    def _random(self, method: Method) -> Sequence[bytes]:
        return [
            self._dice.randbytes(self._dice.choice((0, 1, 10, 200, 5_000)))
            for _ in range(self._count(method))
        ]

    def _made(self, method: Method) -> Sequence[bytes]:
        return [self._odd.message(method.request).SerializeToString() for _ in range(self._count(method))]

    def _changed(self, method: Method) -> Sequence[bytes]:
        sent = self._sent(method)
        at = self._dice.randrange(len(sent))
        message: Message = GetMessageClass(method.request)()
        message.ParseFromString(sent[at])
        for _ in range(self._dice.choice((1, 1, 2, 4))):
            self._odd.change(message)
        sent[at] = message.SerializeToString()
        return self._reordered(sent)

    def _mutated(self, method: Method) -> Sequence[bytes]:
        sent = self._sent(method)
        at = self._dice.randrange(len(sent))
        sent[at] = mutated(self._dice, sent[at], self._dice.choice(self._all))
        return self._reordered(sent)

    def _misled(self, method: Method) -> Sequence[bytes]:
        return [self._dice.choice(self._all) for _ in range(self._count(method))]

    def _sent(self, method: Method) -> list[bytes]:
        return list(self._dice.choice(self._recording.calls[method.path]))

    def _count(self, method: Method) -> int:
        return self._dice.choice((0, 1, 2, 5)) if method.takes_stream else 1

    def _reordered(self, sent: list[bytes]) -> list[bytes]:
        """Of a stream, perhaps leave messages out, send them twice or in another order."""
        if len(sent) > 1 and self._dice.random() < 0.3:
            return self._dice.choices(sent, k=self._dice.randint(1, len(sent) + 1))
        return sent


def texts_of(call: Call) -> list[str]:
    """Return the texts that a call sends, as far as its messages can be read."""
    recording = Recording()
    for raw in call.messages:
        message: Message = GetMessageClass(call.method.request)()
        try:
            message.ParseFromString(raw)
        except DecodeError:
            continue
        recording.harvest(message)
    return [value for values in recording.values.values() for value in values if isinstance(value, str)]
