"""A client process that uploads one batch and may be killed at any moment; repeated, it goes on.

    uploader.py ADDRESS DATASET BATCH BUDGET resume|anew FILE...

Several files are a batch of several. It prints `sending` when its first call begins. Exit code 0: the batch counts;
75: the server was away or busy, try again; 1: anything else, told on stderr.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio

from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1.dataset_service_pb2_grpc import DatasetServiceStub

CHUNK = 32 * 1024
TRY_AGAIN = 75
PASSING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED}


async def send(datasets: DatasetServiceStub, start: ds.UploadStart, data: bytes, *, resume: bool) -> None:
    if resume:
        start.offset = await received(datasets, start.batch_id, start.file_name)

    async def messages() -> AsyncIterator[ds.UploadBatchRequest]:
        yield ds.UploadBatchRequest(start=start)
        for at in range(start.offset, len(data), CHUNK):
            yield ds.UploadBatchRequest(data=data[at : at + CHUNK])
        finish = ds.UploadFinish(byte_count=len(data), sha256=hashlib.sha256(data).hexdigest())
        yield ds.UploadBatchRequest(finish=finish)

    await datasets.UploadBatch(messages())


async def received(datasets: DatasetServiceStub, batch_id: str, file_name: str) -> int:
    try:
        batch = (await datasets.GetBatch(ds.GetBatchRequest(batch_id=batch_id))).batch
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return 0
        raise
    return next((one.received_bytes for one in batch.uploads if one.file_name == file_name), 0)


async def upload(address: str, dataset_id: str, batch_id: str, budget: str, resume: str, *paths: str) -> None:
    several = len(paths) > 1
    async with grpc.aio.insecure_channel(address) as channel:
        datasets = DatasetServiceStub(channel)
        sys.stdout.write("sending\n")
        sys.stdout.flush()
        if several:
            await datasets.CreateBatch(
                ds.CreateBatchRequest(dataset_id=dataset_id, batch_id=batch_id, request_id=batch_id)
            )
        for path in map(Path, paths):
            start = ds.UploadStart(
                dataset_id=dataset_id,
                batch_id=batch_id,
                file_name=path.name,
                format=ds.UPLOAD_FORMAT_JSON_LINES,
                max_bad_records=int(budget),
            )
            await send(datasets, start, path.read_bytes(), resume=resume == "resume")
        if several:
            await datasets.CompleteBatch(ds.CompleteBatchRequest(batch_id=batch_id))


def main() -> int:
    try:
        asyncio.run(upload(*sys.argv[1:]))
    except grpc.aio.AioRpcError as error:
        sys.stderr.write(f"{error.code().name}: {error.details()}\n")
        return TRY_AGAIN if error.code() in PASSING else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
