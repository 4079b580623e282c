"""Names of the oddities that the tap reports, one table. An anomaly is a fact about the wire, never an error of ours.

They are counted per exchange (`anomalies` on the record) and over the run (the closing summary), as Zeek's "weirds" are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

AnomalyName = Literal[
    # packets
    "packet_cut", "packet_malformed", "ip_fragment", "ip_fragment_overlap", "ip_fragment_lost", "linktype_unknown",
    "packet_too_deep",
    # TCP
    "tcp_gap", "tcp_overlap_differs", "tcp_overlap_unchecked", "tcp_out_of_window", "tcp_bad_checksum", "tcp_syn_inside",
    "tcp_data_after_reset", "tcp_reopened", "tcp_pending_limit", "tcp_connection_limit", "tcp_reset", "tcp_port_reuse",
    "tcp_idle_expired",
    # TLS
    "tls_unread", "tls_unopened", "tls_malformed", "tls_early_data_refused",
    # live capture
    "ebpf_dropped", "ebpf_cut", "ebpf_unreadable", "ebpf_no_socket", "ebpf_connection_limit", "tap_overload",
    "tap_attached_late",
    # HTTP
    "http_bad_head", "http_head_limit", "http_bad_chunk", "http_bad_length", "http_length_and_chunked", "http_framing_unclear",
    "http_header_limit", "http_obs_fold", "http_bare_lf", "http_resync", "http_pipeline_limit", "http_unsolicited_response",
    "http_no_response", "http_body_limit", "content_encoding_unknown", "content_encoding_absent", "content_encoding_undeclared",
    "content_encoding_bad", "content_encoding_bomb",
    # HTTP/2
    "http2_bad_frame", "http2_bad_block", "http2_header_unknown", "http2_refused",
    # WebSocket
    "websocket_bad_frame", "websocket_unread",
    # memory
    "memory_limit", "http_memory_limit",
    # streams
    "event_limit", "event_bad_json", "eventstream_bad_crc", "eventstream_bad_frame", "stream_unterminated",
    # providers
    "body_bad_json", "body_unreadable", "charset_not_utf8", "form_bad_part", "form_limit", "json_deep", "json_repeated_key",
    "json_key_case", "json_trailing", "other_text_limit", "unknown_part", "prompt_token_ids", "charset_differs", "json_limit", "json_not_strict",
    "text_limit", "names_cut", "choice_limit", "decoder_error",
    # detection
    "detection_fault", "detection_incomplete", "findings_limit", "detection_without_model", "detection_skipped", "detection_set_aside",
    "detection_secrets_only", "content_withheld", "content_degraded", "content_expired",
    # keys
    "key_new_workload", "key_shared", "tenant_unresolved", "tenant_stale",
    # agents
    "mcp_tool_changed",
    # the SDK
    "sdk_lost",
]  # fmt: skip
"""The type of a name, so that the type checker proves each one where it is reported."""

OnAnomaly = Callable[[AnomalyName], None]
"""Takes an oddity that was seen."""

ANOMALIES: Final[dict[AnomalyName, str]] = {
    # packets
    "packet_cut": "A packet was captured shorter than it was sent (snap length).",
    "packet_malformed": "A frame, IP or TCP header with impossible lengths was skipped.",
    "ip_fragment": "An IP fragment was seen; fragments are put together within bounds.",
    "ip_fragment_overlap": "IP fragments overlapped, or did not fit together; their datagram was dropped (RFC 5722).",
    "ip_fragment_lost": "IP fragments were given up: the rest of their datagram did not come in time, or too many waited.",
    "linktype_unknown": "Packets of a link type that is not decoded were skipped.",
    "packet_too_deep": "A packet had more encapsulations than the limit, and was skipped.",
    # TCP
    "tcp_gap": "Bytes were lost by the capture: acknowledged or never sent again, and not in the file.",
    "tcp_overlap_differs": "A copy of bytes differed from the first one; the first copy was read, the other is kept to be looked at.",
    "tcp_overlap_unchecked": "A copy of bytes came so late that the first one was not held any more; the two could not be compared.",
    "tcp_out_of_window": "A segment, reset or end that no receiver can have taken (RFC 5961) was left out.",
    "tcp_bad_checksum": "A segment with a wrong checksum, on a connection that carries right ones, was left out.",
    "tcp_syn_inside": "A SYN came inside a connection; nobody answered it, and the connection went on.",
    "tcp_data_after_reset": "Bytes followed a reset: the connection was not reset, and was read on.",
    "tcp_reopened": "Bytes came on a connection that had ended; they were read as one that was joined in its middle.",
    "tcp_pending_limit": "Too many out-of-order bytes were held; the oldest hole was given up as lost.",
    "tcp_connection_limit": "Too many connections were open; the least recently used was closed.",
    "tcp_reset": "The connection was reset.",
    "tcp_port_reuse": "A new connection began on the same addresses and ports before the old one ended.",
    "tcp_idle_expired": "The connection was silent for longer than the idle limit and was closed here.",
    # TLS
    "tls_unread": "A connection with TLS whose secrets are not known, or of which no record could be opened: this line is all that is known of it.",
    "tls_unopened": "A record of TLS did not open with the connection's keys: what it held is missing.",
    "tls_malformed": "A record or handshake message of TLS contradicts itself; what came after it was searched for records.",
    "tls_early_data_refused": "The server refused what the client sent early (TLS 1.3); it is not read, the client sends it again.",
    # live capture
    "ebpf_dropped": "The ring between kernel and tap was full; bytes of this connection were lost and counted.",
    "ebpf_cut": "One call moved more bytes than the limit of a call; what came first was kept.",
    "ebpf_unreadable": "The bytes of a call could not be read from the process's memory, or never stood there (sendfile, splice, io_uring).",
    "ebpf_no_socket": "The socket under a TLS connection could not be told; its addresses are unknown.",
    "ebpf_connection_limit": "Too many connections of observed processes were open; the least recently used was closed.",
    "tap_overload": "The tap could not keep up, or reached its memory limit, and left out bytes of this connection.",
    "tap_attached_late": "The process began before its probes stood, and so did this connection: what it said first may be missing.",
    # HTTP
    "http_bad_head": "A request or status line or a header line does not follow RFC 9112; it was skipped or taken as far as it could be parsed.",
    "http_head_limit": "A message head was longer than the limit; the parser looked for the next message.",
    "http_bad_chunk": "A chunk size or chunk end was not valid; the parser looked for the next message.",
    "http_bad_length": "Content-Length was not a number, or several disagreed; the first number was taken.",
    "http_length_and_chunked": "A message had both Content-Length and Transfer-Encoding; chunked was used (RFC 9112 6.3).",
    "http_framing_unclear": "Servers do not agree where this body ends: a transfer coding other than plain chunked, or chunked in HTTP/1.0.",
    "http_header_limit": "A head had more header lines than the limit; only those that frame the body were kept beyond it.",
    "http_obs_fold": "A header was continued on the next line (obsolete folding).",
    "http_bare_lf": "A line of the head ended with LF alone.",
    "http_resync": "After damage, bytes were skipped up to the next message.",
    "http_pipeline_limit": "Too many requests waited for an answer on one connection.",
    "http_unsolicited_response": "A response came with no request before it.",
    "http_no_response": "The connection ended before the request was answered.",
    "http_body_limit": "A body was longer than the limit; what came first was kept.",
    "content_encoding_unknown": "The body has a content coding that is not known; it was kept as it is.",
    "content_encoding_absent": "The body is not in the content coding that its header names; it was read as it is, as servers do.",
    "content_encoding_undeclared": "The body is gzip although no header says so; it was decoded.",
    "content_encoding_bad": "The coded body could not be decoded past some point; what came before was kept.",
    "content_encoding_bomb": "The decoded body grew far beyond its coded size; decoding stopped.",
    # HTTP/2
    "http2_bad_frame": "An HTTP/2 frame had a length, stream or place that none may have; it was passed over.",
    "http2_bad_block": "A block of HTTP/2 headers could not be decoded; what came before was kept, and the table of headers began anew.",
    "http2_header_unknown": "HTTP/2 headers refer to what was not captured (or were lost themselves); the others were read, and the body by its shape.",
    "http2_refused": "HTTP/1 answered the beginning of HTTP/2; the connection was not read on in that direction.",
    # WebSocket
    "websocket_bad_frame": "A WebSocket frame is not as RFC 6455 has it: its bits, length, mask or place; it was read as far as it could be, or passed over.",
    "websocket_unread": "A WebSocket message could not be inflated: it is damaged, too long, or refers to what was lost before it.",
    # memory
    "memory_limit": "All that is held for traffic was at its bound, and this held more than its share: it was cut, and read as far as it came.",
    "http_memory_limit": "All that is held for traffic was at its bound; the unfinished head of a message was dropped unread.",
    # streams
    "event_limit": "One event of a stream was longer than the limit and was dropped.",
    "event_bad_json": "An event's data was not the JSON that its dialect promises; it was skipped.",
    "eventstream_bad_crc": "A CRC of an AWS event stream message did not match; the message was dropped.",
    "eventstream_bad_frame": "An AWS event stream message had impossible lengths; the parser looked for the next one.",
    "stream_unterminated": "The stream ended without its closing event, or inside an event.",
    # providers
    "body_bad_json": "The body is not the JSON that its type promises; what came before the damage was read, all of it was scanned as text.",
    "body_unreadable": "The body is neither JSON nor a form nor text; what a reader would see in its bytes was scanned.",
    "charset_not_utf8": "The body is in another charset than UTF-8 (UTF-16, UTF-32, or the one of its type); it was read in it.",
    "form_bad_part": "A part of a form has no end of its head; it was read as text.",
    "form_limit": "A form had more fields than the limit; further ones were not read.",
    "json_deep": "JSON was nested deeper than the limit; what was deeper was kept as text.",
    "json_repeated_key": "An object of the request had one key twice, or in two cases; the last counts, the others were scanned too.",
    "json_key_case": "Fields of the request differ in case from what the API names; they were read as servers do that do not look at case.",
    "json_trailing": "Something followed the JSON value of the body; the value was read, the rest was scanned.",
    "other_text_limit": "Texts in places that no dialect names were more than the limit; what came first was kept.",
    "unknown_part": "Text stood in a part of the conversation that its dialect does not know; it was kept and scanned, and the decoder should learn it.",
    "prompt_token_ids": "The prompt came as token ids, which are not text: it passed unread.",
    "charset_differs": "The body reads as other text in the charset that its type names; both readings were scanned.",
    "json_limit": "JSON that would take too much memory when decoded (very many values, or text of four bytes a character) was not decoded.",
    "json_not_strict": "JSON with lone surrogates, NaN or invalid UTF-8 was read leniently; such characters became U+FFFD.",
    "text_limit": "A text was longer than the limit: of an answer what came first was kept, of a record that an application sent none.",
    "names_cut": "Of a record that an application sent, names longer than 512 characters, tags or a path longer than 8,192 were cut.",
    "choice_limit": "More choices or tool calls than the limit; further ones were not kept.",
    "decoder_error": "A provider decoder failed on this exchange (a defect of ours); what it had read was kept.",
    # detection
    "detection_fault": "A detector failed on this exchange (a defect of ours, or of a plug-in); the others went on.",
    "detection_incomplete": "A text was too long to be judged whole for prompt injection; its beginning and end were. On a record of the SDK also: the application's own rules or policy had not looked at (all of) the request.",
    "findings_limit": "More findings than a record keeps: the gravest of each rule were kept, the count says how many were not; all are masked by --redact.",
    "detection_without_model": "Over its budget, detection ran without the injection model.",
    "detection_skipped": "Detection could not keep up, or its process had ended; this exchange was not looked at.",
    "detection_set_aside": "Its longest text ended the detection process twice, so it was not looked at again.",
    "detection_secrets_only": "Over its budget, detection looked for secrets and unsafe output only.",
    "content_withheld": "Its texts should have been masked and were not (all) looked at, so they were left out.",
    "content_degraded": "Degraded (disk, memory or load), the tap left the texts out of what it keeps; counts and findings stay.",
    "content_expired": "Its texts were kept as long as the store's retention says, or were deleted on request; counts and findings stay.",
    # keys
    "key_new_workload": "The client's key was used by a workload that it was not seen with before, in this run.",
    "key_shared": "Several workloads used the client's key within an hour; said once an hour for each key.",
    "tenant_unresolved": "The database of tenants had not said whose the client's key is when the exchange ended; `tenant` says what was known.",
    "tenant_stale": "The database of tenants is away: whose the client's key is was said some time ago.",
    # agents
    "mcp_tool_changed": "An MCP server describes one of its tools (or a parameter) otherwise than before in this run; said once for each new description.",
    # the SDK
    "sdk_lost": "The SDK found no room for so many calls, records or pieces of answers of this process, or could hand them to nobody, since the record before.",
}

# With one of these, something of the exchange was not read: it is never `complete`, and has no risk score.
UNREAD: Final[frozenset[AnomalyName]] = frozenset(
    (
        "content_encoding_bad", "content_encoding_bomb", "http_body_limit", "http_head_limit", "event_limit", "event_bad_json",
        "eventstream_bad_crc", "eventstream_bad_frame", "body_bad_json", "body_unreadable", "form_limit", "other_text_limit",
        "memory_limit", "http_memory_limit", "websocket_unread", "json_limit", "prompt_token_ids", "text_limit", "choice_limit", "decoder_error",
    )
)  # fmt: skip
