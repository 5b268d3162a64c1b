"""What the server counts, for Prometheus; no metric has anything of a question or a picture."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)


class ServerMetrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        """Begin at zero."""
        self.registry = CollectorRegistry()
        self.responses = Counter(
            "fedmslora_responses",
            "Responses by path and HTTP status.",
            ("path", "status"),
            registry=self.registry,
        )
        self.answers = Counter(
            "fedmslora_answers",
            "Answered questions by stage and by who chose it.",
            ("stage", "chosen_by"),
            registry=self.registry,
        )
        self.unknown = Counter(
            "fedmslora_unknown_pictures",
            "Questions about a picture that is unlike every task of the bank.",
            registry=self.registry,
        )
        self.seconds = Histogram(
            "fedmslora_answer_seconds",
            "Seconds from a question's last byte to its answer.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "fedmslora_batch_size",
            "Questions that were answered together, by question.",
            buckets=_BATCHES,
            registry=self.registry,
        )
        self.requests = Gauge(
            "fedmslora_open_requests",
            "Requests that are being read or answered.",
            registry=self.registry,
        )
