"""A stand-in for Cyborg: device profiles and accelerator requests, in the JSON of its API v2."""

from __future__ import annotations

import copy
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec

from kilonova.domain.errors import Conflict, InvalidInput, KilonovaError, NotFound

FPGA = "CUSTOM_FPGA"
PROFILES = {
    "fpga": [{f"resources:{FPGA}": "1", "accel:bitstream_id": "d5ca2f11"}],
    "pair": [{f"resources:{FPGA}": "1"}, {f"resources:{FPGA}": "1"}],
    "empty": [{"accel:bitstream_id": "d5ca2f11"}],
}
VERSION = "accelerator 2.0"
DEVICES = 8
BOUND_FIELDS = ("hostname", "device_rp_uuid", "instance_uuid")


class Refused(KilonovaError):
    """An answer that is not good."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.code = status


class StandIn:
    """The service. at_once: what is bound is bound by the answer; otherwise `resolve` ends it.

    `calls` are those that arrived: method and path, with the query.
    """

    def __init__(self, *, at_once: bool = True) -> None:
        self.profiles: dict[str, list[dict[str, str]]] = copy.deepcopy(PROFILES)
        self.arqs: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.at_once = at_once
        self.handle_type = "PCI"

    def of(self, server: str) -> list[dict[str, Any]]:
        return [arq for arq in self.arqs.values() if arq["instance_uuid"] == server]

    def resolve(self, server: str, state: str = "Bound") -> list[str]:
        """Bind (or fail to bind) what waits for it; returns the requests."""
        waiting = [arq for arq in self.of(server) if arq["state"] == "BindStarted"]
        for arq in waiting:
            arq["state"] = state
            if state == "Bound":
                arq |= {"attach_handle_type": self.handle_type, "attach_handle_info": self._free_device()}
        return [arq["uuid"] for arq in waiting]

    def _free_device(self) -> dict[str, str]:
        taken = [arq["attach_handle_info"] for arq in self.arqs.values() if arq["attach_handle_info"]]
        devices = ({"domain": "0000", "bus": "5e", "device": f"{n:02x}", "function": "0"} for n in range(DEVICES))
        return next(device for device in devices if device not in taken)

    def answer(self, method: str, path: str, query: Mapping[str, str], body: Any) -> tuple[int, Any]:
        """Status and body of an answer. Raises Refused."""
        self.calls.append(f"{method} {path}" + "".join(f" {key}={value}" for key, value in query.items()))
        if path == "/v2/device_profiles" and method == "GET":
            names = query["name"].split(",") if "name" in query else list(self.profiles)
            return 200, {"device_profiles": [
                {"uuid": str(uuid.uuid5(uuid.NAMESPACE_DNS, name)), "name": name, "description": None, "groups": groups,
                 "created_at": "2020-03-10 03:52:15+00:00", "updated_at": None, "links": []}
                for name, groups in self.profiles.items() if name in names
            ]}
        if path.startswith("/v2/accelerator_requests/") and method == "GET":
            return 200, self._arq(path.rpartition("/")[2])
        if path != "/v2/accelerator_requests":
            raise Refused(404, "The resource could not be found.")
        return getattr(self, f"_{method.lower()}")(query, body)

    def _arq(self, id_: str) -> dict[str, Any]:
        if id_ not in self.arqs:
            raise Refused(404, f"ExtArq not found with uuid={id_}")
        return self.arqs[id_]

    def _get(self, query: Mapping[str, str], _body: Any) -> tuple[int, Any]:
        wanted = query.get("instance")
        return 200, {"arqs": [arq for arq in self.arqs.values() if wanted in (None, arq["instance_uuid"])]}

    def _post(self, _query: Mapping[str, str], body: Any) -> tuple[int, Any]:
        name = body["device_profile_name"]
        if name not in self.profiles:
            raise Refused(404, f"Device Profile not found with name={name}")
        made = [
            {"uuid": str(uuid.uuid4()), "state": "Initial", "device_profile_name": name,
             "device_profile_group_id": number, "hostname": None, "device_rp_uuid": None, "instance_uuid": None,
             "project_id": None, "attach_handle_type": None, "attach_handle_info": None, "links": []}
            for number, group in enumerate(self.profiles[name])
            for key, value in group.items() if key.startswith("resources") for _ in range(int(value))
        ]
        self.arqs |= {arq["uuid"]: arq for arq in made}
        return 201, {"arqs": made}

    def _patch(self, _query: Mapping[str, str], body: Any) -> tuple[int, Any]:
        servers = set()
        for id_, changes in body.items():
            fields = {change["path"].lstrip("/"): change["value"] for change in changes}
            if {change["op"] for change in changes} != {"add"} or set(fields) != set(BOUND_FIELDS):
                raise Refused(400, "Fields absent in patch, or others.")
            if self.of(fields["instance_uuid"]) and fields["instance_uuid"] not in servers:
                raise Refused(400, f"Instance {fields['instance_uuid']} already has accelerator requests.")
            servers.add(fields["instance_uuid"])
            self._arq(id_).update(fields, state="BindStarted")
        if self.at_once:
            for server in servers:
                self.resolve(server)
        return 202, None

    def _delete(self, query: Mapping[str, str], _body: Any) -> tuple[int, Any]:
        ids = query["arqs"].split(",")
        for id_ in ids:
            self._arq(id_)
        for id_ in ids:
            del self.arqs[id_]
        return 204, None


def refuse(error: Refused) -> KilonovaError:
    """What our calls make of an answer that is not good."""
    families: dict[int, type[KilonovaError]] = {400: InvalidInput, 404: NotFound, 409: Conflict}
    return families.get(error.code, KilonovaError)(error.message)


class Server:
    """The stand-in behind HTTP, and an identity service that gives tokens.

    Args:
        tokens: those that it has given and still takes. needs_token: whether requests must have one.
    """

    def __init__(self, service: StandIn, port: int) -> None:
        self.service = service
        self.endpoint = f"http://127.0.0.1:{port}"
        self.auth_url = f"{self.endpoint}/identity/v3"
        self.tokens: set[str] = set()
        self.needs_token = False
        self.broken = False
        self.sign_ins: list[Any] = []
        self.versions: set[str] = set()

    def answer(self, handler: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], Any]:
        parts = urlsplit(handler.path)
        length = int(handler.headers.get("content-length") or 0)
        content = handler.rfile.read(length)
        body = msgspec.json.decode(content) if content else None
        if parts.path == "/identity/v3/auth/tokens":
            self.sign_ins.append(body)
            if body["auth"]["identity"]["password"]["user"]["password"] != "s3cret":
                return 401, {}, {"error": {"code": 401, "message": "Wrong user or password."}}
            token = uuid.uuid4().hex
            self.tokens.add(token)
            return 201, {"X-Subject-Token": token}, {"token": {}}
        self.versions.add(handler.headers.get("OpenStack-API-Version", ""))
        if self.needs_token and handler.headers.get("X-Auth-Token") not in self.tokens:
            return 401, {}, {"error": {"code": 401, "message": "Authentication is required."}}
        if self.broken:
            return 503, {}, {"message": "no database"}
        try:
            status, answer = self.service.answer(handler.command, parts.path, dict(parse_qsl(parts.query)), body)
        except Refused as error:
            return error.code, {}, {"faultcode": "Client", "faultstring": error.message, "debuginfo": None}
        return status, {}, answer


@contextmanager
def cyborg(service: StandIn) -> Iterator[Server]:
    """A stand-in that listens."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            with lock:
                status, headers, answer = found.answer(self)
            content = b"" if answer is None else msgspec.json.encode(answer)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = _answer

        def log_message(self, *_args: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Server(service, server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
