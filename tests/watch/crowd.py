"""A crowd of clients of one job, each with a connection of its own.

    python -m tests.watch.crowd JOB_ID CLIENTS

For every address that it reads in a line, all of them at once watch the job there, from the start. It says `told` when
each has been told something, or its call is over; and when all calls are over, how many ended how, as JSON: by code,
reason and the revisions that came.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

import grpc.aio

from profile_export.v1 import export_service_pb2 as es
from profile_export.v1.export_service_pb2_grpc import ExportServiceStub
from tests.watch.history import Ended
from tests.watch.watcher import HEARTBEAT

OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


class Client:
    """One of the crowd."""

    def __init__(self, job_id: int) -> None:
        self._request = es.WatchJobRequest(job_id=job_id, after_revision=0, heartbeat_interval=HEARTBEAT)

    async def watch(self, address: str, told: asyncio.Event) -> str:
        """Watch until the call is over; return how it ended and what came."""
        revisions: list[int] = []
        try:
            async with grpc.aio.insecure_channel(address, OWN_CONNECTION) as channel:
                call = ExportServiceStub(channel).WatchJob(self._request)
                async for message in call:
                    revisions += [transition.revision for transition in message.transitions]
                    told.set()
            ended = "OK"
        except grpc.aio.AioRpcError as error:
            end = Ended.of(0.0, error, hung_up=False)
            ended = f"{end.code} {end.reason}"
        told.set()
        return f"{ended} {revisions}"


async def come(clients: list[Client], address: str) -> None:
    told = [asyncio.Event() for _ in clients]
    calls = [
        asyncio.create_task(client.watch(address, event)) for client, event in zip(clients, told, strict=True)
    ]
    for event in told:
        await event.wait()
    say("told")
    say(json.dumps(Counter(await asyncio.gather(*calls))))


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - as said


async def main(job_id: int, count: int) -> None:
    clients = [Client(job_id) for _ in range(count)]
    while address := (await asyncio.to_thread(sys.stdin.readline)).strip():
        await come(clients, address)


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
