"""Watch a job to its end: python watch.py HOST:PORT JOB_ID [SANDBOX]."""

import asyncio
import sys

from profile_export.client import Client, ClientError, JobState


async def watch(address: str, job_id: int, sandbox: str = "") -> None:
    """Print every move of a job. The client waits and resumes by itself."""
    async with Client(address, sandbox=sandbox) as client:
        async for change in client.watch_job(job_id, 0):
            for move in change.transitions:
                print(move.revision, JobState.Name(move.to_state).removeprefix("JOB_STATE_"), flush=True)


if __name__ == "__main__":
    address, job_id, *sandbox = sys.argv[1:]
    try:
        asyncio.run(watch(address, int(job_id), *sandbox))
    except ClientError as error:
        sys.exit(f"watch: {error.code} {error}")
