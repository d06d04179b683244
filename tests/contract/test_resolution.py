"""Who is one person: exact at any size, within any memory, and the same whatever was kept before."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profile_export.engines.identity.graph import KEY, GraphFacts, Keys, graph_facts
from profile_export.engines.identity.links import Pairs
from profile_export.engines.identity.resolution import Space, extend, resolve

Key = tuple[int, int]
Pair = tuple[Key, Key]

PLENTY = 2**30
TINY = 2_000
"""Some ten identities in a part and some ten pairs in a chunk."""
SMALL = 2**20
HALVES = st.sampled_from((-(2**63), -(2**62), -5, -1, 0, 1, 2, 2**40, 2**62, 2**63 - 1))
PAIRS = st.lists(st.tuples(st.tuples(HALVES, HALVES), st.tuples(HALVES, HALVES)), max_size=40)


def by_union_find(pairs: Iterable[Pair]) -> dict[Key, Key]:
    """The key of everybody's component whose low half is the smallest, where it is another one."""
    parents: dict[Key, Key] = {}

    def root(key: Key) -> Key:
        while (parent := parents.setdefault(key, key)) != key:
            parents[key] = parents[parent]
            key = parent
        return key

    for one, other in pairs:
        first, second = sorted((root(one), root(other)), key=low_first)
        parents[second] = first
    return {key: root(key) for key in sorted(parents) if root(key) != key}


def low_first(key: Key) -> Key:
    high, low = key
    return low, high


def keys(some: Sequence[Key]) -> Keys:
    return np.array(list(some), KEY)


def in_chunks(pairs: Sequence[Pair], size: int = 7) -> Iterator[Pairs]:
    for start in range(0, len(pairs), size):
        ones, others = zip(*pairs[start : start + size], strict=True)
        yield keys(ones), keys(others)


def rows(graph: Path) -> list[tuple[Key, Key]]:
    key_high, key_low, high, low = (column.to_pylist() for column in pq.read_table(graph).columns)
    return list(zip(zip(key_high, key_low, strict=True), zip(high, low, strict=True), strict=True))


def resolved(
    pairs: Sequence[Pair], memory: int = PLENTY, *, chunk: int = 7
) -> tuple[list[tuple[Key, Key]], GraphFacts]:
    with TemporaryDirectory() as folder:
        graph = Path(folder) / "graph.parquet"
        facts = resolve(in_chunks(pairs, chunk), len(pairs), {}, Space(memory, Path(folder)), graph)
        assert graph_facts(graph) == facts
        # Nothing is left of what waited on disk.
        assert [file.name for file in Path(folder).iterdir()] == ["graph.parquet"]
        return rows(graph), facts


def extended(
    old: Sequence[Pair], new: Sequence[Pair], memory: int = PLENTY
) -> tuple[list[tuple[Key, Key]], GraphFacts]:
    with TemporaryDirectory() as folder:
        kept, graph = Path(folder) / "kept.parquet", Path(folder) / "graph.parquet"
        space = Space(memory, Path(folder))
        resolve(in_chunks(old), len(old), {}, space, kept)
        facts = extend(kept, in_chunks(new), len(new), {}, space, graph)
        assert graph_facts(graph) == facts
        return rows(graph), facts


def random_pairs(count: int, identities: int, seed: int = 0) -> list[Pair]:
    chance = random.Random(seed)
    known = [
        (chance.randrange(-(2**63), 2**63), chance.randrange(-(2**63), 2**63)) for _ in range(identities)
    ]
    return [(chance.choice(known), chance.choice(known)) for _ in range(count)]


def spread(number: int) -> Key:
    """A key for a number, as evenly spread as hashes are."""
    mixed = number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128
    return (mixed >> 64) - 2**63, mixed % 2**64 - 2**63


def one_profile(everybody: Iterable[Key]) -> list[tuple[Key, Key]]:
    """The identity graph of identities that all are one person."""
    first, *others = sorted(everybody, key=low_first)
    return [(key, first) for key in sorted(others)]


# --- Components ---


def test_everybody_of_a_chain_belongs_to_the_key_whose_low_half_is_the_smallest() -> None:
    found, facts = resolved([((-3, 5), (1, 1)), ((1, 1), (5, 0)), ((9, 0), (8, 0))])

    assert found == [((-3, 5), (5, 0)), ((1, 1), (5, 0)), ((9, 0), (8, 0))]
    assert (facts.moved, facts.components, facts.identities) == (3, 2, 5)


def test_identities_that_share_half_of_their_key_are_two() -> None:
    found, facts = resolved([((1, 1), (2, 5)), ((1, 2), (3, -5)), ((4, 7), (5, 7)), ((6, 7), (7, 8))])

    assert found == [((1, 2), (3, -5)), ((2, 5), (1, 1)), ((5, 7), (4, 7)), ((7, 8), (6, 7))]
    assert facts.components == 4


def test_without_pairs_there_is_an_empty_graph() -> None:
    assert resolved([]) == ([], GraphFacts(0, 0, {}))


@pytest.mark.parametrize("memory", [TINY, SMALL, PLENTY])
@given(PAIRS)
def test_components_are_those_of_a_union_find(memory: int, pairs: list[Pair]) -> None:
    found, facts = resolved(pairs, memory)

    assert found == list(by_union_find(pairs).items())
    assert (facts.moved, facts.components) == (len(found), len({profile for _, profile in found}))


@pytest.mark.parametrize("memory", [20_000, SMALL, PLENTY])
@pytest.mark.parametrize("identities", [2_000, 9_000, 40_000])
def test_random_graphs_come_out_as_a_union_find_says(memory: int, identities: int) -> None:
    pairs = random_pairs(10_000, identities, seed=identities)

    found, _ = resolved(pairs, memory, chunk=3_000)

    assert found == list(by_union_find(pairs).items())


@pytest.mark.parametrize("memory", [SMALL, pytest.param(PLENTY, marks=pytest.mark.slow)])
def test_a_chain_of_200000_identities_is_one_profile(memory: int) -> None:
    numbers = list(range(200_000))
    random.Random(1).shuffle(numbers)
    pairs = [(spread(number), spread(number + 1)) for number in numbers]

    found, facts = resolved(pairs, memory, chunk=50_000)

    assert facts.components == 1
    assert found == one_profile(spread(number) for number in range(200_001))


@pytest.mark.parametrize("memory", [SMALL, pytest.param(PLENTY, marks=pytest.mark.slow)])
def test_an_identity_that_200000_others_share_makes_one_profile_of_all(memory: int) -> None:
    pairs = [(spread(0), spread(number)) for number in range(1, 200_000)]

    found, facts = resolved(pairs, memory, chunk=50_000)

    assert (facts.moved, facts.components) == (199_999, 1)
    assert found == one_profile(spread(number) for number in range(200_000))


@pytest.mark.parametrize("memory", [SMALL, PLENTY])
@pytest.mark.parametrize("key", [lambda number: (7, number), lambda number: (number, 7)], ids=["high", "low"])
def test_many_keys_may_share_a_half(key: Callable[[int], Key], memory: int) -> None:
    pairs = [(key(number), key(number + 3)) for number in range(-20_000, 20_000)]

    found, facts = resolved(pairs, memory, chunk=9_000)

    assert facts.components == 3
    assert found == list(by_union_find(pairs).items())


@pytest.mark.parametrize("memory", [SMALL, PLENTY])
def test_profiles_are_spread_evenly_over_equal_ranges(memory: int) -> None:
    chance = random.Random(2)
    people = [
        [(chance.randrange(-(2**63), 2**63), chance.randrange(-(2**63), 2**63)) for _ in range(5)]
        for _ in range(20_000)
    ]

    found, _ = resolved([pair for person in people for pair in pairwise(person)], memory, chunk=9_000)

    profiles = {profile for _, profile in found}
    in_quarters = Counter(high >> 62 for high, _ in profiles)
    assert len(profiles) == 20_000
    assert all(4_600 < in_quarters[quarter] < 5_400 for quarter in (-2, -1, 0, 1))


# --- Extension ---


@pytest.mark.parametrize("memory", [1, PLENTY], ids=["many new pairs", "few new pairs"])
@given(PAIRS, PAIRS)
@pytest.mark.slow
def test_an_extended_graph_is_the_one_that_all_pairs_give(
    memory: int, old: list[Pair], new: list[Pair]
) -> None:
    assert extended(old, new, memory) == resolved([*old, *new])


def test_a_large_graph_is_extended_within_its_groups_before_and_behind_them() -> None:
    old = random_pairs(100_000, 150_000, seed=3)
    touched = random.Random(4).sample(old, 40)
    new = [(one, other) for (one, _), (other, _) in zip(touched[::2], touched[1::2], strict=True)]
    outside = [((-(2**63), -(2**63)), touched[0][0]), ((2**63 - 1, 5), (2**63 - 1, 4)), ((9, 9), (9, 8))]

    found, facts = extended(old, [*new, *outside])

    assert (found, facts) == resolved([*old, *new, *outside], chunk=30_000)


# --- At size ---


@pytest.mark.slow
def test_a_million_pairs_come_out_as_a_union_find_says_within_little_memory() -> None:
    numbers = random.Random(5)
    pairs = [
        (spread(numbers.randrange(1_300_000)), spread(numbers.randrange(1_300_000))) for _ in range(1_000_000)
    ]

    found, _ = resolved(pairs, 16 * 2**20, chunk=250_000)

    assert found == list(by_union_find(pairs).items())
