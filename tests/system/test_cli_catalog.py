"""Datasets, batches, schemas and merge policies by the command line."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.system.terminal import COMMAND, Terminal, environment

PROFILE = "https://ns.adobe.com/xdm/context/profile"
ADDRESS = {
    "$id": "https://example.com/address",
    "title": "Address",
    "type": "object",
    "properties": {"homeAddress": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
LOYALTY = {
    "$id": "https://example.com/loyalty",
    "title": "Loyalty member",
    "type": "object",
    "meta:class": PROFILE,
    "allOf": [
        {"$ref": "https://example.com/address"},
        {
            "properties": {
                "loyaltyId": {"type": "string"},
                "points": {
                    "type": "object",
                    "meta:xdmType": "map",
                    "additionalProperties": {"type": "number"},
                },
                "cards": {
                    "type": "array",
                    "items": {"type": "object", "properties": {"number": {"type": "string"}}},
                },
            }
        },
    ],
}


@pytest.fixture
def documents(tmp_path: Path) -> list[Path]:
    """A schema, and after it the document that it names."""
    paths = [tmp_path / "loyalty.json", tmp_path / "address.json"]
    for path, document in zip(paths, (LOYALTY, ADDRESS), strict=True):
        path.write_text(json.dumps(document))
    return paths


def lines(shown: str) -> list[str]:
    return [" ".join(line.split()) for line in shown.splitlines()]


def test_a_schema_is_registered_with_what_it_names_and_datasets_follow_it(
    terminal: Terminal, documents: list[Path]
) -> None:
    # given a schema
    schema_id = terminal.get("schemas", "register", *documents, "--primary", "loyaltyId=Loyalty")
    assert schema_id == LOYALTY["$id"]

    # when a dataset follows it
    create = ("datasets", "create", "Members", "--schema", schema_id, "--declare", "spent=decimal(12, 2)")
    dataset_id = terminal.get(*create, "--tag", "team=crm", "--description", "of the shops")

    # then the dataset, the schema and the union of the class have its fields, as a tree
    shown = terminal.get("datasets", "show", dataset_id)
    for fact in (
        "name Members",
        "kind record",
        f"schema {schema_id}",
        "description of the shops",
        "tags team=crm",
        "identities loyaltyId=Loyalty (primary)",
        "declared spent",
        "cards array of object",
        "points map of double",
        "spent decimal(12,2)",
    ):
        assert fact in lines(shown)
    assert "\n  city\t" in shown
    assert "\n  city\t" in terminal.get("schemas", "show", schema_id)
    assert "\n  city\t" in terminal.get("schemas", "union", "_xdm.context.profile")
    assert f"datasets {dataset_id}" in lines(terminal.get("schemas", "union", "_xdm.context.profile"))


def test_schemas_are_listed_and_looked_up_by_version(terminal: Terminal, documents: list[Path]) -> None:
    terminal.get("schemas", "register", *documents)
    documents[0].write_text(json.dumps(LOYALTY | {"title": "Member"}))
    terminal.get("schemas", "register", documents[0])

    listed = lines(terminal.get("schemas", "list"))

    assert "https://example.com/loyalty 2 record Member" in listed
    assert "https://example.com/address 1 component Address" in listed
    assert any(line.startswith(f"{PROFILE} 1 record") and line.endswith("(built in)") for line in listed)
    first = json.loads(terminal.get("schemas", "show", str(LOYALTY["$id"]), "--version", "1", "--json"))
    assert (first["version"], json.loads(first["document"])) == (1, LOYALTY)


def test_documents_of_two_schemas_are_not_registered_together(
    terminal: Terminal, documents: list[Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(LOYALTY | {"$id": "https://example.com/other"}))

    done = terminal.type("schemas", "register", *documents, other)

    assert done.returncode == 2
    assert "one schema at a time" in done.stderr
    assert str(documents[1]) not in done.stderr


def test_a_dataset_is_changed_and_deleted(terminal: Terminal) -> None:
    # given a dataset with a tag
    dataset_id = terminal.get("datasets", "create", "CRM", "--kind", "record", "--tag", "team=crm")
    update = ("datasets", "update", dataset_id)

    # when it is changed step by step
    named = lines(terminal.get(*update, "--name", "Customers", "--declare", "age=long"))
    tagged = lines(terminal.get(*update, "--tag", "a=1", "--tag", "a=2"))
    bare = json.loads(terminal.get(*update, "--no-tags", "--json"))

    # then the rest stayed each time
    assert {"name Customers", "tags team=crm", "age long"} <= set(named)
    assert {"name Customers", "tags a=1", "a=2", "age long"} <= set(tagged)
    assert (bare["name"], bare["tags"]) == ("Customers", {})


def test_types_within_arrays_and_maps_are_declared_by_the_paths_of_messages(
    terminal: Terminal, tmp_path: Path
) -> None:
    # given a dataset with integers that no double holds, in arrays, in objects in arrays, and in a map
    row = {"crmId": "1", "l": [2**53 + 1], "o": [{"p": {"q": 2**53 + 1}, "r": 0.5}], "m": {"k": 2**53 + 1}}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    create = ("datasets", "create", "CRM", "--kind", "record", "--primary", "crmId=CRM")
    refused = terminal.type("datasets", "upload", terminal.get(*create), path)

    # when their types are declared by the paths that refusals name
    paths = ("l[]=long", "o[].p.q=long", "o[].r=double", "m.*=long")
    declared = terminal.get(*create, *(word for one in paths for word in ("--declare", one)))
    terminal.get("datasets", "upload", declared, path)

    # then they are stored as they were sent
    assert "The field 'l[]' is the integer 9007199254740993" in refused.stderr
    [shown] = json.loads(terminal.get("datasets", "preview", declared, "--json"))
    assert shown == {
        "crmId": "1",
        "l": ["9007199254740993"],
        "o": [{"p": {"q": "9007199254740993"}, "r": 0.5}],
        "m": {"k": "9007199254740993"},
    }


@pytest.mark.parametrize(
    ("declared", "line"),
    [
        (["*=long"], "--declare '*' is no path, such as orders[].price, or points.* for a map."),
        (["[]=long"], "--declare '[]' is no path"),
        (["a[].=long"], "--declare 'a[].' is no path"),
        (["a[]=long", "a=long"], "--declare says two types of 'a'."),
        (["a[].b=long", "a[].b=double"], "--declare says two types of 'a[].b'."),
    ],
)
def test_a_path_that_leads_nowhere_is_not_declared(
    terminal: Terminal, declared: list[str], line: str
) -> None:
    options = [word for one in declared for word in ("--declare", one)]

    done = terminal.type("datasets", "create", "CRM", "--kind", "record", *options)

    assert (done.returncode, done.stdout) == (2, "")
    assert line in done.stderr


def test_a_dataset_is_deleted_by_who_says_so_and_brought_back(terminal: Terminal) -> None:
    # given a dataset
    dataset_id = terminal.get("datasets", "create", "CRM", "--kind", "record")
    delete = ("datasets", "delete", dataset_id)

    # when it is deleted where nobody can be asked, then with --yes
    unasked = terminal.type(*delete)
    there = terminal.get("datasets", "list")
    deleted = terminal.get(*delete, "--yes")

    # then it is hidden, shows until when it can be brought back, and comes back
    assert (unasked.returncode, "add --yes" in unasked.stderr) == (2, True)
    assert "CRM" in there
    assert deleted.startswith(f"dataset {dataset_id} deleted; until 20")
    assert deleted.endswith(f"profile-export datasets undelete {dataset_id} --sandbox {terminal.sandbox}")
    assert "CRM" not in terminal.get("datasets", "list")
    assert "deleted, back until" in terminal.get("datasets", "list", "--deleted")
    shown = lines(terminal.get("datasets", "show", dataset_id))
    assert any(line.startswith("deleted can be brought back until 20") for line in shown)
    assert "UndeleteDataset brings it back" in terminal.type(*delete, "--yes").stderr
    assert terminal.get("datasets", "undelete", dataset_id) == f"dataset {dataset_id} is back"
    assert "CRM" in terminal.get("datasets", "list")
    assert "DATASET_NOT_DELETED" in terminal.type("datasets", "undelete", dataset_id).stderr


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("\x04", 130)])
def test_on_a_terminal_a_dataset_is_deleted_after_a_yes(terminal: Terminal, answer: str, code: int) -> None:
    dataset_id = terminal.get("datasets", "create", "CRM", "--kind", "record")
    mine, theirs = os.openpty()
    command = (*COMMAND, "datasets", "delete", dataset_id)
    variables = environment(PROFILE_EXPORT_ADDRESS=terminal.address)
    asked = subprocess.Popen(
        [*command, "--sandbox", terminal.sandbox], stdin=theirs, stdout=theirs, stderr=theirs, env=variables
    )
    os.close(theirs)

    shown = b""
    while b"?" not in shown:
        shown += os.read(mine, 1_000)
    os.write(mine, answer.encode())

    assert f"Delete 'CRM' ({dataset_id}) with all its batches?" in shown.decode()
    assert asked.wait(30) == code
    assert ("CRM" in terminal.get("datasets", "list")) is (code != 0)
    os.close(mine)


def test_a_dataset_and_its_batches_say_how_long_they_are_kept(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "crm.jsonl").write_text('{"crmId": "C-1"}\n')
    make = ("datasets", "create", "CRM", "--kind", "record", "--primary", "crmId=CRM")
    dataset_id = terminal.get(*make, "--keep-batches-days", "30")
    terminal.get("datasets", "upload", dataset_id, tmp_path / "crm.jsonl", "--batch-id", "one")
    update = ("datasets", "update", dataset_id, "--keep-batches-days")

    made = lines(terminal.get("datasets", "show", dataset_id))
    batch = terminal.get("batches", "show", "one")
    shorter, for_ever = lines(terminal.get(*update, "1")), lines(terminal.get(*update, "0"))

    assert "batches kept for 30 days" in made
    assert re.search(r"^expires\t20", batch, re.MULTILINE)
    assert "batches kept for 1 day" in shorter
    assert "batches kept for ever" in for_ever
    assert "expires" not in terminal.get("batches", "show", "one")


def test_a_preview_shows_the_newest_rows_value_by_value(terminal: Terminal, tmp_path: Path) -> None:
    dataset_id = terminal.get("datasets", "create", "CRM", "--kind", "record", "--primary", "crmId=CRM")
    assert terminal.get("datasets", "preview", dataset_id).startswith("No rows.")
    for name in ("old", "new"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps({"crmId": name, "person": {"name": {"firstName": "Ada"}}, "tags": ["a"]}))
        terminal.get("datasets", "upload", dataset_id, path)

    shown = lines(terminal.get("datasets", "preview", dataset_id, "--rows", "1"))

    assert shown == ["row field value", "1 crmId new", "1 person.name.firstName Ada", '1 tags ["a"]']
    rows = json.loads(terminal.get("datasets", "preview", dataset_id, "--json"))
    assert [row["crmId"] for row in rows] == ["new", "old"]


def test_batches_are_listed_shown_and_taken_back(terminal: Terminal, tmp_path: Path) -> None:
    # given a batch
    dataset_id = terminal.get("datasets", "create", "CRM", "--kind", "record", "--primary", "crmId=CRM")
    assert terminal.get("batches", "list", dataset_id).startswith("No batches.")
    path = tmp_path / "crm.jsonl"
    path.write_text('{"crmId": "C-1"}\n')
    terminal.get("datasets", "upload", dataset_id, path, "--batch-id", "one")

    # when it is looked at and taken back
    listed = lines(terminal.get("batches", "list", dataset_id))
    terminal.get("batches", "revert", "one", "--reason", "wrong day")

    # then it is there and then not, and tells why
    assert listed[0] == "id ingested rows rejected files size"
    assert listed[1].startswith("one ")
    assert terminal.get("batches", "list", dataset_id).startswith("No batches.")
    shown = lines(terminal.get("batches", "show", "one"))
    assert {"batch one REVERTED", f"dataset {dataset_id}", "reason wrong day"} <= set(shown)
    assert "file 1 17 B received, complete" in shown


def test_an_open_batch_is_completed_or_given_up(terminal: Terminal, tmp_path: Path) -> None:
    # given two batches that a refused file has left open
    dataset_id = terminal.get("datasets", "create", "CRM", "--kind", "record", "--primary", "crmId=CRM")
    good, bad = tmp_path / "good.jsonl", tmp_path / "later.jsonl"
    good.write_text('{"crmId": "C-1"}\n')
    bad.write_text("{}\n")
    for batch_id in ("kept", "left"):
        done = terminal.type("datasets", "upload", dataset_id, good, bad, "--batch-id", batch_id)
        assert f"profile-export batches abort {batch_id}" in done.stderr

    # when one is completed without that file and the other one given up
    kept = terminal.get("batches", "complete", "kept")
    left = terminal.get("batches", "abort", "left", "--reason", "no use")

    # then only the first counts
    assert (kept, left) == ("batch kept SUCCEEDED", "batch left ABORTED")
    (batch,) = json.loads(terminal.get("batches", "list", dataset_id, "--json"))
    assert (batch["id"], batch["rows"]) == ("kept", "1")
    assert json.loads(terminal.get("batches", "show", "left", "--json"))["state_reason"] == "no use"


def test_a_policy_is_made_changed_and_deleted(terminal: Terminal) -> None:
    # given a policy that ranks two datasets
    crm = terminal.get("datasets", "create", "CRM", "--kind", "record", "--primary", "crmId=CRM")
    shop = terminal.get("datasets", "create", "Shop", "--kind", "record", "--primary", "crmId=CRM")
    rules = ("--graph", "pdg", "--order", shop, "--order", crm)
    policy_id = terminal.get("policies", "create", *rules, "--default")
    update = ("policies", "update", policy_id)

    # when it is changed step by step
    made = lines(terminal.get("policies", "show", policy_id))
    named = lines(terminal.get(*update, "--name", "Home", "--no-default"))
    ordered = lines(terminal.get(*update, "--order", crm))
    by_time = json.loads(terminal.get(*update, "--no-order", "--graph", "none", "--default", "--json"))

    # then the rest stayed each time, and its versions are there
    assert {f"policy {policy_id}", "version 1", "graph pdg", "name dataSetPrecedence-pdg (default)"} <= set(
        made
    )
    assert made[made.index("wins the dataset named earlier:") :][1:3] == [shop, crm]
    assert {"version 2", "name Home", "graph pdg", shop} <= set(named)
    assert {"version 3", "name Home", "graph pdg", crm} <= set(ordered)
    assert shop not in ordered
    assert (by_time["version"], by_time["name"], by_time["is_default"]) == (4, "Home", True)
    assert (by_time["identity_graph"], by_time["attribute_merge"]["order"]) == ("IDENTITY_GRAPH_NONE", [])
    first = json.loads(terminal.get("policies", "show", policy_id, "--version", "1", "--json"))
    assert (first["version"], first["attribute_merge"]["order"]) == (1, [shop, crm])
    listed = lines(terminal.get("policies", "list"))
    assert listed[1] == "timestampOrdered-none-mp 1 none Built-in default (built in)"
    assert listed[2] == f"{policy_id} 4 none Home (default)"
    # and when it is deleted, it is gone and the built-in one is the default again
    assert terminal.get("policies", "delete", policy_id) == f"policy {policy_id} deleted"
    assert "MERGE_POLICY_NOT_FOUND" in terminal.type("policies", "show", policy_id).stderr
    built_in = lines(terminal.get("policies", "show", "timestampOrdered-none-mp"))
    assert {"name Built-in default (built in, default)", "wins the record ingested later"} <= set(built_in)


def test_a_policy_excludes_identities_one_by_one(terminal: Terminal) -> None:
    # given a policy that excludes one
    policy_id = terminal.get("policies", "create", "--graph", "pdg", "--exclude", "Email:NULL")
    update = ("policies", "update", policy_id)

    # when more are added, one of them a second time, and some taken away
    more = lines(terminal.get(*update, "--exclude", "Url:https://x.org", "--exclude", "email:NULL"))
    fewer = lines(terminal.get(*update, "--include", "EMAIL:NULL", "--exclude", "Phone:0"))
    unknown = terminal.type(*update, "--include", "Email:null")
    none = json.loads(
        terminal.get(*update, "--include", "Phone:0", "--include", "url:https://x.org", "--json")
    )

    # then all that is excluded is shown, and what is not cannot be taken away
    assert "excluded Email:NULL" in lines(terminal.get("policies", "show", policy_id, "--version", "1"))
    assert more[more.index("excluded Email:NULL") + 1] == "Url:https://x.org"
    assert fewer[fewer.index("excluded Phone:0") + 1] == "Url:https://x.org"
    assert "--include Email:null: the policy does not exclude it" in unknown.stderr
    assert (none["version"], none["excluded_identities"]) == (4, [])


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["datasets", "create", "CRM"], "--schema"),
        (["datasets", "create", "CRM", "--kind", "record", "--schema", PROFILE], "either --kind"),
        (["datasets", "create", "CRM", "--kind", "record", "--declare", "age=int"], "'int' is no type"),
        (["datasets", "create", "CRM", "--kind", "record", "--tag", "team"], "--tag 'team'"),
        (["datasets", "update", "x"], "Nothing to change"),
        (["datasets", "upload", "x", "missing.csv"], "missing.csv"),
        (["policies", "create"], "--graph"),
        (["policies", "update", "x"], "Nothing to change"),
        (["policies", "update", "x", "--order", "y", "--no-order"], "Either --order"),
        (["policies", "create", "--graph", "pdg", "--exclude", "NULL"], "'NULL' is no identity"),
        (["schemas", "register", __file__], "is not JSON"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_2(terminal: Terminal, words: list[str], hint: str) -> None:
    done = terminal.type(*words)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert hint in done.stderr


def test_an_integer_too_long_to_read_is_told_in_words_of_ours(terminal: Terminal, tmp_path: Path) -> None:
    document = tmp_path / "schema.json"
    document.write_text(f'{{"$id": "https://example.com/long", "maximum": {"9" * 5_000}}}')

    done = terminal.type("schemas", "register", document)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "an integer has 5,000 digits; at most 4,300 are read" in done.stderr


@pytest.mark.parametrize(
    ("levels", "code", "hint"), [(500, 1, "SCHEMA_INVALID"), (100_000, 2, "nested too deep")]
)
def test_a_schema_that_is_nested_without_end_is_one_line(
    terminal: Terminal, tmp_path: Path, levels: int, code: int, hint: str
) -> None:
    document = tmp_path / "schema.json"
    document.write_text('{"items": ' * levels + "1" + "}" * levels)

    done = terminal.type("schemas", "register", document)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert hint in done.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["datasets", "show", "0" * 24], "DATASET_NOT_FOUND"),
        (["batches", "show", "none"], "BATCH_NOT_FOUND"),
        (["batches", "abort", "none"], "BATCH_NOT_FOUND"),
        (["policies", "show", "none"], "MERGE_POLICY_NOT_FOUND"),
        (["policies", "create", "--graph", "pdg", "--order", "none"], "ORDER_INVALID"),
        (["policies", "update", "timestampOrdered-none-mp", "--name", "x"], "MERGE_POLICY_BUILT_IN"),
        (["policies", "delete", "timestampOrdered-none-mp"], "MERGE_POLICY_BUILT_IN"),
        (["schemas", "show", "https://example.com/none"], "SCHEMA_NOT_FOUND"),
        (["datasets", "create", "x", "--schema", "https://example.com/none"], "SCHEMA_NOT_FOUND"),
    ],
)
def test_a_refusal_of_the_server_is_one_line_and_exit_1(
    terminal: Terminal, words: list[str], reason: str
) -> None:
    done = terminal.type(*words)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert reason in done.stderr
