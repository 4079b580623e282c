"""What is said where a kernel takes no program: the verifier's words, or the rights that are missing."""

from __future__ import annotations

import errno

import pytest

from llmsec_tap.capture.ebpf.libbpf import explain

# As libbpf printed it on Debian's 6.1, where the verifier's error is the one of missing rights.
REFUSED = """libbpf: prog 'go_return': -- BEGIN PROG LOAD LOG --
Validating submit_part() func#1...
761: (85) call bpf_map_lookup_elem#1
R2 type=mem expected=fp, pkt, pkt_meta, map_key, map_value
processed 6 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
-- END PROG LOAD LOG --"""


def test_a_program_that_the_verifier_refuses_is_named_with_its_words() -> None:
    fault = explain(errno.EACCES, ["libbpf: prog 'go_return': BPF program load failed: Permission denied", REFUSED, "failed to load: -13"])
    assert "refuses the eBPF program go_return: R2 type=mem expected=fp, pkt, pkt_meta, map_key, map_value" in str(fault)
    assert "rights" not in str(fault)
    assert "--iface" in fault.hint
    assert "\n" not in str(fault)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EACCES])
def test_without_its_words_it_is_rights(code: int) -> None:
    fault = explain(code, ["libbpf: Error in bpf_object__probe_loading()"])
    assert "CAP_BPF" in fault.hint
    assert fault.is_refusal
