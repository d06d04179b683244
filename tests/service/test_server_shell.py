"""The server around the servicers: one of the test's own, on loopback, called by grpc's client."""

import asyncio
import gc
import importlib.util
import itertools
import json
import logging
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import grpc.aio
import pytest
import structlog
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, PreconditionFailure, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

import profile_export
from profile_export.api.interceptors import current_tenant, write_last
from profile_export.api.server import BindError, GrpcServer, Service, contract, create_server
from profile_export.api.status import CODES, status_of
from profile_export.app.processes import configure_logs, run
from profile_export.domain.errors import (
    AbortedError,
    AlreadyExistsError,
    DomainError,
    ExhaustedError,
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
    PastEndError,
    UnavailableError,
    UnimplementedError,
    server_draining,
)
from profile_export.domain.schemas.types import TypeConflictError
from profile_export.v1.dataset_service_pb2_grpc import DatasetServiceServicer
from profile_export.v1.export_service_pb2_grpc import ExportServiceServicer
from profile_export.v1.profile_service_pb2_grpc import ProfileServiceServicer
from profile_export.v1.schema_service_pb2_grpc import SchemaServiceServicer

ECHO = "test.Echo"
FULL = Path("/dev/full")
ONE_SECOND = timedelta(seconds=1)
AN_HOUR = timedelta(hours=1)
KINDS: list[tuple[DomainError, grpc.StatusCode]] = [
    (InvalidArgumentError.of_field("spec.fields[2]", "is no field."), grpc.StatusCode.INVALID_ARGUMENT),
    (NotFoundError.of("merge policy", "p1"), grpc.StatusCode.NOT_FOUND),
    (AlreadyExistsError("REQUEST_ID_REUSED", "Used."), grpc.StatusCode.ALREADY_EXISTS),
    (
        FailedPreconditionError("JOB_FINISHED", "Over.", metadata={"id": "7"}),
        grpc.StatusCode.FAILED_PRECONDITION,
    ),
    (AbortedError("UPLOAD_LIVE", "Another.", retry_after=timedelta(seconds=2.5)), grpc.StatusCode.ABORTED),
    (
        PastEndError("REVISION_OUT_OF_RANGE", "Too new.", metadata={"revision": "3"}),
        grpc.StatusCode.OUT_OF_RANGE,
    ),
    (UnimplementedError.of_method("GetProfile"), grpc.StatusCode.UNIMPLEMENTED),
    (UnavailableError("BUSY", "Later.", retry_after=ONE_SECOND), grpc.StatusCode.UNAVAILABLE),
    (ExhaustedError("QUOTA_EXCEEDED", "Full.", metadata={"used": "7"}), grpc.StatusCode.RESOURCE_EXHAUSTED),
]

Detail = TypeVar("Detail", bound=Message)
Context = grpc.aio.ServicerContext[Any, Any]


class Echo:
    """One method of each kind. Each greets its tenant, or raises what it was told to raise."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.watch_is_over = False
        self.watching = asyncio.Event()
        self.ending = asyncio.Event()
        self.abandoned = asyncio.Event()

    def add_to(self, server: grpc.aio.Server) -> None:
        kinds: dict[str, Callable[..., Any]] = {
            "Unary": grpc.unary_unary_rpc_method_handler,
            "Download": grpc.unary_stream_rpc_method_handler,
            "Generate": grpc.unary_stream_rpc_method_handler,
            "Watch": grpc.unary_stream_rpc_method_handler,
            "Upload": grpc.stream_unary_rpc_method_handler,
            "Chat": grpc.stream_stream_rpc_method_handler,
        }
        handlers = {
            name: make(getattr(self, name.lower()), StringValue.FromString, StringValue.SerializeToString)
            for name, make in kinds.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(ECHO, handlers),))

    def _answer(self, text: str) -> StringValue:
        if self.error is not None:
            raise self.error
        tenant = current_tenant()
        return StringValue(value=f"{tenant.org}/{tenant.sandbox}: {text}")

    async def unary(self, request: StringValue, _context: Context) -> Any:
        if request.value == "wrong type":
            return "a str is no message"
        return self._answer(request.value)

    async def download(self, request: StringValue, context: Context) -> None:
        await context.write(self._answer(request.value))
        await context.write(self._answer(request.value).SerializeToString())

    async def generate(self, request: StringValue, _context: Context) -> AsyncIterator[StringValue]:
        yield self._answer(request.value)
        yield self._answer(request.value)

    async def watch(self, request: StringValue, context: Context) -> None:
        if self.watch_is_over:
            await write_last(context, request.SerializeToString())
        else:
            await context.write(request)
        self.watching.set()
        try:
            await self.ending.wait()
        except asyncio.CancelledError:
            self.abandoned.set()
            raise
        raise server_draining()

    async def upload(self, requests: AsyncIterator[StringValue], _context: Context) -> StringValue:
        return self._answer("+".join([request.value async for request in requests]))

    async def chat(self, requests: AsyncIterator[StringValue], context: Context) -> None:
        async for request in requests:
            await context.write(self._answer(request.value))

    async def end_watches(self) -> None:
        self.ending.set()


class Caller:
    """A channel to the server, its methods by name, and what a call came to."""

    def __init__(self, channel: grpc.aio.Channel, server: GrpcServer, echo: Echo) -> None:
        self.channel = channel
        self.server = server
        self.echo = echo
        self.health = health_pb2_grpc.HealthStub(channel)

    def call(self, method: str, text: str = "hi", metadata: tuple[tuple[str, str], ...] = ()) -> Any:
        coded = (StringValue.SerializeToString, StringValue.FromString)
        path = f"/{ECHO}/{method}"
        if method == "Upload":
            return self.channel.stream_unary(path, *coded)(self._twice(text), metadata=metadata)
        if method == "Chat":
            return self.channel.stream_stream(path, *coded)(self._twice(text), metadata=metadata)
        if method in {"Download", "Generate", "Watch"}:
            return self.channel.unary_stream(path, *coded)(StringValue(value=text), metadata=metadata)
        return self.channel.unary_unary(path, *coded)(StringValue(value=text), metadata=metadata)

    async def texts(
        self, method: str, text: str = "hi", metadata: tuple[tuple[str, str], ...] = ()
    ) -> list[str]:
        return await _texts(self.call(method, text, metadata))

    async def refusal(self, method: str, metadata: tuple[tuple[str, str], ...] = ()) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.texts(method, metadata=metadata)
        return caught.value

    async def serving(self, service: str) -> int:
        answer = await self.health.Check(health_pb2.HealthCheckRequest(service=service))
        return int(answer.status)

    async def _twice(self, text: str) -> AsyncIterator[StringValue]:
        yield StringValue(value=text)
        yield StringValue(value=text)


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    async with _running(Echo()) as running:
        yield running


@asynccontextmanager
async def _running(echo: Echo) -> AsyncIterator[Caller]:
    ids = (f"made-{number}" for number in itertools.count(1))
    services = [Service(ECHO, echo.add_to)]
    server = await create_server(
        services, host="127.0.0.1", port=0, connection_age=AN_HOUR, new_request_id=lambda: next(ids)
    )
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Caller(channel, server, echo)
        await server.drain(stop_claiming=_nothing, end_watches=echo.end_watches, grace=timedelta())


async def _nothing() -> None:
    pass


async def _texts(call: Any) -> list[str]:
    if hasattr(call, "__aiter__"):
        return [message.value async for message in call]
    return [(await call).value]


def _status(error: grpc.aio.AioRpcError) -> Status:
    details = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    assert isinstance(details, bytes)
    status = Status.FromString(details)
    number, _ = error.code().value
    assert status.code == number
    assert status.message == error.details()
    return status


def _details(status: Status, kind: type[Detail]) -> list[Detail]:
    found = []
    for packed in status.details:
        detail = kind()
        if packed.Unpack(detail):
            found.append(detail)
    return found


def _info(status: Status) -> ErrorInfo:
    (info,) = _details(status, ErrorInfo)
    assert info.domain == "profile-export"
    return info


ALL = ["Unary", "Download", "Generate", "Upload", "Chat"]


# --- Errors


def test_every_kind_of_domain_error_stands_in_the_table() -> None:
    kinds = {kind for kind in DomainError.__subclasses__() if kind.__module__.startswith("profile_export.")}

    assert kinds == set(CODES) == {type(error) for error, _ in KINDS}


@pytest.mark.parametrize(("error", "code"), KINDS, ids=lambda value: getattr(value, "name", None))
@pytest.mark.parametrize("method", ALL)
async def test_an_error_of_each_kind_arrives_whole(
    caller: Caller, method: str, error: DomainError, code: grpc.StatusCode
) -> None:
    caller.echo.error = error

    refusal = await caller.refusal(method)

    info = _info(_status(refusal))
    assert refusal.code() is code
    assert refusal.details() == error.message
    assert (info.reason, dict(info.metadata)) == (error.reason, error.metadata)


async def test_a_wrong_field_is_named(caller: Caller) -> None:
    caller.echo.error = InvalidArgumentError.of_field("spec.fields[2]", "is no field.")

    status = _status(await caller.refusal("Unary"))

    (request,) = _details(status, BadRequest)
    assert [(v.field, v.description) for v in request.field_violations] == [
        ("spec.fields[2]", "is no field.")
    ]


async def test_a_failed_precondition_says_what_must_change_first(caller: Caller) -> None:
    caller.echo.error = FailedPreconditionError("JOB_FINISHED", "It is over.", metadata={"id": "7"})

    status = _status(await caller.refusal("Unary"))

    (failure,) = _details(status, PreconditionFailure)
    assert [(v.type, v.subject, v.description) for v in failure.violations] == [
        ("JOB_FINISHED", "7", "It is over.")
    ]


async def test_an_error_that_passes_says_when_to_try_again(caller: Caller) -> None:
    caller.echo.error = AbortedError("UPLOAD_LIVE", "Another.", retry_after=timedelta(seconds=2.5))

    status = _status(await caller.refusal("Unary"))

    (retry,) = _details(status, RetryInfo)
    assert retry.retry_delay.ToTimedelta() == timedelta(seconds=2.5)


def test_a_subclass_has_the_code_of_its_kind() -> None:
    class NarrowerError(TypeConflictError):
        def __init__(self) -> None:
            InvalidArgumentError.__init__(self, "NARROWER", "No.")

    assert status_of(NarrowerError()).code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


async def test_an_error_too_long_for_the_trailers_still_arrives_as_itself(caller: Caller) -> None:
    caller.echo.error = InvalidArgumentError(
        "MANY",
        "ü" * 5_000,
        metadata={"path": "p" * 5_000},
        violations=tuple(FieldViolation(f"rows[{n}]", "ü" * 1_000) for n in range(500)),
    )

    refusal = await caller.refusal("Unary")

    status = _status(refusal)
    (request,) = _details(status, BadRequest)
    assert refusal.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert _info(status).reason == "MANY"
    assert request.field_violations[0].field == "rows[0]"


@pytest.mark.parametrize("method", ALL)
async def test_an_unhandled_error_reaches_the_log_and_not_the_client(caller: Caller, method: str) -> None:
    caller.echo.error = ZeroDivisionError("the secret")

    with capture_logs() as lines:
        refusal = await caller.refusal(method)

    info = _info(_status(refusal))
    assert refusal.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(refusal)
    assert "ZeroDivision" not in str(refusal)
    assert (info.reason, dict(info.metadata)) == ("INTERNAL", {"request_id": "made-1"})
    # Servers that other tests share may sweep meanwhile, and say so.
    (line,) = (line for line in lines if line["log_level"] == "error")
    assert line["exc_info"] is caller.echo.error


async def test_an_answer_of_a_wrong_type_is_an_internal_error(caller: Caller) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.texts("Unary", "wrong type")

    assert _info(_status(caught.value)).reason == "INTERNAL"


async def test_bytes_that_are_no_message_are_the_callers_error(caller: Caller) -> None:
    unary: Any = caller.channel.unary_unary(f"/{ECHO}/Unary")
    upload: Any = caller.channel.stream_unary(f"/{ECHO}/Upload")

    with pytest.raises(grpc.aio.AioRpcError) as in_unary:
        await unary(b"\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as in_upload:
        await upload(iter([b"\xff\xff"]))

    for caught in (in_unary, in_upload):
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert _info(_status(caught.value)).reason == "MESSAGE_MALFORMED"


async def test_a_method_that_does_not_exist_is_refused_like_any_other_call(caller: Caller) -> None:
    refusal = await caller.refusal("Missing")

    assert refusal.code() is grpc.StatusCode.UNIMPLEMENTED
    assert dict(_info(_status(refusal)).metadata) == {"method": f"/{ECHO}/Missing"}
    assert dict(refusal.trailing_metadata() or ())["x-request-id"] == "made-1"


# --- Request ids, tenants, logs


@pytest.mark.parametrize("method", ALL)
async def test_every_answer_carries_a_request_id(caller: Caller, method: str) -> None:
    call = caller.call(method)

    await _texts(call)

    assert await call.code() is grpc.StatusCode.OK
    assert dict(await call.trailing_metadata())["x-request-id"] == "made-1"


@pytest.mark.parametrize("method", ALL)
async def test_every_refusal_carries_the_request_id_of_the_caller(caller: Caller, method: str) -> None:
    caller.echo.error = NotFoundError.of("job", 7)

    refusal = await caller.refusal(method, (("x-request-id", "mine"),))

    assert dict(refusal.trailing_metadata() or ())["x-request-id"] == "mine"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129])
async def test_a_request_id_that_is_not_well_formed_is_replaced(caller: Caller, given: str) -> None:
    trailers = await caller.call("Unary", metadata=(("x-request-id", given),)).trailing_metadata()

    assert dict(trailers)["x-request-id"] == "made-1"


@pytest.mark.parametrize("method", ALL)
async def test_a_call_without_headers_is_the_default_tenants(caller: Caller, method: str) -> None:
    answers = await caller.texts(method)

    assert {answer.split(":")[0] for answer in answers} == {"default/prod"}


@pytest.mark.parametrize("method", ALL)
async def test_headers_name_the_tenant(caller: Caller, method: str) -> None:
    headers = (("x-gw-ims-org-id", "A1@AdobeOrg"), ("x-sandbox-name", "dev"))

    answers = await caller.texts(method, metadata=headers)

    assert {answer.split(":")[0] for answer in answers} == {"A1@AdobeOrg/dev"}


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("header", ["x-gw-ims-org-id", "x-sandbox-name"])
@pytest.mark.parametrize("value", ["", "a/b", "x" * 65])
async def test_a_tenant_that_is_not_well_formed_is_refused(
    caller: Caller, method: str, header: str, value: str
) -> None:
    refusal = await caller.refusal(method, ((header, value),))

    assert refusal.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert _info(_status(refusal)).metadata["field"] == header
    assert dict(refusal.trailing_metadata() or ())["x-request-id"] == "made-1"


async def test_two_tenants_in_one_call_are_refused(caller: Caller) -> None:
    refusal = await caller.refusal("Unary", (("x-sandbox-name", "dev"), ("x-sandbox-name", "prod")))

    assert refusal.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_call_leaves_one_line_in_the_log(caller: Caller) -> None:
    caller.echo.error = NotFoundError.of("job", 7)

    with capture_logs() as lines:
        await caller.refusal("Download", (("x-sandbox-name", "dev"),))

    (line,) = lines
    assert line.pop("duration_ms") > 0
    assert line == {
        "event": "call",
        "log_level": "info",
        "method": f"/{ECHO}/Download",
        "org": "default",
        "sandbox": "dev",
        "code": "NOT_FOUND",
        "reason": "JOB_NOT_FOUND",
        "request_id": "made-1",
    }


async def test_a_call_that_succeeds_is_logged_as_ok(caller: Caller) -> None:
    with capture_logs() as lines:
        await caller.texts("Unary")

    assert [(line["code"], line["reason"]) for line in lines] == [("OK", "")]


async def test_a_client_that_leaves_ends_its_call(caller: Caller) -> None:
    with capture_logs() as lines:
        watch = caller.call("Watch")
        await caller.echo.watching.wait()
        watch.cancel()
        await caller.echo.abandoned.wait()
        await caller.texts("Unary")  # a turn of the loop later

    assert [line["code"] for line in lines] == ["CANCELLED", "OK"]


async def test_a_watcher_that_leaves_with_the_last_message_has_been_answered(caller: Caller) -> None:
    caller.echo.watch_is_over = True

    with capture_logs() as lines:
        watch = caller.call("Watch")
        await caller.echo.watching.wait()
        watch.cancel()
        await caller.echo.abandoned.wait()
        await caller.texts("Unary")  # a turn of the loop later

    assert [line["code"] for line in lines] == ["OK", "OK"]


@contextmanager
def logging_configured(form: str = "auto") -> Iterator[None]:
    before = structlog.get_config()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure_logs("info", form)
        yield
    finally:
        structlog.contextvars.clear_contextvars()
        structlog.configure(**before)
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.mark.parametrize(
    "stderr",
    [
        "closed",
        pytest.param(
            "on a full disk",
            marks=pytest.mark.skipif(
                not FULL.exists(), reason="this system has no device that is always full"
            ),
        ),
    ],
)
def test_a_log_that_cannot_be_written_costs_no_call(monkeypatch: pytest.MonkeyPatch, stderr: str) -> None:
    full = FULL.open("w", buffering=1) if stderr == "on a full disk" else None
    monkeypatch.setattr(sys, "stderr", full)
    monkeypatch.setattr(sys, "stdout", full)

    with logging_configured():
        structlog.get_logger().error("call")
        logging.getLogger("a.library").warning("of %s", "others")

    if full:
        with suppress(OSError):
            full.close()


def test_the_log_is_json_lines_with_tracebacks_and_request_ids(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_configured():
        structlog.contextvars.bind_contextvars(request_id="r1")
        structlog.get_logger().debug("unheard")
        structlog.get_logger().error("call", exc_info=ZeroDivisionError("why"))
        logging.getLogger("a.library").warning("of %s", "others")

    ours, theirs = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (ours["event"], ours["level"], ours["request_id"]) == ("call", "error", "r1")
    assert "ZeroDivisionError: why" in ours["exception"]
    assert (theirs["event"], theirs["level"]) == ("of others", "warning")


def test_the_log_is_for_people_where_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_configured("text"):
        structlog.get_logger().info("job_ended", job_id=7, state="FAILED\x1b[31m")

    (line,) = capsys.readouterr().err.splitlines()
    assert "job_ended" in line
    assert "job_id=7" in line
    assert "\x1b" not in line


# --- Streams


async def test_bytes_that_are_serialised_already_go_out_as_they_are(caller: Caller) -> None:
    assert await caller.texts("Download") == ["default/prod: hi"] * 2


async def test_a_stream_of_requests_is_read(caller: Caller) -> None:
    assert await caller.texts("Upload") == ["default/prod: hi+hi"]
    assert await caller.texts("Chat") == ["default/prod: hi"] * 2


async def test_a_client_refused_in_the_middle_of_a_long_stream_is_told_why(caller: Caller) -> None:
    caller.echo.error = NotFoundError.of("dataset", "d1")
    chunk = StringValue(value="x" * 100_000).SerializeToString()
    chat: Any = caller.channel.stream_stream(f"/{ECHO}/Chat")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [answer async for answer in chat(iter([chunk] * 200))]

    assert _info(_status(caught.value)).reason == "DATASET_NOT_FOUND"


async def test_a_client_that_waits_with_its_stream_open_is_refused_all_the_same(caller: Caller) -> None:
    caller.echo.error = NotFoundError.of("dataset", "d1")
    chat: Any = caller.channel.stream_stream(f"/{ECHO}/Chat")
    call = chat()
    await call.write(StringValue(value="hi").SerializeToString())

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()

    assert _info(_status(caught.value)).reason == "DATASET_NOT_FOUND"


# --- Health, reflection, ports


async def test_health_answers_for_the_server_and_for_every_service(caller: Caller) -> None:
    assert await caller.serving("") == health_pb2.HealthCheckResponse.SERVING
    assert await caller.serving(ECHO) == health_pb2.HealthCheckResponse.SERVING


async def test_health_lists_the_server_and_every_service(caller: Caller) -> None:
    listed = await caller.health.List(health_pb2.HealthListRequest())

    assert {"", ECHO} <= set(listed.statuses)
    assert {one.status for one in listed.statuses.values()} == {health_pb2.HealthCheckResponse.SERVING}


async def test_health_of_a_service_that_is_not_there_is_not_found(caller: Caller) -> None:
    with capture_logs() as lines:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await caller.serving("test.Missing")
        # grpc's own servicer has answered before the call is logged.
        while not (calls := [line for line in lines if line["event"] == "call"]):  # noqa: ASYNC110 - sets no event
            await asyncio.sleep(0)

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert dict(caught.value.trailing_metadata() or ())["x-request-id"] == "made-1"
    assert [line["code"] for line in calls] == ["NOT_FOUND"]


async def test_the_contract_is_served_checked_and_reflected_whole() -> None:
    services = contract(
        datasets=cast("Any", DatasetServiceServicer)(),
        schemas=cast("Any", SchemaServiceServicer)(),
        profiles=cast("Any", ProfileServiceServicer)(),
        exports=cast("Any", ExportServiceServicer)(),
    )
    names = {f"profile_export.v1.{name}Service" for name in ("Dataset", "Schema", "Profile", "Export")}
    server = await create_server(
        services,
        host="::1" if _has_ipv6() else "127.0.0.1",
        port=0,
        connection_age=AN_HOUR,
        new_request_id=str,
    )
    await server.start()
    host = "[::1]" if _has_ipv6() else "127.0.0.1"
    async with grpc.aio.insecure_channel(f"{host}:{server.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        checks = [await health.Check(health_pb2.HealthCheckRequest(service=name)) for name in names]
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = [a async for a in reflection.ServerReflectionInfo(iter([question]))]
        await server.drain(stop_claiming=_nothing, end_watches=_nothing, grace=ONE_SECOND)

    listed = {service.name for service in answer.list_services_response.service}
    assert {check.status for check in checks} == {health_pb2.HealthCheckResponse.SERVING}
    assert listed == names | {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_answers_under_either_name_what_a_client_without_protos_asks(
    caller: Caller, version: str
) -> None:
    # given calls of bytes alone, as a client makes them whose stubs are of that version
    name = f"grpc.reflection.{version}.ServerReflection"
    ask: Any = caller.channel.stream_stream(f"/{name}/ServerReflectionInfo")

    async def answer(**question: str) -> reflection_pb2.ServerReflectionResponse:
        asked = reflection_pb2.ServerReflectionRequest(host="h", **question)
        (told,) = [bytes(one) async for one in ask(iter([asked.SerializeToString()]))]
        return reflection_pb2.ServerReflectionResponse.FromString(told)

    # when it asks for the services, for files by what they hold and by name, and for what is not there
    listed = await answer(list_services="*")
    of_method = await answer(file_containing_symbol="profile_export.v1.ExportService.WatchJob")
    of_file = await answer(file_by_filename="profile_export/v1/job.proto")
    of_itself = await answer(file_containing_symbol=name)
    missing = await answer(file_containing_symbol="profile_export.v2.ExportService")

    # then each is answered, with the files that those need
    services = [service.name for service in listed.list_services_response.service]
    assert {ECHO, name} <= set(services)

    def described(told: reflection_pb2.ServerReflectionResponse) -> dict[str, FileDescriptorProto]:
        found = map(FileDescriptorProto.FromString, told.file_descriptor_response.file_descriptor_proto)
        return {file.name: file for file in found}

    files = described(of_method)
    assert {"profile_export/v1/job.proto", "google/protobuf/timestamp.proto"} <= set(files)
    [service] = files["profile_export/v1/export_service.proto"].service
    assert "WatchJob" in {method.name for method in service.method}
    assert "profile_export/v1/job.proto" in described(of_file)
    [own] = described(of_itself).values()
    assert own.package == f"grpc.reflection.{version}"
    [method] = own.service[0].method
    assert method.input_type == f".grpc.reflection.{version}.ServerReflectionRequest"
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert missing.original_request.host == "h"


async def test_a_second_server_on_the_same_port_is_refused(caller: Caller) -> None:
    with pytest.raises(BindError) as caught:
        await create_server(
            [], host="127.0.0.1", port=caller.server.port, connection_age=AN_HOUR, new_request_id=str
        )

    assert f"127.0.0.1:{caller.server.port}" in str(caught.value)
    assert "--grpc-address" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- Drain


def test_every_option_of_a_channel_has_a_name_that_grpc_knows() -> None:
    spec = importlib.util.find_spec("grpc._cython.cygrpc")
    assert spec is not None
    assert spec.origin is not None
    library = Path(spec.origin).read_bytes()  # it passes over other names without a word
    package = Path(profile_export.__file__).parent

    names = {
        name
        for path in package.rglob("*.py")
        for name in re.findall(r'\("(grpc\.[\w.]+)",', path.read_text())
    }

    assert "grpc.so_reuseport" in names
    assert {name for name in names if name.encode() not in library} == set()


async def test_a_drain_goes_through_its_steps_in_order_and_ends_open_watches(caller: Caller) -> None:
    watch = caller.call("Watch")
    await caller.echo.watching.wait()
    steps: list[tuple[str, int, grpc.StatusCode]] = []

    async def stop_claiming() -> None:
        steps.append(("stop claiming", await caller.serving(ECHO), await caller.call("Unary").code()))

    async def end_watches() -> None:
        steps.append(("end watches", await caller.serving(""), await caller.call("Unary").code()))
        caller.echo.ending.set()

    await caller.server.drain(stop_claiming=stop_claiming, end_watches=end_watches, grace=ONE_SECOND)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [message async for message in watch]

    not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
    assert steps == [
        ("stop claiming", not_serving, grpc.StatusCode.OK),
        ("end watches", not_serving, grpc.StatusCode.UNAVAILABLE),
    ]
    status = _status(caught.value)
    (retry,) = _details(status, RetryInfo)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert _info(status).reason == "SERVER_DRAINING"
    assert retry.retry_delay.ToTimedelta() > timedelta()


async def test_a_watch_of_health_hears_of_the_drain_and_does_not_hold_it_up(caller: Caller) -> None:
    watch = caller.health.Watch(health_pb2.HealthCheckRequest(service=ECHO))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING

    async with asyncio.timeout(AN_HOUR.total_seconds() / 2):
        await caller.server.drain(stop_claiming=_nothing, end_watches=_nothing, grace=AN_HOUR)

    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert (await watch.code()) is grpc.StatusCode.UNAVAILABLE


async def test_a_call_that_outlives_the_grace_is_cancelled(caller: Caller) -> None:
    watch = caller.call("Watch")
    await caller.echo.watching.wait()

    await caller.server.drain(stop_claiming=_nothing, end_watches=_nothing, grace=timedelta(milliseconds=50))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _texts(watch)

    assert caller.echo.abandoned.is_set()
    assert caught.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def _has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


class EndingProcess:
    """Ends by itself as soon as it has started."""

    def __init__(self) -> None:
        self.stopped = False

    async def start(self) -> str:
        return "working"

    async def ended(self) -> None:
        pass

    async def stop(self) -> None:
        self.stopped = True


async def test_a_process_whose_output_is_closed_runs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # so it is where somebody starts us with `>&-`
    process = EndingProcess()

    await run(lambda: process, {})

    gc.unfreeze()
    assert process.stopped
