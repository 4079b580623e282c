"""HPACK's Huffman code (RFC 7541 appendix B).

The code is canonical: the lengths alone give it. Decoding goes four bits at a time over states (nodes of the code's tree), which are worked out
when they are first met.
"""

from __future__ import annotations

from typing import Final

# The length in bits of each symbol's code, 0 to 255 and the end-of-string: `A` is 5, `B` 6, up to `Z` for 30.
_LENGTHS: Final = (
    "ISXXXXXXXTZXXZXXXXXXXXZXXXXXXXXXBFFHIBDGFFDGDBBBAAABBBBBBBCDKBHFIBCCCCCCCCCCCCCCCCCCCCCCDCDIOIJBKABABABBBACCBBBABCBAABCCCCCKGJIX"
    "PRPPRRRSRSSSSSTSTTRSTSSSSQRSRSSTRQPRRSSQSRRTQRSSQQRQSRSSPRRRSRRSVVPORSRUVVVWWVTUOQVWWVWTQQVVXWWWPTPQRQQSRRUUTTVSVWVVWWWWWXWWWWWVZ"
)
_END: Final = 256


def _tree() -> list[list[int]]:
    """Nodes as pairs of children: another node's number, or ~symbol."""
    lengths = [ord(letter) - 60 for letter in _LENGTHS]
    nodes = [[0, 0]]
    code = length = 0
    for symbol in sorted(range(257), key=lambda known: (lengths[known], known)):
        code <<= lengths[symbol] - length
        length = lengths[symbol]
        node = 0
        for bit in range(length - 1, 0, -1):
            which = code >> bit & 1
            if not nodes[node][which]:
                nodes.append([0, 0])
                nodes[node][which] = len(nodes) - 1
            node = nodes[node][which]
        nodes[node][code & 1] = ~symbol
        code += 1
    return nodes


_NODES: Final = _tree()
# Where padding may stop: at the root, or up to seven bits into the end-of-string's code, which is all ones.
_PADDING: set[int] = {0}
_node = 0
for _ in range(7):
    _node = _NODES[_node][1]
    _PADDING.add(_node)
# node << 4 | nibble -> the node after it, and what it completes; -1 where no code goes on so.
_STEPS: dict[int, tuple[int, bytes]] = {}


def _step(key: int) -> tuple[int, bytes]:
    node, out = key >> 4, b""
    for bit in (3, 2, 1, 0):
        node = _NODES[node][key >> bit & 1]
        if node < 0:
            if ~node == _END:
                node, out = -1, b""
                break
            out += bytes((~node,))
            node = 0
    found = _STEPS[key] = (node, out)
    return found


def decode(data: bytes) -> bytes | None:
    """The text, or None where it is not valid: the end-of-string inside, or padding other than up to seven ones."""
    node, out = 0, []
    known = _STEPS.get
    for byte in data:
        key = node << 4 | byte >> 4
        node, piece = known(key) or _step(key)
        if node < 0:
            return None
        out.append(piece)
        key = node << 4 | byte & 15
        node, piece = known(key) or _step(key)
        if node < 0:
            return None
        out.append(piece)
    return b"".join(out) if node in _PADDING else None
