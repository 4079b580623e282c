"""Bounds on what traffic can make the tap hold, wait for or compute, each with its reason.

Reaching one is an anomaly on the record it touched, never an exception. All that is held for traffic, whatever of these bounds it is under, is
in one account (account.py) of ACCOUNT_BYTES. Bounds on other input stand beside what reads it: object files in capture/probes/elf.py, rows that
wait in storage/writer.py, texts and findings in the analyzer.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

# --- memory ------------------------------------------------------------------------------------------------------------
# Resident memory of a capture or a replay, unless an option says otherwise.
MEMORY_CAP_BYTES = 512 * MIB
# All that is held for traffic (account.py): three eighths of the cap. The rest is for the interpreter and its libraries (50 to
# 110 MiB), the queues of capture (an eighth) and detection, rows that wait, and one body that is being decoded.
ACCOUNT_BYTES = MEMORY_CAP_BYTES * 3 // 8
# Behind all bounds stands a limit of the address space: what is mapped at the start, twice the cap, and so much for libraries.
ADDRESS_SPACE_SLACK_BYTES = 1024 * MIB
# What CPython takes for a connection with nothing in it (measured: 4.1 kB), and a little that is not worth an entry of its own.
CONNECTION_COST_BYTES = 6 * KIB
# For an exchange under way beyond its texts (measured: 5.6 kB, 8.1 kB while it streams).
EXCHANGE_COST_BYTES = 8 * KIB
# For one small object that holds a piece of bytes in a list or tuple.
PIECE_COST_BYTES = 64
# What decoding one JSON text may take: its strings, and the objects it is made of.
MAX_JSON_COST_BYTES = MEMORY_CAP_BYTES // 4

# --- packets -----------------------------------------------------------------------------------------------------------
# libpcap's own MAXIMUM_SNAPLEN is 256 KiB; Linux cooked captures of offloaded segments stay under it.
MAX_PACKET_BYTES = 256 * KIB
# IP fragments that wait for the rest: Linux waits 30 s and holds 4 MiB (ipfrag_time, ipfrag_high_thresh).
MAX_FRAGMENT_DATAGRAMS = 4096
MAX_FRAGMENT_BYTES = 4 * MIB
FRAGMENT_AGE_NS = 30_000_000_000
MAX_DATAGRAM_BYTES = 65_535
# Encapsulations around one packet: a mirror of an overlay's packet has two or three.
MAX_ENCAPSULATIONS = 4
# QUIC connections that are known at once, and for how long one may be silent.
MAX_QUIC_CONNECTIONS = 16_384
QUIC_IDLE_NS = 60_000_000_000
# pcapng blocks carry one packet and its options; anything longer is damage.
MAX_PCAPNG_BLOCK_BYTES = 16 * MIB
MAX_PCAPNG_INTERFACES = 4096

# --- tenants -----------------------------------------------------------------------------------------------------------
# Keys of the database of tenants that a decoder remembers, at some 400 bytes each; the least recently used goes.
MAX_TENANT_KEYS = 16_384
# Keys that the database does not know. They are kept apart: whoever makes up keys drives out no key that is known.
MAX_UNKNOWN_KEYS = 16_384
# Questions without an answer. Whoever makes up keys faster than they are answered has none asked beyond this.
MAX_ASKED_KEYS = 1_024

# --- TCP ---------------------------------------------------------------------------------------------------------------
# A node with 50,000 live client connections is extreme; idle ones expire first, then the least recently used is closed.
MAX_CONNECTIONS = 100_000
# Out-of-order bytes kept for one direction. Linux's default tcp_rmem maximum is 6 MB: a sender cannot be further ahead.
MAX_PENDING_BYTES_PER_DIRECTION = 6 * MIB
MAX_PENDING_SEGMENTS_PER_DIRECTION = 8192
# Segments that must follow a hole which the receiver has acknowledged before it counts as lost by the capture: several
# capture points reorder across directions by a few packets only.
LOSS_CONFIRM_SEGMENTS = 16
# A hole older than this (capture time) will not be filled: Linux's minimum retransmission time is 200 ms, doubled thrice.
LOSS_CONFIRM_NS = 2_000_000_000
# Idle connections are closed after this much capture time. Reasoning models may be silent for many minutes.
IDLE_TIMEOUT_NS = 3_600_000_000_000
# After FIN or RST both ways, late segments are still matched for this long.
CLOSED_LINGER_NS = 10_000_000_000
# A reset is believed when nothing follows it for this long.
RESET_LINGER_NS = 2_000_000_000
SWEEP_INTERVAL_NS = 5_000_000_000

# --- live capture ------------------------------------------------------------------------------------------------------
# Between kernel and tap: 160 MB/s for the 100 ms that a busy interpreter may take to come back. Mapped twice over, so that no
# record is cut at its end: resident memory shows it double.
RING_BYTES = 16 * MIB
# Between the reading thread and decoding. Above the first mark, connections that have not begun are left out; at the second, all.
MAX_QUEUE_BYTES = 96 * MIB
QUEUE_SHED_BYTES = 48 * MIB
# TLS connections open at once: the kernel half's own table.
MAX_TLS_CONNECTIONS = 65_536
# A connection whose socket is not known yet is held back for this long, up to so many bytes.
SOCKET_WAIT_NS = 2_000_000_000
SOCKET_WAIT_BYTES = MIB
# Records are put in the order of their calls within this time: a write's record comes at its return, its time is its entry.
REORDER_NS = 5_000_000

# --- TLS ---------------------------------------------------------------------------------------------------------------
# Secrets of a key log that are known at once, at some 250 bytes each; four to a connection of TLS 1.3.
MAX_TLS_SECRETS = 200_000
# Sessions of TLS 1.2 that may be resumed under a secret that was logged once.
MAX_TLS_SESSIONS = 10_000
# A handshake message that is read: a ClientHello with post-quantum shares takes 2 kB, encrypted ones of ECH some more.
MAX_TLS_HELLO_BYTES = 64 * KIB
# Records of one connection that wait for secrets which a capture file holds behind the packets.
MAX_TLS_HELD_BYTES = 256 * KIB
# After a loss, the numbers that are tried: for one record, and for all of a direction.
MAX_TLS_TRIALS_A_RECORD = 64
MAX_TLS_TRIALS = 4096

# --- HTTP --------------------------------------------------------------------------------------------------------------
# Go's net/http takes heads of 1 MiB, httptools has no bound at all.
MAX_HEAD_BYTES = MIB
# Headers kept of one head; beyond them only those that frame the body. Node keeps 2000.
MAX_HEADERS = 4096
# A dynamic table of HTTP/2 headers: browsers allow 64 KiB, most endpoints RFC 7541's 4 KiB. Older entries are unknown.
MAX_HEADER_TABLE_BYTES = 64 * KIB
# Bodies of HTTP/2 streams that wait until it is known which side is the client, of a connection that was joined in its middle.
MAX_UNSETTLED_BYTES = 64 * KIB
# nginx and llhttp have no bound on a chunk's extension.
MAX_CHUNK_LINE_BYTES = 64 * KIB
MAX_PIPELINED_REQUESTS = 1024
# Request and answer bodies that are not streams are kept whole until their end (images inline make them large).
MAX_BODY_BYTES = 64 * MIB
# A decoded body may be this many times larger than what came over the wire, above a floor that small bodies never reach.
MAX_EXPANSION_RATIO = 200
EXPANSION_FLOOR_BYTES = 16 * MIB
MAX_CONTENT_CODINGS = 4
# Of a body that cannot be read, so much is kept as it is, for detection to look at.
MAX_RAW_PREFIX_BYTES = MIB

# Decoders of ours recurse; Python's goes to about 990. Bodies of APIs are a dozen levels deep, schemas of tools some more.
MAX_JSON_DEPTH = 200
# Fields of one Protocol Buffers message, and how deep they nest: the reference decoders stop at 100.
MAX_PROTOBUF_FIELDS = 200_000
MAX_PROTOBUF_DEPTH = 64
# What is no plain JSON is read by slower means, which take several times its size.
MAX_LOOSE_BODY_BYTES = 8 * MIB
MAX_FORM_FIELDS = 1024
# Texts in places that no dialect names, of one request: an agent sends some hundred descriptions of parameters.
MAX_OTHER_TEXTS = 2048
MAX_OTHER_TEXT_CHARS = 2 * MIB

# --- streams -----------------------------------------------------------------------------------------------------------
# One SSE line may carry a whole answer (the Responses API repeats it in its last event): 1 MB lines are seen in the field.
MAX_EVENT_BYTES = 16 * MIB
# Instructions and tools of a realtime session, which each of its answers has again: longer ones are in one request alone.
MAX_SESSION_BYTES = MIB
# Of events that could not be read, so much is kept for detection.
MAX_UNREAD_EVENTS = 32
MAX_UNREAD_EVENT_BYTES = 64 * KIB
# AWS caps a message at 16 MiB of payload and 128 KiB of headers (event stream encoding).
MAX_EVENTSTREAM_MESSAGE_BYTES = 16 * MIB + 128 * KIB + 16
# Text kept of one answer, over all choices.
MAX_TEXT_CHARS = 32 * MIB
MAX_CHOICES = 128
MAX_TOOL_CALLS = 1024
# Inter-token gaps kept exactly up to this many, then every second, fourth, … one.
MAX_LATENCY_SAMPLES = 16_384
