"""The seven promises of WatchJob, each a function from what was recorded to its faults, as sentences. Empty: kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from profile_export.v1 import job_pb2
from tests.watch.history import Connection, Drain, History, Log, Move, Received


def ordered(history: History, log: Log) -> list[str]:
    """1. Revisions are consecutive, nothing twice, nothing missing, also across connections; and all of it is true."""
    faults = []
    for start, messages in _lives(history):
        have = start
        for received in messages:
            have, found = _next(have, received, log)
            faults += [f"{history}: {fault}" for fault in found]
    if history.is_over and history.revision not in {None, log[-1].revision}:
        faults.append(f"{history}: it ended at revision {history.revision}, the log at {log[-1].revision}")
    return faults


def _lives(history: History) -> Iterator[tuple[int | None, list[Received]]]:
    """Give what has to be consecutive: all connections together, or each alone where the watcher forgets its place."""
    if history.hops:
        for connection in history.connections:
            yield connection.after_revision, connection.messages
    elif history.connections:
        yield history.connections[0].after_revision, list(history.messages)


def _next(have: int | None, received: Received, log: Log) -> tuple[int | None, list[str]]:
    """Return the revision that a client has after a message, and what is wrong with the message."""
    message, faults = received.message, []
    if have is None and (message.transitions or not message.HasField("job")):
        faults.append(f"no snapshot came before {_told(received)}")
    before = have
    for transition in message.transitions:
        if before is not None and transition.revision != before + 1:
            faults.append(f"transition {transition.revision} came after {before}")
        if transition.revision > len(log) or _move(transition) != _without_time(log[transition.revision - 1]):
            faults.append(f"transition {transition.revision} is not what the log has")
        before = transition.revision
    if not message.transitions and have is None:
        before = message.revision
    if message.revision != before:
        faults.append(f"after {_told(received)} the client has {before}, and is told {message.revision}")
    return before, faults


def _told(received: Received) -> str:
    revisions = [transition.revision for transition in received.message.transitions]
    return f"a message with the transitions {revisions}"


def _move(transition: job_pb2.JobTransition) -> tuple[object, ...]:
    def name(state: job_pb2.JobState.ValueType) -> str:
        return job_pb2.JobState.Name(state).removeprefix("JOB_STATE_")

    return (
        transition.revision,
        name(transition.from_state),
        name(transition.to_state),
        transition.attempt,
        transition.reason,
    )


def _without_time(move: Move) -> tuple[object, ...]:
    return move.revision, move.from_state, move.to_state, move.attempt, move.reason


def resumable(history: History, log: Log) -> list[str]:
    """2. A connection goes on exactly after the revision that it names; one that names none begins with the job."""
    return [
        f"{history}: {connection}: {fault}"
        for connection in history.connections
        for fault in _starts(connection, log)
    ]


def _starts(connection: Connection, log: Log) -> Iterator[str]:
    after, last = connection.after_revision, log[-1].revision
    is_refused = connection.ended is not None and connection.ended.code == "OUT_OF_RANGE"
    if after is not None and after > last:
        if not is_refused or connection.messages:
            yield f"the job ended at {last}, and it was not refused"
        return
    if is_refused:
        yield f"it was refused although the job reached {last}"
    if after is None:
        for received in connection.messages[:1]:
            if not received.message.HasField("job") or received.message.transitions:
                yield "it did not begin with the job"
            elif received.message.job.revision != received.message.revision:
                yield f"it began with the job at another revision than {received.message.revision}"
            after = received.message.revision
    elif any(received.message.HasField("job") and not received.is_final for received in connection.messages):
        yield "it brought the job, which nobody had asked for"
    given = [
        transition.revision for received in connection.messages for transition in received.message.transitions
    ]
    if after is not None and given and given[0] != after + 1:
        yield f"the first transition was {given[0]}"


def final_if_and_only_if_ok(history: History, log: Log) -> list[str]:
    """3. A connection ends OK exactly when it has given the final state."""
    return [
        f"{history}: {connection}: {fault}"
        for connection in history.connections
        for fault in _ends(connection, log)
    ]


def _ends(connection: Connection, log: Log) -> Iterator[str]:
    end = log[-1].revision
    last = connection.messages[-1] if connection.messages else None
    is_final = last is not None and last.is_final
    if any(received.is_final for received in connection.messages[:-1]):
        yield "something came after the final state"
    if last and last.message.revision == end and not is_final:
        yield "the last move came without the final state"
    if last and is_final and last.message.job.revision != end:
        yield f"the final state came with revision {last.message.job.revision}, not {end}"
    ended = connection.ended
    if ended is None:
        yield "it never ended"
    elif ended.code == "OK" and not is_final:
        yield "it ended OK without the final state"
    elif ended.code != "OK" and is_final and not ended.hung_up:
        yield f"it ended {ended.code} after the final state"


def no_lost_wake_up(history: History, log: Log, patience: float) -> list[str]:
    """4. What was written before or during a call arrives soon: not with a further change, nor with a heartbeat."""
    return [
        f"{history}: {connection}: {fault}"
        for connection in history.connections
        for move in log
        for fault in _waits(connection, move, history.slow_until, patience)
    ]


def _waits(connection: Connection, move: Move, slow_until: float, patience: float) -> Iterator[str]:
    if connection.after_revision is not None and connection.after_revision >= move.revision:
        return
    due = max(move.time, connection.opened, slow_until)
    told = next((got.at for got in connection.messages if got.message.revision >= move.revision), None)
    if told is not None and told - due > patience:
        yield f"move {move.revision} came after {told - due:.1f} s"
    if told is None and connection.ended and connection.ended.at - due > patience:
        yield f"move {move.revision} had not come after {connection.ended.at - due:.1f} s"


def isolated(stalled: History, others: Sequence[History], most_messages: int) -> list[str]:
    """5. A reader that does not read holds nobody up, and nothing is kept for it but what it has not been told.

    It read on when the others were done; then it may get what was on its way, and one message with all the rest.
    """
    faults = []
    messages = list(stalled.messages)
    read_on = messages[0].at if messages else float("inf")
    for other in others:
        final = next((received.at for received in other.messages if received.is_final), None)
        if final is None or final > read_on:
            faults.append(f"{other} was not told the end before {stalled} read on")
    if len(messages) > most_messages:
        faults.append(f"{stalled}: {len(messages)} messages had been kept for it")
    progress = sum(received.message.HasField("progress") for received in messages)
    if progress > 1:
        faults.append(f"{stalled}: {progress} times progress had been kept for it, not only the latest")
    return faults


def cheap(histories: Sequence[History]) -> list[str]:
    """6. Watchers that were waiting at the same revision get the same bytes for the next moves."""
    given: dict[tuple[int, str, int, int], set[bytes]] = defaultdict(set)
    for history in histories:
        for connection in history.connections if not history.is_slow else ():
            for received in connection.messages[1:]:  # before the first, nobody knows that it waits
                if moved := received.message.transitions:
                    moves = (history.job_id, connection.server, moved[0].revision, moved[-1].revision)
                    given[moves].add(received.raw)
    return [
        f"{len(different)} different messages told the moves {first} to {last} of job {job_id} on {server}"
        for (job_id, server, first, last), different in given.items()
        if len(different) > 1
    ]


def drained(histories: Sequence[History], drain: Drain) -> list[str]:
    """7. Health says NOT_SERVING, no job is begun, watches end with advice, and only then does the server stop."""
    faults = []
    open_then = [
        (history, connection)
        for history in histories
        for connection in history.connections
        if connection.server == drain.server and _is_open_at(connection, drain.asked)
    ]
    ends = [connection.ended for _, connection in open_then if connection.ended]
    if not any(end.reason == "SERVER_DRAINING" for end in ends):
        faults.append(f"no watch was drained from {drain.server}")
    for history, connection in open_then:
        found = _is_drained(connection, drain, is_slow=history.is_slow)
        faults += [f"{history}: {connection}: {fault}" for fault in found]
    if drain.begun:
        faults.append(f"{drain.server} began {drain.begun} attempts after it had said NOT_SERVING")
    return faults


def _is_open_at(connection: Connection, moment: float) -> bool:
    # One without a message may not have reached the server.
    is_there = bool(connection.messages) and connection.messages[0].at <= moment
    return is_there and connection.ended is not None and connection.ended.at > moment


def _is_drained(connection: Connection, drain: Drain, *, is_slow: bool) -> Iterator[str]:
    ended = connection.ended
    if ended is None or ended.hung_up or ended.code == "OK":
        return
    if (ended.code, ended.reason) != ("UNAVAILABLE", "SERVER_DRAINING"):
        yield f"it ended {ended.code} {ended.reason}"
    elif not ended.retry_seconds:
        yield "it ended without saying when to come back"
    if ended.at < drain.not_serving:
        yield "it ended before health said NOT_SERVING"
    if ended.at > drain.stopped and not is_slow:  # a slow reader finds out later
        yield "it ended after the server had stopped"


def never_back(history: History) -> list[str]:
    """Beside the promises: progress never goes back within an attempt, nor to an attempt before."""
    faults, before = [], (0, 0, 0)
    for received in history.messages:
        for progress in _progress_in(received):
            now = (progress.attempt, int(progress.phase), progress.done)
            if now < before:
                faults.append(f"{history}: (attempt, phase, done) went from {before} to {now}")
            if progress.estimated and progress.done > progress.estimated:
                faults.append(f"{history}: {progress.done} of {progress.estimated} are done")
            before = max(before, now)
    return faults


def _progress_in(received: Received) -> Iterator[job_pb2.JobProgress]:
    message = received.message
    if message.HasField("job") and message.job.HasField("progress"):
        yield message.job.progress
    if message.HasField("progress"):
        yield message.progress
