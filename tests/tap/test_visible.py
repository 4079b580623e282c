"""Everything that goes to a terminal is visible: what steers it, and what shows as nothing."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from llmsec_tap.visible import json_visible, visible

# Format characters that do show: Arabic, Syriac and Kaithi number signs.
_SHOWN = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2}
_NAMED = [
    0xAD,
    0x34F,
    0x115F,
    0x1160,
    0x17B4,
    0x17B5,
    0x180B,
    0x180E,
    0x180F,
    0x3164,
    0xFE00,
    0xFE0F,
    0xFFA0,
    0xE0001,
    0xE0041,
    0xE0100,
    0xE01EF,
]


def test_no_character_that_hides_or_steers_is_printed_as_it_is():
    for code in range(0x110000):
        char = chr(code)
        if (unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp", "Cs") and code not in _SHOWN) or code in _NAMED:
            assert visible(char) != char, hex(code)
            assert visible(char).isascii()
            line = json.dumps(char, ensure_ascii=False)
            assert json_visible(line).isascii(), hex(code)
    for text in ("a é ß Ω я 中 한 が ก ا 😀 e\u0301", ""):
        assert visible(text) == text


@given(st.text())
def test_json_stays_the_same_value(text):
    assert json.loads(json_visible(json.dumps(text, ensure_ascii=False))) == text


_PROGRAM = r"""
from llmsec_agent.lane import Lane
from llmsec_agent.output import printer
from llmsec_agent.stop import Stop
from llmsec_tap.journal import SILENT
from llmsec_tap.model import Exchange
lane = Lane(printer("jsonl")(lambda: None), SILENT, Stop(), max_bytes=1 << 20)
lane.offer(Exchange(exchange_id="e", client="c", server="s", input_text="\x9b31m\x7f\u202e\u200b\U000e0041\u3164"))
lane.close()
"""


def test_json_lines_on_a_terminal_are_visible_and_the_same_value():
    leader, follower = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", _PROGRAM], stdout=follower) as process:
        os.close(follower)
        data = b""
        try:
            while piece := os.read(leader, 4096):
                data += piece
        except OSError:
            pass  # the other end is closed
        os.close(leader)
    assert process.returncode == 0
    assert data.strip().isascii()
    assert json.loads(data)["input_text"] == "\x9b31m\x7f\u202e\u200b\U000e0041\u3164"
    piped = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, check=True).stdout
    assert "\u202e" in piped.decode()
