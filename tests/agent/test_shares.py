"""How many decoders there are, and what each has of memory and ring."""

from __future__ import annotations

import pytest

from llmsec_agent.shares import LEAST_BYTES, Shares, decoders, ring_of_each
from llmsec_tap.errors import ConfigError
from llmsec_tap.limits import KIB, MIB


@pytest.mark.parametrize(
    ("cpus", "memory_mib", "expected"),
    [
        (1, 512, 1),
        (2, 512, 1),
        (4, 4096, 1),
        (7, 4096, 1),
        (8, 512, 2),
        (8, 511, 1),
        (16, 512, 2),
        (16, 1024, 4),
        (128, 65_536, 4),
        (8, 128, 1),
    ],
)
def test_by_itself_a_tap_is_small(cpus: int, memory_mib: int, expected: int) -> None:
    assert decoders("auto", memory_mib * MIB, cpus) == expected


def test_a_wish_is_granted_where_the_memory_is_enough_for_it() -> None:
    assert decoders(2, 512 * MIB, 1) == 2
    assert decoders(16, 16 * LEAST_BYTES, 1) == 16
    assert decoders(1, 128 * MIB, 1) == 1
    with pytest.raises(ConfigError, match="4 decoders share a memory cap of 512 MiB, and each needs 192") as refused:
        decoders(4, 512 * MIB, 64)
    assert "768 MiB" in refused.value.hint


@pytest.mark.parametrize(
    ("ring", "count", "each"),
    [
        (16 * MIB, 1, 16 * MIB),
        (16 * MIB, 2, 8 * MIB),
        (16 * MIB, 3, 4 * MIB),
        (2 * MIB, 16, MIB),
        (64 * KIB, 2, 64 * KIB),
        (4 * KIB, 16, 4 * KIB),
    ],
)
def test_rings_are_powers_of_two_and_together_one(ring: int, count: int, each: int) -> None:
    assert ring_of_each(ring, count) == each


@pytest.mark.parametrize("memory_mib", [192, 256, 512, 4096])
def test_the_parts_of_a_process_are_less_than_it(memory_mib: int) -> None:
    assert Shares.of(memory_mib * MIB).total < memory_mib * MIB
