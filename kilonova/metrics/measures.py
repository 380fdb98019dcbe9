"""The metrics of a process: what they are called and what they mean."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from kilonova.domain.operation import TERMINAL, OperationRecord

QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds, for requests."""
SLOW = (0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""Upper bounds in seconds, for operations and their steps."""

HOSTS = (0, 1, 2, 5, 10, 50, 100, 500, 1000, 5000, 10000)
"""Upper bounds of numbers of hosts."""


class Metrics:
    """All metrics of one process. Those that this process has no part in stay empty."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._states: dict[str, set[str]] = {}
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
        self._decisions = Histogram(
            "kilonova_scheduler_decision_seconds", "Choices of hosts; outcome is chosen or none.",
            ["outcome"], buckets=QUICK, registry=registry,
        )
        self._considered = Histogram(
            "kilonova_scheduler_hosts", "Hosts of a choice: that were considered, and that could take the server.",
            ["part"], buckets=HOSTS, registry=registry,
        )
        self._refusals = Counter(
            "kilonova_scheduler_no_valid_host_total",
            "Choices for which no host was left, by the filter that left none; start if no host was up.",
            ["filter"], registry=registry,
        )
        self._claims = Counter(
            "kilonova_scheduler_claims_total",
            "Claims on chosen hosts; any outcome but held is a conflict, after which another host is tried.",
            ["outcome"], registry=registry,
        )
        self._host_steps = Histogram(
            "kilonova_host_step_seconds",
            "Attempts at steps on a host, waiting for a slot included; outcome is done or failed.",
            ["host", "step", "outcome"], buckets=SLOW, registry=registry,
        )
        self._guests = self._gauge(
            "kilonova_host_guests", "Guests that the hypervisor of a host has, by power state.", "host", "state"
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
        self.host_capacity = self._gauge(
            "kilonova_host_capacity", "What a host has for servers, overcommitment included, less what is reserved.",
            "host", "resource",
        )
        self.host_used = self._gauge(
            "kilonova_host_used", "What of it is claimed; the difference is free.", "host", "resource"
        )
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

    def decided(self, seconds: float, considered: int, candidates: int, refused_by: str) -> None:
        """A scheduler has decided."""
        self._decisions.labels("none" if refused_by else "chosen").observe(seconds)
        self._considered.labels("considered").observe(considered)
        self._considered.labels("candidates").observe(candidates)
        if refused_by:
            self._refusals.labels(refused_by).inc()

    def claimed(self, outcome: str) -> None:
        """A scheduler has claimed what it chose."""
        self._claims.labels(outcome).inc()

    def host_step(self, host: str, step: str, outcome: str, seconds: float) -> None:
        """A host has done its part of a step, or failed."""
        self._host_steps.labels(host, step, outcome).observe(seconds)

    def guests(self, host: str, by_state: Mapping[str, int]) -> None:
        """A host has looked at its guests."""
        for state in {*by_state, *self._states.get(host, ())}:
            self._guests.labels(host, state).set(by_state.get(state, 0))
        self._states[host] = {*by_state, *self._states.get(host, ())}

    def page(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)


def described() -> list[tuple[str, str, str, str]]:
    """Of each metric of ours: its name, kind, labels and meaning."""
    metrics = [one for one in vars(Metrics()).values() if isinstance(one, Counter | Gauge | Histogram)]
    return [
        (family.name + "_total" * (family.type == "counter"), family.type, ", ".join(one._labelnames),
         family.documentation)
        for one in metrics for family in one.describe()
    ]
