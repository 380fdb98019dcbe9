"""Which hosts have audited the usage of a month. Spec: API-260, API-261, API-468.

The audit itself sends notifications, which this release does not; so far no host has ever run one, and that is what
is answered.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.answers import usage as answers
from kilonova.api.compute.service_hosts import check_complete, known_hosts
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route
from kilonova.db.services import COMPUTE
from kilonova.domain.errors import InvalidInput

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
        if found.year > 1:
            return found
    raise InvalidInput(f"Invalid timestamp for date {text}")


async def _log(call: Call, before: datetime) -> dict[str, Any]:
    """The last month that was complete at a time."""
    end = before.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    begin = (end - timedelta(days=1)).replace(day=1)
    agents, silent = await known_hosts(call).services(binary=COMPUTE)
    check_complete(call, silent)
    hosts = sorted(agent.record.host for agent in agents)
    done = f"0 of {len(hosts)}" if hosts else "ALL"
    return {
        "period_beginning": _shown(begin),
        "period_ending": _shown(end),
        "num_hosts": len(hosts),
        "num_hosts_done": 0,
        "num_hosts_running": 0,
        "num_hosts_not_run": len(hosts),
        "hosts_not_run": hosts,
        "total_instances": 0,
        "total_errors": 0,
        "overall_status": f"{done} hosts done. 0 errors.",
        "log": {},
    }


def _shown(time: datetime) -> str:
    """In the form that the path takes."""
    return time.replace(tzinfo=None).isoformat(sep=" ")


ROUTES = [
    Route(method="GET", path="/os-instance_usage_audit_log", handler=index, rule=LIST, answer=answers.AUDIT_LOGS),
    Route(method="GET", path="/os-instance_usage_audit_log/{id}", handler=show, rule=SHOW, answer=answers.AUDIT_LOG),
]
