"""The metrics of a process: what they are called and what they mean."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from kilonova.domain.operation import TERMINAL, OperationRecord

QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds, for requests."""
SLOW = (0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""Upper bounds in seconds, for operations and their steps."""


class Metrics:
    """All metrics of one process. Those that this process has no part in stay empty."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._operations = Histogram(
            "kilonova_operation_seconds", "Operations that ended, from their acceptance to their end, by outcome.",
            ["kind", "outcome"], buckets=SLOW, registry=registry,
        )
        self._steps = Histogram(
            "kilonova_step_seconds", "Steps of operations that ended, retries included; direction is do or undo.",
            ["kind", "step", "direction", "outcome"], buckets=SLOW, registry=registry,
        )
        self._requests = Histogram(
            "kilonova_request_seconds", "Requests to an API, until the answer has been sent.",
            ["service", "method", "status"], buckets=QUICK, registry=registry,
        )
        self.unfinished = self._gauge(
            "kilonova_operations_unfinished", "Operations that have not ended, by state.", "journal", "state"
        )
        self.due = self._gauge(
            "kilonova_operations_due", "Operations that could be driven now and that nobody drives.", "journal"
        )
        self.leases = self._gauge(
            "kilonova_leases", "Operations that a process has a lease of.", "journal", "owner"
        )
        self.host_up = self._gauge("kilonova_host_up", "1 for a host that has reported lately.", "host")
        self.host_servers = self._gauge("kilonova_host_servers", "Servers on a host, by vm_state.", "host", "state")
        self.told_pending = self._gauge(
            "kilonova_notifications_pending", "Notifications that wait for a sink.", "outbox", "sink"
        )
        self.told_oldest = self._gauge(
            "kilonova_notifications_oldest_seconds", "How long the first of them has waited.", "outbox", "sink"
        )
        self.told_dropped = self._gauge(
            "kilonova_notifications_given_up", "Notifications that became too old for their sink.", "outbox", "sink"
        )

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(name, meaning, labels, registry=self.registry)

    def observe(self, record: OperationRecord) -> None:
        """Called with every state of an operation that was journaled: counts those that have ended."""
        if record.state not in TERMINAL or record.finished_at is None:
            return
        self._operations.labels(record.kind, record.state.value).observe(record.finished_at - record.created_at)
        for entry in record.entries:
            if entry.finished_at is not None:
                direction = "undo" if entry.undo else "do"
                self._steps.labels(record.kind, entry.step, direction, entry.state.value).observe(
                    max(0.0, entry.finished_at - entry.started_at)
                )

    def answered(self, service: str, method: str, status: int, seconds: float) -> None:
        """A request to an API was answered."""
        self._requests.labels(service, method, str(status)).observe(seconds)

    def page(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)


def described() -> list[tuple[str, str, str, str]]:
    """Of each metric of ours: its name, kind, labels and meaning."""
    metrics = [one for one in vars(Metrics()).values() if isinstance(one, Counter | Gauge | Histogram)]
    return [
        (family.name, family.type, ", ".join(one._labelnames), family.documentation)
        for one in metrics for family in one.describe()
    ]
