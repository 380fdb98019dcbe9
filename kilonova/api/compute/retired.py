"""Routes that once were. Spec: API-143, API-307 to API-339."""

from __future__ import annotations

from kilonova.api.routes import retired

_RETIRED = """
GET,POST /os-agents
PUT,DELETE /os-agents/{id}
GET,POST /os-cells
GET /os-cells/capacities
GET /os-cells/detail
GET /os-cells/info
POST /os-cells/sync_instances
GET,PUT,DELETE /os-cells/{id}
GET /os-cells/{id}/capacities
POST /os-certificates
GET /os-certificates/{id}
GET,POST /os-cloudpipe
PUT /os-cloudpipe/{id}
GET /os-fixed-ips/{id}
POST /os-fixed-ips/{id}/action
GET /os-floating-ip-dns
PUT,DELETE /os-floating-ip-dns/{id}
GET,PUT,DELETE /os-floating-ip-dns/{domain_id}/entries/{id}
GET,POST /os-floating-ips-bulk
GET,PUT /os-floating-ips-bulk/{id}
GET /os-fping
GET /os-fping/{id}
POST /os-networks
POST /os-networks/add
DELETE /os-networks/{id}
POST /os-networks/{id}/action
GET,POST /os-security-group-default-rules
GET,DELETE /os-security-group-default-rules/{id}
POST /os-tenant-networks
DELETE /os-tenant-networks/{id}
GET,POST /servers/{server_id}/consoles
GET,DELETE /servers/{server_id}/consoles/{id}
GET /servers/{server_id}/os-virtual-interfaces
"""

ROUTES = [
    retired(method, path)
    for methods, path in (line.split() for line in _RETIRED.strip().splitlines())
    for method in methods.split(",")
] + [retired("POST", "/servers/{server_id}/action", "resetNetwork")]
