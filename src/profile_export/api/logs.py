"""How the log looks: one JSON object per line on stderr, also of libraries that use `logging`."""

from __future__ import annotations

import logging
import sys

import grpc.aio
import structlog
from structlog.typing import Processor

_OF_GRPC = "grpc._cython.cygrpc"


def configure_logs(level: str) -> None:
    """Send everything of `level` (`debug`, `info`, `warning`, `error`) and above to stderr, as JSON lines."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    render = structlog.processors.JSONRenderer()
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    logging.getLogger(_OF_GRPC).addFilter(is_no_hang_up)
    # Libraries speak up from warnings on: at `info` they tell of their own steps, not of ours.
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)


def is_no_hang_up(record: logging.LogRecord) -> bool:
    """Say of a line of gRPC's that it tells of more than an answer that its client did not wait for."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or not issubclass(kind, grpc.aio.BaseError)
