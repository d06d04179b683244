"""How a receipt looks in the terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from profile_export.cli.output import count, fact_table, moment, one_line, size, table
from profile_export.cli.watch import metric_facts
from profile_export.client import AttributeMergeType, GetReceiptResponse, IdentityGraph, Receipt


def shown_receipt(answer: GetReceiptResponse) -> RenderableType:
    """Return what a receipt proves: the counts, what was read, and the files with their hashes."""
    receipt = answer.receipt
    read = table("source", "batch", "number", "ingested", "rows", numbers=("number", "rows"))
    for batch in receipt.input_batches:
        read.add_row(
            batch.dataset_id,
            batch.batch_id,
            count(batch.number),
            moment(batch.ingest_time.ToDatetime()),
            count(batch.rows),
        )
    files = table("file", "rows", "size", "SHA-256", numbers=("rows", "size"))
    for file in receipt.files:
        files.add_row(file.name, count(file.rows), size(file.bytes), file.sha256)
    parts: list[RenderableType] = [fact_table([*_facts(receipt), ("receipt", answer.location)])]
    parts += [Text(), read if receipt.input_batches else Text("No batch was there to read.", style="dim")]
    parts += [Text(), files if receipt.files else Text("No row, and so no file.", style="dim")]
    parts += [Text(f"Note: {one_line(note)}", style="yellow") for note in receipt.notes]
    return Group(*parts)


def _facts(receipt: Receipt) -> list[tuple[str, RenderableType]]:
    policy = receipt.merge_policy
    merge = AttributeMergeType.Name(policy.attribute_merge.type).removeprefix("ATTRIBUTE_MERGE_TYPE_")
    graph = IdentityGraph.Name(policy.identity_graph).removeprefix("IDENTITY_GRAPH_")
    rows: list[tuple[str, RenderableType]] = [
        ("batch", receipt.batch_id),
        ("dataset", receipt.dataset_id),
        ("job", f"{receipt.job_id}, attempt {receipt.attempt}"),
        ("committed", moment(receipt.commit_time.ToDatetime())),
        ("policy", f"{policy.id} version {policy.version}: {merge}, graph {graph}"),
    ]
    if receipt.HasField("segment"):
        rows.append(("segment", one_line(f"{receipt.segment.namespace}:{receipt.segment.segment_id}")))
    return rows + metric_facts(receipt.metrics)
