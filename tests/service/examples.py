"""The examples of docs/semantics.md: read from the page, and carried out by a caller."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import grpc.aio
import pyarrow.parquet as pq
from google.protobuf.json_format import ParseDict

from profile_export.v1 import dataset_pb2, job_pb2, merge_policy_pb2
from tests.builders import read_export
from tests.service.harness import Caller, Refusal, refusal_from
from tests.service.pages import Block, page
from tests.service.stored import as_sent

PAGE = "docs/semantics.md"
_STEP = re.compile(r"^- (\w+): ", re.MULTILINE)
_SENTENCE = re.compile(r"S(\d+) ")
_ALL_BETWEEN = "…"
_IDENTITIES = {"id": "CRM", "email": "Email"}
_KINDS = {"crm": "record", "shop": "record", "web": "event", "app": "event"}
_OUTCOMES = {"rows", "batches", "columns", "left_out", "notes", "refused"}


@dataclass(frozen=True)
class Step:
    """A line of an example: a word and what stands behind it."""

    word: str
    value: Any


@dataclass(frozen=True)
class Example:
    """The example of a sentence, the `index`-th of it."""

    sentence: int
    index: int
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return f"S{self.sentence}-{self.index}"


def examples() -> list[Example]:
    """Read the examples of the page, in their order."""
    found: list[Example] = []
    for block in page(PAGE)[0]:
        sentence = _SENTENCE.match(block.heading)
        assert sentence, f"a block under {block.heading!r}, which is no sentence"
        number = int(sentence[1])
        index = 1 + sum(one.sentence == number for one in found)
        found.append(Example(number, index, tuple(_steps(block))))
    return found


def _steps(block: Block) -> Iterator[Step]:
    _, *parts = _STEP.split(block.text)
    for word, text in zip(parts[::2], parts[1::2], strict=True):
        yield Step(word, _all_between(json.loads(text)))


def _all_between(value: Any) -> Any:
    """Put the identities that `…` stands for in its place."""
    if isinstance(value, dict):
        return {name: _all_between(member) for name, member in value.items()}
    if not isinstance(value, list):
        return value
    if _ALL_BETWEEN not in value:
        return [_all_between(item) for item in value]
    first, _, last = value
    return [{"id": str(number)} for number in range(int(first["id"]), int(last["id"]) + 1)]


def _type(word: Any) -> dataset_pb2.FieldType:
    """Write a type as `types_of` reads it: a word, an object as a dict, a map as one with the name `*`."""
    if isinstance(word, str):
        return dataset_pb2.FieldType(scalar=dataset_pb2.ScalarType.Value(f"SCALAR_TYPE_{word.upper()}"))
    if "*" in word:
        return dataset_pb2.FieldType(map=dataset_pb2.MapType(value=_type(word["*"])))
    fields = [dataset_pb2.Field(name=name, type=_type(member)) for name, member in word.items()]
    return dataset_pb2.FieldType(object=dataset_pb2.ObjectType(fields=fields))


@dataclass
class Play:
    """An example being carried out: what it has made so far, by the names that it gives them."""

    caller: Caller
    datasets: dict[str, str] = field(default_factory=dict)
    policies: dict[str, str] = field(default_factory=dict)
    batches: list[tuple[str, Any]] = field(default_factory=list)
    job: job_pb2.ExportJob = field(default_factory=job_pb2.ExportJob)
    refusal: Refusal | None = None

    async def carry_out(self, example: Example) -> None:
        """Carry out every step; what was refused must say so in the next one."""
        for step in example.steps:
            if step.word in _OUTCOMES:
                await self._check(step)
                continue
            assert self.refusal is None, self.refusal
            try:
                await self._act(step)
            except grpc.aio.AioRpcError as error:
                self.refusal = refusal_from(error)
        assert self.refusal is None, self.refusal

    async def _act(self, step: Step) -> None:
        match step.word:
            case "dataset":
                await self._make(**step.value)
            case "policy":
                await self._make_policy(**step.value)
            case "revert":
                await self.caller.revert(self._batch(step.value)[0])
            case "delete":
                await self.caller.delete(self.datasets[step.value])
            case "export":
                await self._export(dict(step.value))
            case dataset:
                rows = step.value if isinstance(step.value, list) else [step.value]
                dataset_id = await self._dataset(dataset)
                batch_id = f"{len(self.batches) + 1}-{dataset_id}"
                batch = await self.caller.upload(dataset_id, batch_id, rows)
                self.batches.append((batch_id, batch.ingest_time.ToJsonString()))

    async def _dataset(self, name: str) -> str:
        if name not in self.datasets:
            await self._make(name)
        return self.datasets[name]

    async def _make(
        self,
        name: str,
        schema: str = "",
        tags: Sequence[str] = (),
        declared: Mapping[str, Any] | None = None,
    ) -> None:
        kind = schema or _KINDS.get(name, "record")
        self.datasets[name] = await self.caller.dataset(
            kind,
            {} if kind == "union" else _IDENTITIES,
            name=name,
            tags={"unifiedProfile": dataset_pb2.TagValues(values=tags)} if tags else None,
            declared={path: _type(word) for path, word in (declared or {}).items()},
        )

    async def _make_policy(
        self,
        name: str,
        identity_graph: str = "none",
        order: Sequence[str] = (),
        excluded: Sequence[Mapping[str, str]] = (),
    ) -> str:
        graph = merge_policy_pb2.IdentityGraph.Value(f"IDENTITY_GRAPH_{identity_graph.upper()}")
        named = [self.datasets[dataset] for dataset in order]
        self.policies[name] = await self.caller.policy(graph, named, excluded)
        return self.policies[name]

    def _batch(self, name: str) -> tuple[str, Any]:
        return self.batches[int(name.removeprefix("batch ")) - 1]

    async def _export(self, spec: dict[str, Any]) -> None:
        if policy := spec.pop("merge_policy", None):
            made = self.policies.get(policy) or await self._make_policy(policy, policy)
            spec["merge_policy"] = {"id": made}
        out = {"dataset_id": await self.caller.dataset("union"), **spec.pop("destination", {})}
        request = ParseDict(self._at_ingest_times(spec | {"destination": out}), job_pb2.ExportSpec())
        created = await self.caller.create(request)
        self.job = await self.caller.finished(created.id)
        assert self.job.state == job_pb2.JOB_STATE_SUCCEEDED, self.job

    def _at_ingest_times(self, value: Any) -> Any:
        match value:
            case dict():
                return {
                    name: self._batch(member)[1]
                    if name.endswith("_ingest_time")
                    else self._at_ingest_times(member)
                    for name, member in value.items()
                }
        return value

    # --- What comes out ---

    async def _check(self, step: Step) -> None:
        match step.word:
            case "rows":
                assert self.refusal is None, self.refusal
                check_rows(await self._rows(self.job.batch_id), step.value)
            case "batches":
                assert {batch.segment_id for batch in self.job.batches} == set(step.value)
                for batch in self.job.batches:
                    check_rows(await self._rows(batch.batch_id), step.value[batch.segment_id])
            case "columns":
                [path] = await self._paths(self.job.batch_id)
                assert sorted(set(pq.read_schema(path).names) - {"_batch_id", "_profile_id"}) == step.value
            case "left_out":
                counts = self.job.metrics.left_out
                assert {figure.name: count for figure, count in counts.ListFields()} == step.value, counts
            case "notes":
                assert [self._with_names(note) for note in self.job.notes] == step.value, self.job.notes
            case "refused":
                self._check_refusal(step.value)

    async def _paths(self, batch_id: str) -> list[Path]:
        return [Path(unquote(urlsplit(file.location).path)) for file in await self.caller.files(batch_id)]

    async def _rows(self, batch_id: str) -> list[Any]:
        return [
            row
            for path in await self._paths(batch_id)
            for row in read_export(path.parent, [path.name], batch_id)
        ]

    def _with_names(self, note: str) -> str:
        for name, made in (self.datasets | self.policies).items():
            note = note.replace(made, name)
        return note

    def _check_refusal(self, expected: Mapping[str, str]) -> None:
        assert self.refusal is not None, f"nothing was refused, but {expected} was expected"
        told = {
            **self.refusal.metadata,
            "status": self.refusal.code.name,
            "reason": self.refusal.reason,
            "field": next(iter(self.refusal.fields), ""),
        }
        assert {name: told.get(name) for name in expected} == expected, self.refusal
        self.refusal = None


def check_rows(found: Sequence[Any], expected: Sequence[Any]) -> None:
    """Compare rows in any order."""
    assert sorted(map(as_sent, found), key=_as_text) == sorted(map(as_sent, expected), key=_as_text), found


def _as_text(row: Any) -> str:
    return json.dumps(row, sort_keys=True, default=str)
