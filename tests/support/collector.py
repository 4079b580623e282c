"""A collector of telemetry: OTLP over HTTP and over gRPC, parsed by OpenTelemetry's own definitions."""

from __future__ import annotations

import gzip
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Span:
    """What a test asks of one."""

    def __init__(self, resource, scope, message):
        self.resource = values(resource.attributes)
        self.scope = scope.name
        self.message = message
        self.name = message.name
        self.attributes = values(message.attributes)
        self.events = [(event.name, values(event.attributes), event.time_unix_nano) for event in message.events]
        self.trace_id = message.trace_id.hex()
        self.span_id = message.span_id.hex()
        self.parent_span_id = message.parent_span_id.hex()


def value(item):
    kind = item.WhichOneof("value")
    return [value(inner) for inner in item.array_value.values] if kind == "array_value" else getattr(item, kind)


def values(attributes):
    return {item.key: value(item.value) for item in attributes}


class Collector:
    """A context manager. `http` and `grpc`: where it listens. `status`: answers of another kind, by HTTP or gRPC."""

    def __init__(self, status=None, *, refuses=lambda span: False):
        self.status = status
        self.refuses = refuses
        self.spans = []
        self.headers = []
        self.requests = 0
        self.metrics = []  # the newest export comes last

    def __enter__(self):
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.requests += 1
                collector.headers.append(dict(self.headers))
                code = collector.status or collector.take(self.path, body)
                self.send_response(code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        class Traces(trace_service_pb2_grpc.TraceServiceServicer):
            def Export(self, request, context):
                collector.requests += 1
                collector.headers.append({item.key: item.value for item in context.invocation_metadata()})
                if collector.status or collector.add_spans(request) != 200:
                    context.abort(grpc.StatusCode.UNAVAILABLE if collector.status else grpc.StatusCode.INVALID_ARGUMENT, "no")
                return trace_service_pb2.ExportTraceServiceResponse()

        class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
            def Export(self, request, context):
                collector.requests += 1
                collector.metrics.append(request)
                return metrics_service_pb2.ExportMetricsServiceResponse()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.http = f"http://127.0.0.1:{self._server.server_port}"
        self._grpc = grpc.server(futures.ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), self._grpc)
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), self._grpc)
        self.grpc = f"http://127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"
        self._grpc.start()
        return self

    def __exit__(self, *exception):
        self._server.shutdown()
        self._server.server_close()
        self._grpc.stop(0).wait(5)

    def take(self, path, body):
        if path == "/v1/traces":
            return self.add_spans(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
        if path == "/v1/metrics":
            self.metrics.append(metrics_service_pb2.ExportMetricsServiceRequest.FromString(body))
            return 200
        return 404

    def add_spans(self, request):
        found = [
            Span(resource.resource, scope.scope, span)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        if any(self.refuses(span) for span in found):
            return 400
        self.spans += found
        return 200

    def points(self, name):
        """Of the newest export: (attributes, point) of a metric, with its unit."""
        return [
            (values(point.attributes), point, metric.unit)
            for resource in self.metrics[-1].resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in getattr(metric, metric.WhichOneof("data")).data_points
        ]
