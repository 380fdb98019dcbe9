"""Which hosts have audited the usage of a period. Spec: API-260, API-261, API-468."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.answers import usage as answers
from kilonova.api.compute.service_hosts import check_complete, known_hosts
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route
from kilonova.db import usage_audits
from kilonova.db.services import COMPUTE
from kilonova.domain.errors import InvalidInput, ServiceUnavailable
from kilonova.notifications.periods import last_completed

LIST = Rule("os-instance-usage-audit-log:list", Audience.ADMIN)
SHOW = Rule("os-instance-usage-audit-log:show", Audience.ADMIN)

_FORMS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M:%S.%f")


async def index(call: Call) -> Any:
    now = datetime.fromtimestamp(call.cloud.clock.now(), UTC)
    return {"instance_usage_audit_logs": await _log(call, now)}


async def show(call: Call) -> Any:
    return {"instance_usage_audit_log": await _log(call, _before(call.path["id"]))}


def _before(text: str) -> datetime:
    """Raises InvalidInput. Spec: API-056."""
    for form in _FORMS:
        try:
            found = datetime.strptime(text, form).replace(tzinfo=UTC)
        except ValueError:
            continue
        if found.year > 3:  # so that there are periods before it
            return found
    raise InvalidInput(f"Invalid timestamp for date {text}")


async def _log(call: Call, before: datetime) -> dict[str, Any]:
    """The last period that was complete at a time."""
    period = last_completed(before.timestamp(), call.cloud.options.instance_usage_audit_period)
    agents, silent = await known_hosts(call).services(binary=COMPUTE)
    in_cells = await known_hosts(call).ask(lambda conn: usage_audits.of_period(conn, *period))
    check_complete(call, silent)
    hosts = sorted(agent.record.host for agent in agents)
    audits = [audit for _, found in in_cells if not isinstance(found, ServiceUnavailable) for audit in found]
    begun = {audit.host for audit in audits}
    ended = sum(audit.state == usage_audits.DONE for audit in audits)
    missing = [host for host in hosts if host not in begun]
    errors = sum(audit.errors for audit in audits)
    done = "ALL" if ended == len(hosts) else f"{ended} of {len(hosts)}"
    return {
        "period_beginning": _shown(period[0]),
        "period_ending": _shown(period[1]),
        "num_hosts": len(hosts),
        "num_hosts_done": ended,
        "num_hosts_running": len(audits) - ended,
        "num_hosts_not_run": len(missing),
        "hosts_not_run": missing,
        "total_instances": sum(audit.instances for audit in audits),
        "total_errors": errors,
        "overall_status": f"{done} hosts done. {errors} errors.",
        "log": {
            audit.host: {
                "state": audit.state, "instances": audit.instances, "errors": audit.errors, "message": audit.message,
            }
            for audit in audits
        },
    }


def _shown(seconds: float) -> str:
    """In the form that the path takes."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat(sep=" ")


ROUTES = [
    Route(method="GET", path="/os-instance_usage_audit_log", handler=index, rule=LIST, answer=answers.AUDIT_LOGS),
    Route(method="GET", path="/os-instance_usage_audit_log/{id}", handler=show, rule=SHOW, answer=answers.AUDIT_LOG),
]
