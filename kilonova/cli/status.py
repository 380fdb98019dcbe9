"""`kilonova status`: whether it runs, what it serves and what it is doing."""

from __future__ import annotations

from typing import Any

import typer

from kilonova.cli.installation import DataDir, Json, directory, is_served, running_state, sign_in


def status(data_dir: DataDir = None, json: Json = False) -> None:
    """Show whether the cloud runs, its hosts, servers and operations. Fails if it does not run."""
    import msgspec

    from kilonova.control.documents import Status

    base = directory(data_dir)
    state = running_state(base)
    if state is None:
        doing = "is coming up or going down" if is_served(base) else "does not run"
        if json:
            print(msgspec.json.encode({"running": False, "data_dir": str(base)}).decode())
        else:
            print(f"The installation in {base} {doing}.")
        raise typer.Exit(1)
    found = sign_in(state).get(f"{state.control_url}/status", Status)
    if json:
        document: dict[str, Any] = {"running": True, "installation": state, "status": found}
        print(msgspec.json.encode(document).decode())
        return
    print(_text(state, found))


def _text(state: Any, found: Any) -> str:
    from kilonova.cli.output import BAD, GOOD, columns, counts, duration, paint

    lines = [
        f"Kilonova {found.version} runs (process {state.pids['kilonova']}, "
        f"for {duration(found.now - found.started_at)}, {state.driver} driver)",
        f"  data        {state.data_dir}",
        f"  identity    {state.auth_url}",
        f"  compute     {state.compute_url}",
        f"  clients     OS_CLIENT_CONFIG_FILE={state.clouds_yaml} OS_CLOUD={state.cloud}",
        f"  servers     {counts(found.servers)}",
        f"  operations  {counts(found.operations)}",
        "",
    ]
    rows = []
    for host in found.hosts:
        note = f", disabled: {host.disabled_reason or 'by an operator'}" if host.disabled else ""
        up = paint("up", GOOD) if host.up else paint(f"silent for {duration(found.now - host.seen_at)}", BAD)
        rows.append((host.host, host.cell, host.hypervisor, str(host.servers), str(host.vcpus),
                     f"{host.memory_free_mib}/{host.memory_mib}", up + note))
    lines.append(columns(("HOST", "CELL", "HYPERVISOR", "SERVERS", "CPUS", "FREE MIB", "STATE"), rows))
    return "\n".join(lines)
