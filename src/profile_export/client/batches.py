"""Calls about batches: what goes in, what became of it, what comes out."""

import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from profile_export.client.calls import PAGE, Calls
from profile_export.client.transfers import Download, Upload, UploadFile, UploadProgress
from profile_export.v1 import dataset_service_pb2 as pb
from profile_export.v1.batch_pb2 import Batch, DataFile, RejectedRow


class BatchCalls(Calls):
    """Calls about batches."""

    async def upload(
        self,
        dataset_id: str,
        path: Path,
        upload_format: pb.UploadFormat.ValueType,
        *,
        batch_id: str = "",
        file_name: str = "1",
        max_bad_records: int = 0,
        progress: Callable[[UploadProgress], None] = lambda _: None,
    ) -> pb.UploadBatchResponse:
        """Send a file: as a batch of its own it counts, whole, when this returns.

        In a batch made by `create_batch` it waits for `complete_batch`. Repeated with the same file it changes nothing:
        without a batch_id, one is derived from dataset and content. What an interrupted upload has sent already is not
        sent again.

        Args:
            dataset_id: A record or event dataset.
            path: The file.
            upload_format: What its bytes are.
            batch_id: Id of the batch. Empty: derived.
            file_name: Its name within the batch, `[A-Za-z0-9_.-]{1,128}`.
            max_bad_records: How many bad rows to reject before the whole file is refused.
            progress: Told how far it is.
        """
        run = self._upload(dataset_id, max_bad_records, progress)
        return await run.one_file(UploadFile(path, upload_format, file_name), batch_id)

    async def upload_files(
        self,
        dataset_id: str,
        files: Sequence[UploadFile],
        *,
        batch_id: str = "",
        max_bad_records: int = 0,
        progress: Callable[[UploadProgress], None] = lambda _: None,
    ) -> pb.CompleteBatchResponse:
        """Send several files as one batch: all their rows count when this returns, or none.

        Rows count on in the order of the names. Repeated with the same files it changes nothing: without a batch_id,
        one is derived from dataset, names and contents. What an interrupted upload has sent already is not sent again.
        A refused file ends the upload; the batch stays open for a repetition.

        Args:
            dataset_id: A record or event dataset.
            files: The files; their names differ.
            batch_id: Id of the batch. Empty: derived.
            max_bad_records: How many bad rows to reject in each file before the whole file is refused.
            progress: Told how far it is.
        """
        return await self._upload(dataset_id, max_bad_records, progress).several_files(files, batch_id)

    async def create_batch(self, dataset_id: str, batch_id: str = "") -> Batch:
        """Open a batch for several files; an empty batch_id lets the server choose one.

        Repeated with the same batch_id while the batch is LOADING, it is the same batch.
        """
        # A repetition is known by the batch id, or by a request id, not by both.
        request_id = "" if batch_id else str(uuid.uuid4())
        request = pb.CreateBatchRequest(dataset_id=dataset_id, batch_id=batch_id, request_id=request_id)
        return (await self._call(self._datasets.CreateBatch, request)).batch

    async def complete_batch(self, batch_id: str) -> pb.CompleteBatchResponse:
        """Make a batch of several files count."""
        return await self._call(
            self._datasets.CompleteBatch, pb.CompleteBatchRequest(batch_id=batch_id), timeout=None
        )

    async def abort_batch(self, batch_id: str, reason: str = "") -> Batch:
        """Give a LOADING batch up; return it as it stands then."""
        request = pb.AbortBatchRequest(batch_id=batch_id, reason=reason)
        return (await self._call(self._datasets.AbortBatch, request)).batch

    async def revert_batch(self, batch_id: str, reason: str = "") -> Batch:
        """Take a SUCCEEDED batch back; return it as it stands then."""
        request = pb.RevertBatchRequest(batch_id=batch_id, reason=reason)
        return (await self._call(self._datasets.RevertBatch, request)).batch

    async def get_batch(self, batch_id: str) -> Batch:
        """Look a batch up, in any state."""
        return (await self._call(self._datasets.GetBatch, pb.GetBatchRequest(batch_id=batch_id))).batch

    async def list_batches(self, dataset_id: str) -> list[Batch]:
        """List the visible batches of a dataset, oldest first."""
        request = pb.ListBatchesRequest(dataset_id=dataset_id, page_size=PAGE)
        pages = self._pages(self._datasets.ListBatches, request)
        return [batch async for page in pages for batch in page.batches]

    async def list_rejected_rows(self, batch_id: str, limit: int | None = None) -> list[RejectedRow]:
        """List the rows that were refused in the last upload of a batch, by file and row; None: all of them."""
        request = pb.ListRejectedRowsRequest(batch_id=batch_id, page_size=min(limit or PAGE, PAGE))
        listed: list[RejectedRow] = []
        async for page in self._pages(self._datasets.ListRejectedRows, request):
            listed.extend(page.rows)
            if limit is not None and len(listed) >= limit:
                break
        return listed[:limit]

    async def get_receipt(self, batch_id: str) -> pb.GetReceiptResponse:
        """Fetch the receipt of a visible batch that an export job made, also as it lies beside the files."""
        return await self._call(self._datasets.GetReceipt, pb.GetReceiptRequest(batch_id=batch_id))

    async def list_files(self, batch_id: str) -> list[DataFile]:
        """List the data files of a visible batch, by name."""
        request = pb.ListBatchFilesRequest(batch_id=batch_id, page_size=PAGE)
        pages = self._pages(self._datasets.ListBatchFiles, request)
        return [file async for page in pages for file in page.files]

    async def download(
        self, batch_id: str, file: DataFile, folder: Path, *, progress: Callable[[int], None] = lambda _: None
    ) -> Path:
        """Fetch one data file into a folder, under its name, and return where it is.

        The bytes go to a neighbour named `….part`, are checked against the SHA-256 and then renamed: a file under
        its name is whole. Repeated, a file that is there already stays, and a part goes on where it ended.
        `progress` is told how many bytes are there.
        """
        return await Download(self._datasets, self._metadata, self._patience).fetch(
            batch_id, file, folder, progress
        )

    def _upload(
        self, dataset_id: str, max_bad_records: int, progress: Callable[[UploadProgress], None]
    ) -> Upload:
        return Upload(self._datasets, self._metadata, self._patience, dataset_id, max_bad_records, progress)
