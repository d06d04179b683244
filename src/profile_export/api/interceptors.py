"""Around every call: request id, tenant, turns, error table, one line in the log."""

from __future__ import annotations

import asyncio
import inspect
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing, nullcontext, suppress
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NoReturn, TypeAlias
from weakref import WeakValueDictionary

import grpc.aio
import structlog
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from profile_export.api.admission import admitting
from profile_export.api.status import code_of, internal_status, status_of, system_refusal
from profile_export.application.doors import compute_for, compute_if
from profile_export.domain.catalog.datasets import Tenant
from profile_export.domain.errors import (
    DomainError,
    InvalidArgumentError,
    UnimplementedError,
    server_draining,
)

MOST_AT_ONCE = 16
"""More would be no faster, and would stand in the one queue for connections before every other tenant's call."""

REQUEST_ID = "x-request-id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_READ_ON_SECONDS = 0.5
_MANY_BYTES = 16 * 1024  # to decode and check so many takes some milliseconds
_OF_THE_SERVER = "/grpc."  # health and reflection, which must answer to the end

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_Behaviour: TypeAlias = Callable[[Any, Context], Awaitable[Any]]
# In quotes: only the stubs know it as generic.
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Lookup: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]]"

_log = structlog.get_logger()

# By (request_streaming, response_streaming).
_MAKE_HANDLER: dict[tuple[bool, bool], Callable[..., _Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}

_ORG = "x-gw-ims-org-id"
_SANDBOX = "x-sandbox-name"

# A context variable, because the context of a call takes no attributes; every call runs in a context of its own.
_TENANT: ContextVar[Tenant] = ContextVar("tenant")
_DEFAULT = Tenant()
_CALL: ContextVar[_Call] = ContextVar("call")


def current_tenant() -> Tenant:
    """Return the tenant of the call that runs; LookupError outside of a call."""
    return _TENANT.get()


async def write_last(context: Context, message: bytes) -> None:
    """Write the message of a stream after which nothing follows: a client that goes with it has not hung up."""
    _CALL.get().has_said_all = True
    await context.write(message)


def _enter(metadata: Iterable[tuple[str, str | bytes]]) -> Tenant:
    """Make the tenant that a call's metadata names the current one, and return it.

    Raises:
        InvalidArgumentError: A name is not of the agreed form, or given twice with different values.
    """
    named: dict[str, str] = {}
    for key, value in metadata:
        if key in {_ORG, _SANDBOX}:
            text = str(value)
            if named.setdefault(key, text) != text:
                raise InvalidArgumentError.of_field(key, "is given twice, with different values.")
    tenant = (
        _tenant(named.get(_ORG, _DEFAULT.org), named.get(_SANDBOX, _DEFAULT.sandbox)) if named else _DEFAULT
    )
    _TENANT.set(tenant)
    compute_for(tenant)
    return tenant


@lru_cache(maxsize=1_024)  # few tenants make many calls
def _tenant(org: str, sandbox: str) -> Tenant:
    return Tenant(org, sandbox)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method of a server, of all four kinds. It must be the last of a server's interceptors.

    Servicers raise `DomainError`s, and may give bytes where a response message is expected: those go out as they are.
    """

    def __init__(self, new_request_id: Callable[[], str]) -> None:
        self._new_request_id = new_request_id
        self._handlers: dict[str, _Handler] = {}
        # By tenant and method; those that nobody has or waits for are forgotten.
        self._turns: WeakValueDictionary[tuple[Tenant, str], asyncio.Semaphore] = WeakValueDictionary()
        self._draining = False

    def refuse_new_calls(self) -> None:
        """From now on answer new calls with UNAVAILABLE SERVER_DRAINING; those that run are left alone."""
        self._draining = True

    async def intercept_service(
        self, continuation: _Lookup, handler_call_details: grpc.HandlerCallDetails
    ) -> _Handler | None:
        """Return the wrapped handler; an unknown method gets one too, so that its refusal has all details."""
        method = handler_call_details.method
        wrapped = self._handlers.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:  # not kept: names that callers make up would grow the table without end
                return self._wrap(method, grpc.stream_stream_rpc_method_handler(_refuse_unknown(method)))
            wrapped = self._handlers[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: _Handler) -> _Handler:
        behaviour = _as_coroutine_function(handler)
        decode = admitting(method, handler.request_deserializer or _as_it_is)
        encode = _lenient_encoder(handler.response_serializer)
        serves_drained = method.startswith(_OF_THE_SERVER)
        # Streams have quotas instead: they may stay open for long.
        is_stream = handler.request_streaming or handler.response_streaming
        takes_turns = not (is_stream or serves_drained)

        # Single messages are decoded and encoded in here, where what goes wrong meets the error table.
        async def answer(request: Any, context: Context) -> bytes | None:
            if self._draining and not serves_drained:
                raise server_draining()
            response = await behaviour(await _read(handler, request, decode), context)
            return None if handler.response_streaming else encode(response)

        async def serve(request: Any, context: Context) -> bytes | None:
            metadata = context.invocation_metadata() or ()
            call = _Call(method, _well_formed_id(metadata) or self._new_request_id())
            context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
            try:
                call.tenant = _enter(metadata)
                async with self._turn(call.tenant, method) if takes_turns else nullcontext():
                    response = await answer(request, context)
            except asyncio.CancelledError:
                call.log_hang_up()
                raise
            except DomainError as error:
                call.log(code_of(error).name, error.reason)
                status = status_of(error)
            except grpc.aio.AbortError:  # a servicer of grpc's own has answered already
                call.log(_code_name(context))
                raise
            except grpc.aio.BaseError as error:
                # A read or a write of a call that is over: its client is gone.
                call.log_hang_up()
                raise asyncio.CancelledError from error
            except Exception as error:  # noqa: BLE001 - the outermost handler: no text of ours may reach a client
                status = _unforeseen(call, error)
            else:
                call.log(_code_name(context))
                return response
            return await _refuse(context, status, call.request_id, is_sending=handler.request_streaming)

        return _MAKE_HANDLER[handler.request_streaming, handler.response_streaming](
            serve,
            request_deserializer=decode if handler.request_streaming else None,
            response_serializer=encode if handler.response_streaming else None,
        )

    def _turn(self, tenant: Tenant, method: str) -> asyncio.Semaphore:
        """Return the places among a tenant's calls to a method, given out first come first served."""
        return self._turns.setdefault((tenant, method), asyncio.Semaphore(MOST_AT_ONCE))


async def _read(handler: _Handler, request: Any, decode: Callable[[bytes], Any]) -> Any:
    """Return what a servicer gets: a stream as it is, a single message decoded, beside the loop if it is large."""
    if handler.request_streaming:
        return request
    return await compute_if(len(request) > _MANY_BYTES, decode, request)


class _Call:
    """What one line of the log says of a call."""

    __slots__ = ("_started", "has_said_all", "method", "request_id", "tenant")

    def __init__(self, method: str, request_id: str) -> None:
        self._started = time.perf_counter()
        self.method = method
        self.request_id = request_id
        self.tenant: Tenant | None = None
        self.has_said_all = False
        _CALL.set(self)
        structlog.contextvars.bind_contextvars(request_id=request_id)  # for lines written while it runs

    def log(self, code: str, reason: str = "", error: Exception | None = None) -> None:
        if error is None:
            _log.info("call", **self._facts(code, reason))
        else:
            _log.error("call", **self._facts(code, reason), exc_info=error)

    def log_hang_up(self) -> None:
        """Say that the client is gone, which is nobody's fault; if it has been told all, it is done."""
        if self.has_said_all:
            self.log("OK")
        else:
            _log.debug("call", **self._facts("CANCELLED", ""))

    def _facts(self, code: str, reason: str) -> dict[str, Any]:
        return {
            "method": self.method,
            "org": self.tenant and self.tenant.org,
            "sandbox": self.tenant and self.tenant.sandbox,
            "code": code,
            "reason": reason,
            "duration_ms": round((time.perf_counter() - self._started) * 1_000, 3),
            "request_id": self.request_id,
        }


def _unforeseen(call: _Call, error: Exception) -> Status:
    if refusal := system_refusal(error):
        # The log names the file or folder, which the operator has to look at; the caller does not learn it.
        call.log(code_of(refusal).name, refusal.reason, error)
        return status_of(refusal)
    call.log("INTERNAL", "INTERNAL", error)
    return internal_status(call.request_id)


async def _refuse(context: Context, status: Status, request_id: str, *, is_sending: bool) -> NoReturn:
    try:
        if is_sending:
            await _read_on(context)
        rich = rpc_status.to_status(status)
        # An abort replaces the trailing metadata that were set before.
        await context.abort(rich.code, rich.details, (*rich.trailing_metadata, (REQUEST_ID, request_id)))
    except grpc.aio.AbortError:
        raise
    except grpc.aio.BaseError as error:  # the client did not wait for its refusal
        raise asyncio.CancelledError from error


async def _read_on(context: Context) -> None:
    """Let a client that is still sending come to its end.

    Python's client reports a write that meets the end of its call as INTERNAL, instead of the status it was given.
    """
    with suppress(TimeoutError, DomainError):
        async with asyncio.timeout(_READ_ON_SECONDS):
            while await context.read() is not grpc.aio.EOF:
                pass


def _well_formed_id(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    for key, value in metadata:
        if key == REQUEST_ID and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return None


def _code_name(context: Context) -> str:
    code: Any = context.code()  # None until somebody sets one, whatever the stubs say
    return "OK" if code is None else str(getattr(code, "name", code))


def _as_coroutine_function(handler: _Handler) -> _Behaviour:
    # The stubs know the methods of threaded servicers only.
    behaviour: Any = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    if not inspect.isasyncgenfunction(behaviour):
        method: _Behaviour = behaviour
        return method

    async def write_all(request: Any, context: Context) -> None:
        async with aclosing(behaviour(request, context)) as messages:
            async for message in messages:
                await context.write(message)

    return write_all


def _as_it_is(raw: bytes) -> bytes:
    return raw


def _lenient_encoder(encode: Callable[[Any], bytes] | None) -> Callable[[Any], bytes]:
    if encode is None:
        return lambda message: message
    # What many watchers get is serialised once.
    return lambda message: message if type(message) is bytes else encode(message)


def _refuse_unknown(method: str) -> _Behaviour:
    async def refuse(_request: Any, _context: Context) -> None:
        raise UnimplementedError(
            "METHOD_UNKNOWN", "There is no such method here.", metadata={"method": method}
        )

    return refuse
