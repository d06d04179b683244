"""The notes of a job: sentences about what went as asked and may still be unexpected. They are no errors."""

from __future__ import annotations

from collections.abc import Iterator
from shlex import quote

from profile_export.domain.export.plan import ExportCounts, ExportPlan, IdentityFindings, LinkingIdentity
from profile_export.domain.merging.identity import MAX_IDENTITIES, UNUSUALLY_MANY
from profile_export.domain.merging.policy import IdentityGraph

_MOST_SHOWN = 100
"""Characters of an id, and namespaces."""


def notes_before(plan: ExportPlan, findings: IdentityFindings) -> tuple[str, ...]:
    """Return the sentences about a plan that are known before anything is merged."""
    return (*plan.notes, *_of_plan(plan), *_of_findings(plan, findings))


def notes_of(plan: ExportPlan, findings: IdentityFindings, counts: ExportCounts) -> tuple[str, ...]:
    """Return the sentences about an export that has these counts."""
    return (*notes_before(plan, findings), *_of_counts(plan, findings, counts))


def _of_plan(plan: ExportPlan) -> Iterator[str]:
    if not any(source.rows for source in plan.sources):
        yield (
            "No source dataset has a row, so there is nobody to export: upload records, or look whether they are in "
            "another sandbox or in datasets tagged unifiedProfile: enabled:false."
        )


def _of_findings(plan: ExportPlan, findings: IdentityFindings) -> Iterator[str]:
    if plan.graph is IdentityGraph.NONE and findings.shared:
        shared = "1 identity occurs" if findings.shared == 1 else f"{findings.shared} identities occur"
        yield (
            f"The graph of the merge policy is none, which links nobody, though {shared} "
            "with several primary ones: with the graph pdg their profiles would be one."
        )
    for namespace, ids in list(findings.spellings.items())[:_MOST_SHOWN]:
        spelled = plan.namespaces.get(namespace, namespace)
        yield (
            f"{ids} ids of the namespace '{spelled}' differ from another in case or blanks alone. Ids are compared "
            "exactly: if they mean the same, make them one where they come from."
        )


def _of_counts(plan: ExportPlan, findings: IdentityFindings, counts: ExportCounts) -> Iterator[str]:
    several = sum(1 for source in plan.sources if source.rows) > 1
    if plan.graph is IdentityGraph.PDG and several and not findings.linked and _all_apart(plan, counts):
        counting = " that the policy does not exclude" if plan.excluded else ""
        yield (
            "The graph pdg has linked nobody, and no profile has records of two datasets: no row has two identities"
            f"{counting}. Link them by a row that has both, such as a further identity field."
        )
    if counts.events_read and not counts.events_with_record:
        yield (
            f"None of the {counts.events_read} experience events that were read belongs to a profile with a record: "
            f"{_why_nobodys(plan)}."
        )
    if counts.too_many_identities:
        left_out = counts.too_many_identities
        said = "1 profile was" if left_out == 1 else f"{left_out} profiles were"
        yield f"{said} left out for more than {MAX_IDENTITIES} identities."
    most = counts.links_most
    if most and (counts.too_many_identities or most.others > UNUSUALLY_MANY):
        shown = most.id if len(most.id) <= _MOST_SHOWN else f"{most.id[:_MOST_SHOWN]}…"
        yield (
            f"The identity '{shown}' of the namespace '{most.namespace}' links most: it occurs with {most.others} "
            "others. If it is nobody's own, leave it out where it comes from, or add it to the policy's "
            f"excluded_identities{_command(plan, most)}."
        )
    for position, one in enumerate(plan.segments.segments if plan.segments else ()):
        if not counts.segment_members.get(position):
            yield f"No profile has an entry for the segment '{one.segment_id}' of the namespace '{one.namespace}'."


def _all_apart(plan: ExportPlan, counts: ExportCounts) -> bool:
    """Say whether certainly no profile has rows of two datasets: only of exported ones it is counted who has."""
    filtered_out = counts.not_newer + counts.not_in_segments
    if counts.profiles_merged or counts.events_with_record or (filtered_out and plan.empty_profiles):
        return False
    # Each of these has a fragment: where there are more, somebody has two.
    return counts.fragments_read - counts.fragments_left_out <= counts.profiles_exported + filtered_out


def _why_nobodys(plan: ExportPlan) -> str:
    if plan.graph is IdentityGraph.NONE:
        return (
            "no record that takes part has the primary identity of one, and with the graph none other identities do "
            "not count"
        )
    counting = " by identities that the policy does not exclude" if plan.excluded else ""
    return f"no record that takes part is linked with one{counting}"


def _command(plan: ExportPlan, most: LinkingIdentity) -> str:
    """Return the command that excludes an identity, in brackets; nothing if its id is too long to be shown."""
    if len(most.id) > _MOST_SHOWN:
        return ""
    policy = plan.origin.get("policy-id", "POLICY")
    excluded = quote(f"{most.namespace}:{most.id}")
    return f" (`profile-export policies update {policy} --exclude {excluded}`)"
