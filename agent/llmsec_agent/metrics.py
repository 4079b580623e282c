"""The catalogue of metrics, and how samples become an exposition for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from llmsec_tap.counters import Labels, Sample

Kind = Literal["counter", "gauge", "histogram"]


# What several decoders say becomes one number: the sum; where each says the same of one thing, or the worst counts, one of them.
Joined = Literal["sum", "greatest", "least"]


class Metric(NamedTuple):
    kind: Kind
    help: str
    joined: Joined = "sum"
    labels: tuple[str, ...] = ()


CATALOGUE: Final[dict[str, Metric]] = {
    # Traffic, as observed.
    "llmsec_requests_total": Metric("counter", "Requests to language models.", labels=("tenant_id", "backend", "model")),
    "llmsec_request_errors_total": Metric("counter", "Requests that failed: an HTTP status of 400 and above, or an error in the answer.", labels=("tenant_id", "backend", "error_type")),
    "llmsec_request_duration_seconds": Metric("histogram", "First byte of a request to the last byte of its answer.", labels=("tenant_id", "backend")),
    "gen_ai_server_request_duration_seconds": Metric("histogram", "OpenTelemetry gen_ai.server.request.duration.", labels=("gen_ai_operation_name", "gen_ai_provider_name")),
    "gen_ai_server_time_to_first_token_seconds": Metric("histogram", "OpenTelemetry gen_ai.server.time_to_first_token.", labels=("gen_ai_operation_name", "gen_ai_provider_name")),
    "gen_ai_server_time_per_output_token_seconds": Metric("histogram", "OpenTelemetry gen_ai.server.time_per_output_token.", labels=("gen_ai_operation_name", "gen_ai_provider_name")),
    "gen_ai_client_token_usage": Metric("histogram", "OpenTelemetry gen_ai.client.token.usage, as the server states it.", labels=("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_token_type")),
    "llmsec_cost_usd_total": Metric("counter", "What exchanges cost, where the model has a price (docs/deviations.md).", labels=("tenant_id", "backend", "model")),
    # Decoding.
    "llmsec_exchanges_total": Metric("counter", "Exchanges decoded, with a language model (llm) or not (other).", labels=("kind",)),
    "llmsec_exchanges_delivered_total": Metric("counter", "Exchanges handed to the sinks, by how they were seen.", labels=("completeness",)),
    "llmsec_connections_total": Metric("counter", "Connections that were followed.", labels=("source",)),
    "llmsec_open_connections": Metric("gauge", "Connections that are followed now.", labels=("source",)),
    "llmsec_decoded_bytes_total": Metric("counter", "Bytes of plaintext that reached a decoder.", labels=("source",)),
    "llmsec_gaps_total": Metric("counter", "Gaps in connections: bytes that were sent and not seen.", labels=("source",)),
    "llmsec_gap_bytes_total": Metric("counter", "Bytes in those gaps.", labels=("source",)),
    "llmsec_connections_without_socket_total": Metric("counter", "TLS connections whose addresses are not known."),
    "llmsec_anomalies_total": Metric("counter", "Oddities of the wire by name (docs/anomalies.md).", labels=("name",)),
    "llmsec_skipped_packets_total": Metric("counter", "Packets that carry neither TCP nor a QUIC connection that is known.", labels=("kind",)),
    "llmsec_tls_secrets": Metric("gauge", "Secrets of TLS connections that are known, from key logs.", "greatest"),
    "llmsec_tls_secrets_left_out_total": Metric("counter", "Secrets of key logs beyond the bound.", "greatest"),
    "llmsec_undecoded_connections_total": Metric("counter", "Connections of a protocol that is recognised and not decoded.", labels=("protocol",)),
    "llmsec_decoder_failures_total": Metric("counter", "Decoders of ours that failed on an exchange; please report them.", labels=("decoder",)),
    # Capture.
    "llmsec_packets_total": Metric("counter", "Packets read from interfaces or files.", labels=("interface",)),
    "llmsec_interface_up": Metric("gauge", "1 while the interface is there and up, 0 while it is waited for.", "least", labels=("interface",)),
    "llmsec_packets_dropped_total": Metric("counter", "Packets that the kernel dropped because the tap was too slow.", labels=("interface",)),
    "llmsec_sdk_receiver_up": Metric("gauge", "1 while records of applications are taken at sdk.socket.", "least"),
    "llmsec_sdk_connections": Metric("gauge", "Applications that are connected to sdk.socket."),
    "llmsec_sdk_records_total": Metric("counter", "Records taken from applications."),
    "llmsec_sdk_refused_total": Metric("counter", "Records of applications that were refused (malformed, time, not_a_model, too_large, memory), frames (frame, slow) and connections (connections).", labels=("reason",)),
    "llmsec_kernel_calls_total": Metric("counter", "Calls of observed processes that the kernel half saw: of TLS functions, and over plain HTTP.", "greatest"),
    "llmsec_kernel_bytes_total": Metric("counter", "Bytes in those calls.", "greatest"),
    "llmsec_kernel_lost_records_total": Metric("counter", "Records that found no room in the ring.", "greatest"),
    "llmsec_kernel_lost_bytes_total": Metric("counter", "Bytes in those records.", "greatest"),
    "llmsec_kernel_lost_calls_total": Metric("counter", "Calls that lost a record.", "greatest"),
    "llmsec_kernel_unreadable_calls_total": Metric("counter", "Calls whose memory the kernel could not read.", "greatest"),
    "llmsec_kernel_cut_calls_total": Metric("counter", "Calls longer than what is copied of one.", "greatest"),
    "llmsec_kernel_lost_processes_total": Metric("counter", "Starts and ends of processes that found no room.", "greatest"),
    "llmsec_kernel_plain_calls_total": Metric("counter", "Of the calls, those over a socket without TLS.", "greatest"),
    "llmsec_kernel_plain_bytes_total": Metric("counter", "Bytes in those calls.", "greatest"),
    "llmsec_kernel_unseen_sockets_total": Metric(
        "counter", "Sockets that began by io_uring, sendfile or the like, so that what they carry is not known.", "greatest"
    ),
    "llmsec_queue_bytes": Metric("gauge", "Bytes that were read and wait for decoding."),
    "llmsec_queue_peak_bytes": Metric("gauge", "The most that ever waited."),
    "llmsec_queue_left_out_connections_total": Metric("counter", "Connections left out because decoding fell behind."),
    "llmsec_queue_left_out_records_total": Metric("counter", "Their records."),
    "llmsec_queue_left_out_bytes_total": Metric("counter", "Their bytes."),
    "llmsec_queue_discarded_packet_blocks_total": Metric("counter", "Blocks of packets not decoded because the run was ended."),
    "llmsec_shed_connections_total": Metric("counter", "Quiet connections given up to stay under the memory cap."),
    "llmsec_memory_faults_total": Metric("counter", "Times an allocation failed: what was under way then was cut."),
    "llmsec_clock_stepped_seconds": Metric("gauge", "How far the wall clock was set since the start; records keep the time they had.", "greatest"),
    # Deviations.
    "llmsec_deviations_total": Metric("counter", "Deviations by kind (docs/deviations.md).", labels=("kind",)),
    "llmsec_watched_subjects": Metric("gauge", "Tenants, keys, clients, upstreams, models and sessions that are known; 100,000 at most.", "greatest"),
    "llmsec_forgotten_subjects_total": Metric("counter", "Subjects that were longest unseen and made room for new ones."),
    "llmsec_unpriced_exchanges_total": Metric("counter", "Exchanges without a cost: the model has no price, or no tokens are known."),
    "llmsec_watch_failures_total": Metric("counter", "Exchanges that were not looked at for deviations, by a fault of ours."),
    # Alerts.
    "llmsec_alerts_total": Metric("counter", "Alerts that were told, by rule and priority (docs/alerts.md).", labels=("rule", "priority")),
    "llmsec_alerts_resolved_total": Metric("counter", "Alerts that were told to be over, by rule.", labels=("rule",)),
    "llmsec_alerts_held_total": Metric(
        "counter", "Exchanges that met a rule and were not told alone: grouped, limited or silenced; forgotten: windows that made room.", labels=("reason",)
    ),
    "llmsec_alert_windows": Metric("gauge", "Alerts whose window is open, or whose state lasts; 10,000 at most."),
    "llmsec_alert_failures_total": Metric("counter", "Times that deciding about alerts failed, by a fault of ours."),
    "llmsec_alert_outbox_files_left_out_total": Metric("counter", "Files of the outbox that made room, sent or not."),
    # Detection.
    "llmsec_findings_total": Metric("counter", "Findings by severity, without those that are suppressed.", labels=("severity",)),
    "llmsec_exchange_findings_total": Metric("counter", "The same findings by whose exchange has them, and what they are of.", labels=("tenant_id", "category", "severity")),
    "llmsec_suppressed_findings_total": Metric("counter", "Findings that the configuration suppresses."),
    "llmsec_detection_up": Metric("gauge", "1 while the detection process runs.", "least"),
    "llmsec_detection_deaths_total": Metric("counter", "Times the detection process exited or was ended."),
    "llmsec_detection_set_aside_texts_total": Metric("counter", "Texts that ended it twice; exchanges with them are not scanned."),
    "llmsec_detection_reloads_total": Metric("counter", "Changes of its settings while it runs: accepted, refused, failed.", "greatest", labels=("result",)),
    "llmsec_detection_reduced_exchanges_total": Metric("counter", "Exchanges with reduced detection, by mark.", labels=("mark",)),
    "llmsec_request_analysis_duration_seconds": Metric("histogram", "From a request's last byte to its findings, while its answer is out."),
    "llmsec_request_analysis_timeouts_total": Metric("counter", "Requests that were too long to be looked at whole before their answer."),
    "llmsec_request_analysis_left_out_total": Metric("counter", "Requests that were not looked at before their answer: detection was behind."),
    "llmsec_detection_waiting_exchanges": Metric("gauge", "Exchanges that wait for their report."),
    "llmsec_detection_queue_bytes": Metric("gauge", "Bytes of text that wait for detection."),
    "llmsec_detection_increments_total": Metric("counter", "Increments of streaming answers that were scanned as they came."),
    "llmsec_detection_delay_seconds": Metric("gauge", "From an increment's decoding to the end of its scan, by quantile.", "greatest", labels=("quantile",)),
    "llmsec_detector_faults_total": Metric("counter", "Detectors that failed or ran out of time.", labels=("detector",)),
    "security_analysis_duration_seconds": Metric("histogram", "From a whole exchange to its findings."),
    # Sinks.
    "llmsec_sink_records_total": Metric("counter", "Records that a sink took.", labels=("sink",)),
    "llmsec_sink_dropped_records_total": Metric("counter", "Records that a sink did not take, by reason.", labels=("sink", "reason")),
    "llmsec_sink_queue_bytes": Metric("gauge", "Bytes that wait for a sink.", labels=("sink",)),
    "llmsec_sink_up": Metric("gauge", "0 while a sink fails.", "least", labels=("sink",)),
    "llmsec_store_rows_total": Metric("counter", "Rows on the disk."),
    "llmsec_store_replaced_rows_total": Metric("counter", "Rows in whose place one with the same id was stored."),
    "llmsec_store_lost_rows_total": Metric("counter", "Rows that could not be stored."),
    "llmsec_store_repaired_rows_total": Metric("counter", "Rows with a value that its column cannot hold."),
    "llmsec_store_parts_total": Metric("counter", "Files written."),
    "llmsec_store_written_bytes_total": Metric("counter", "Bytes written."),
    "llmsec_store_pruned_parts_total": Metric("counter", "Files deleted by retention."),
    "llmsec_store_pruned_bytes_total": Metric("counter", "Bytes deleted by retention."),
    "llmsec_store_undelivered_parts_total": Metric("counter", "Of the files deleted, those that had not been delivered by then."),
    "llmsec_store_undelivered_rows_total": Metric("counter", "Exchanges in them that the database has from no other file."),
    "llmsec_audit_findings_total": Metric("counter", "Findings written to the store's audit log."),
    "llmsec_store_failed_compactions_total": Metric("counter", "Times the small files of a store could not be merged."),
    "llmsec_tenant_lookups_total": Metric(
        "counter", "Keys looked up in the database of tenants, by what was known: known, unknown, stale, unresolved.", labels=("result",)
    ),
    "llmsec_tenant_questions_total": Metric("counter", "Questions sent to the process that asks the database."),
    "llmsec_tenant_questions_left_out_total": Metric("counter", "Questions not sent: too many were open, or it was gone."),
    "llmsec_tenant_keys": Metric("gauge", "Keys that are remembered, known and unknown ones.", labels=("kind",)),
    "llmsec_store_waiting_bytes": Metric("gauge", "Bytes that wait for the next file."),
    "llmsec_delivery_up": Metric("gauge", "1 while the process that delivers to the database lives.", "least"),
    "llmsec_delivery_failing": Metric("gauge", "1 while the database takes no rows.", "greatest"),
    "llmsec_delivery_failures_total": Metric("counter", "Deliveries that failed, since that process began.", "greatest"),
    "llmsec_delivery_restarts_total": Metric("counter", "Times that process was started again.", "greatest"),
    "llmsec_delivery_rows_total": Metric("counter", "Rows that the database has acknowledged, since the folder is delivered.", "greatest"),
    "llmsec_delivery_lost_rows_total": Metric("counter", "Rows declared lost on the way, since the folder is delivered.", "greatest"),
    "llmsec_delivery_waiting_parts": Metric("gauge", "Files that wait for the database.", "greatest"),
    "llmsec_delivery_waiting_rows": Metric("gauge", "Rows in them.", "greatest"),
    "llmsec_delivery_lag_seconds": Metric("gauge", "Age of the oldest file that waits.", "greatest"),
    "llmsec_telemetry_up": Metric("gauge", "1 while the process that sends telemetry lives.", "least"),
    "llmsec_telemetry_failing": Metric("gauge", "1 while a collector takes no spans, or no metrics.", "greatest"),
    "llmsec_telemetry_failures_total": Metric("counter", "Requests to collectors that failed, since that process began.", "greatest"),
    "llmsec_telemetry_restarts_total": Metric("counter", "Times that process was started again.", "greatest"),
    "llmsec_telemetry_spans_total": Metric("counter", "Spans that the collector has acknowledged, since that process began.", "greatest"),
    "llmsec_telemetry_refused_spans_total": Metric("counter", "Spans that the collector will never take, since that process began.", "greatest"),
    "llmsec_telemetry_exchanges_total": Metric("counter", "Exchanges told to the collector: as a span, or in metrics only.", "greatest"),
    "llmsec_telemetry_lost_exchanges_total": Metric("counter", "Exchanges not told: beyond max_queue_size, or deleted before.", "greatest"),
    "llmsec_telemetry_waiting_exchanges": Metric("gauge", "Exchanges that wait to be told.", "greatest"),
    # Alerts on their way out.
    "llmsec_alert_sender_up": Metric("gauge", "1 while the process that sends alerts lives.", "least"),
    "llmsec_alert_sender_restarts_total": Metric("counter", "Times that process was started again.", "greatest"),
    "llmsec_alerts_sent_total": Metric("counter", "Alerts by channel and outcome, since that process began: sent, retry, dead.", "greatest", labels=("channel", "outcome")),
    "llmsec_alerts_unreadable_total": Metric("counter", "Lines of the outbox that are no alerts.", "greatest"),
    "llmsec_alerts_missed_files_total": Metric("counter", "Files of the outbox that were deleted before a channel read them.", "greatest", labels=("channel",)),
    "llmsec_alert_channel_failing": Metric("gauge", "1 while a channel takes no alerts.", "greatest", labels=("channel",)),
    "llmsec_alert_waiting_seconds": Metric("gauge", "Age of the alert that a channel is trying to send.", "greatest", labels=("channel",)),
    # The tap itself.
    "llmsec_up": Metric("gauge", "1 while the decoders answer.", "least"),
    "llmsec_ready": Metric("gauge", "1 once everything that was asked for is observed.", "least"),
    "llmsec_heartbeat_timestamp_seconds": Metric("gauge", "When a decoder last finished a round of work; of several, the one that is behind.", "least"),
    "llmsec_config_reload_ok": Metric("gauge", "0 where the last reload was refused: the configuration before it is in force.", "least"),
    "llmsec_config_reloads_total": Metric("counter", "Reloads by result.", "greatest", labels=("result",)),
    "llmsec_degradation_level": Metric("gauge", "0 normal, 1 reduced, 2 essential, 3 emergency.", "greatest"),
    "llmsec_resource_used_ratio": Metric("gauge", "How much of its bound a resource uses: queue, memory, cpu (one core), disk.", "greatest", labels=("resource",)),
    "process_resident_memory_bytes": Metric("gauge", "Resident memory of the decoders."),
    "llmsec_peak_resident_memory_bytes": Metric("gauge", "The most that was ever resident."),
}  # fmt: skip

_PARTS: Final = ("_bucket", "_sum", "_count")


def metric_of(sample: str, catalogue: Mapping[str, Metric] = CATALOGUE) -> str:
    """The metric that a sample's name belongs to."""
    for part in _PARTS:
        name = sample.removesuffix(part)
        if name != sample and name in catalogue:
            return name
    return sample


def together(parts: Sequence[Iterable[Sample]]) -> list[Sample]:
    """The samples of several decoders as those of one tap."""
    if len(parts) == 1:
        return list(parts[0])
    values: dict[tuple[str, Labels], list[float]] = {}
    for part in parts:
        for name, value, labels in part:
            values.setdefault((name, labels), []).append(value)
    return [Sample(name, _joined(name, found), labels) for (name, labels), found in values.items()]


def _joined(name: str, values: list[float]) -> float:
    known = CATALOGUE.get(metric_of(name))
    how = known.joined if known is not None else "sum"
    return sum(values) if how == "sum" else max(values) if how == "greatest" else min(values)


def exposition(samples: Iterable[Sample], accept: str = "", custom: Mapping[str, Metric] = MappingProxyType({})) -> tuple[bytes, str]:
    """The page and its content type, as `accept` (a request header) asks for. `custom`: metrics beside those of the catalogue."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import Metric as Family
    from prometheus_client.registry import Collector

    catalogue = {**CATALOGUE, **custom}
    families: dict[str, Family] = {}
    for sample in samples:
        name = metric_of(sample.name, catalogue)
        known = catalogue.get(name) or Metric("gauge", "Not in the catalogue; please report this.")
        family = families.get(name)
        if family is None:
            family = families[name] = Family(name.removesuffix("_total") if known.kind == "counter" else name, known.help, known.kind)
        family.add_sample(sample.name, dict(sample.labels), sample.value)

    class Samples(Collector):
        def collect(self) -> Iterator[Family]:
            yield from families.values()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Samples())
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
