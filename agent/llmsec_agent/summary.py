"""The closing summary: lines for people out of the same snapshot that a scrape reads."""

from __future__ import annotations

from llmsec_tap.counters import Snapshot


def what_was_decoded(counts: Snapshot) -> str:
    llm, other = counts.get("llmsec_exchanges_total", kind="llm"), counts.get("llmsec_exchanges_total", kind="other")
    return f"{llm + other:,} exchanges ({llm:,} with a language model)"


def received(counts: Snapshot) -> list[str]:
    """Nothing where applications send no records."""
    taken, refused = counts.get("llmsec_sdk_records_total"), counts.by("llmsec_sdk_refused_total", "reason")
    if not taken and not refused:
        return []
    reasons = ", ".join(f"{key} {count:,}" for key, count in refused.items())
    return [f"{taken:,} records taken from applications" + (f"; refused: {reasons}" if refused else "")]


def gaps(counts: Snapshot) -> str:
    return f"{counts.get('llmsec_gaps_total'):,} gaps ({counts.get('llmsec_gap_bytes_total'):,} bytes)"


def oddities(counts: Snapshot) -> list[str]:
    lines = []
    for title, name, label in (
        ("anomalies", "llmsec_anomalies_total", "name"),
        ("not decoded", "llmsec_undecoded_connections_total", "protocol"),
        ("packets of other kinds", "llmsec_skipped_packets_total", "kind"),
    ):
        found = counts.by(name, label)
        if found:
            lines.append(f"{title}: " + ", ".join(f"{key} {count:,}" for key, count in found.items()))
    return lines


def alerts(counts: Snapshot) -> list[str]:
    """Nothing where no rule was met."""
    told, held = counts.by("llmsec_alerts_total", "priority"), counts.by("llmsec_alerts_held_total", "reason")
    if not told and not held:
        return []
    some = ", ".join(f"{name} {count:,}" for name, count in told.items()) or "none"
    return [f"alerts: {some}" + (f" ({', '.join(f'{count:,} {name}' for name, count in held.items())})" if held else "")]


def waiting_alerts(counts: Snapshot, location: str | None, send_by: str) -> list[str]:
    """What a replay left for another command to send. Nothing where no rule was met."""
    # Some are told twice, when they begin and with their count; what could not be written does not wait.
    waiting = min(counts.get("llmsec_alerts_total"), counts.get("llmsec_sink_records_total", sink="alerts"))
    return [f"{waiting:,} alerts wait in {location}: {send_by} sends them"] if waiting else []


def kernel(counts: Snapshot) -> list[str]:
    """What the kernel half and the queue behind it saw and left out."""

    def total(name: str) -> int:
        return counts.get(f"llmsec_kernel_{name}_total")

    def left_out(what: str) -> int:
        return counts.get(f"llmsec_queue_left_out_{what}_total")

    def connections(source: str) -> int:
        return counts.get("llmsec_connections_total", source=source)

    plain = (
        f"{total('plain_calls'):,} plain calls ({total('plain_bytes'):,} bytes), {connections('plain'):,} connections; "
        if total("plain_calls")
        else ""
    )
    first = (
        f"seen {total('calls') - total('plain_calls'):,} TLS calls ({total('bytes') - total('plain_bytes'):,} bytes), "
        f"{connections('tls'):,} connections; {plain}decoded {counts.get('llmsec_decoded_bytes_total'):,} bytes; "
        f"dropped: {total('lost_calls'):,} calls ({total('lost_bytes'):,} bytes) in the kernel ring, "
        f"{left_out('records'):,} records ({left_out('bytes'):,} bytes) of {left_out('connections'):,} connections in the tap's queue"
    )
    lines = [first]
    for name, text in (
        ("unreadable_calls", "calls whose bytes could not be read from memory (sendfile, splice and io_uring leave none there)"),
        ("unseen_sockets", "sockets that began by io_uring, sendfile or the like: what they carry is not known"),
        ("cut_calls", "calls longer than what is copied of one"),
        ("lost_processes", "starts of processes that found no room"),
    ):
        if total(name):
            lines.append(f"{total(name):,} {text}")
    if counts.get("llmsec_connections_without_socket_total"):
        lines.append(f"{counts.get('llmsec_connections_without_socket_total'):,} connections without a known socket")
    return lines


def why_nothing(counts: Snapshot, *, plain: bool, interfaces: tuple[str, ...], observes: bool) -> list[str]:
    """What may be the reason that no exchange was seen."""
    if not observes and not interfaces:
        return ["no exchange: nothing is captured, and no application sent a record (docs/sdk.md)"]
    if counts.get("llmsec_kernel_calls_total"):
        return ["no exchange: what was seen is not the traffic of a language model that is known, or had not begun anew (docs/capture.md)"]
    if interfaces:
        return []
    if plain:
        return [
            "no exchange: the chosen processes neither called a probed TLS library nor spoke plain HTTP; `llmsec-tap targets` shows them"
        ]
    return ["no exchange: the chosen processes called no probed TLS library, and plain HTTP was not looked at (--plain, or --iface)"]


def sinks(counts: Snapshot, location: str | None) -> list[str]:
    """What was stored where, and what no sink took."""
    lines = []
    if location is not None:
        lost = counts.get("llmsec_store_lost_rows_total") + counts.get("llmsec_sink_dropped_records_total", sink="store")
        same = counts.get("llmsec_store_replaced_rows_total")
        stored = f"stored {counts.get('llmsec_store_rows_total'):,} in {location}" + (f" ({same:,} have the id of another)" if same else "")
        lines.append(stored + (f", {lost:,} NOT STORED" if lost else ""))
        if counts.get("llmsec_store_repaired_rows_total"):
            lines.append(f"{counts.get('llmsec_store_repaired_rows_total'):,} rows had a value that its column cannot hold")
    if counts.get("llmsec_sink_dropped_records_total", sink="stdout"):
        lines.append(f"standard output: {counts.get('llmsec_sink_dropped_records_total', sink='stdout'):,} exchanges NOT PRINTED")
    return lines
