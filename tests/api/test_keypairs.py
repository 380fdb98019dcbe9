"""Key pairs: made, imported, listed in pages, shown, deleted, and whose they are."""

import base64
import hashlib
import struct
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from resource_cloud import ResourceCloud, resource_cloud

from kilonova.api.compute.key_material import PRINCIPAL_NAME, generate_x509
from kilonova.api.compute.quota_check import Limits

ME = "user-of-member"
BOB = "user-of-colleague"


def public_key(comment: str = "me@home", seed: int = 0) -> str:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes([seed] * 32)).public_key()
    text = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    return f"{text} {comment}"


KEY = public_key()


@pytest.fixture
async def cloud() -> AsyncIterator[ResourceCloud]:
    async with resource_cloud() as running:
        yield running


async def add(cloud: ResourceCloud, name: str = "k", *, version: str = "2.10", as_: str = "member",
              **fields: Any) -> httpx.Response:
    body = {"keypair": {"name": name, "public_key": KEY, **fields}}
    return await cloud.post("/os-keypairs", body, version=version, as_=as_)


async def names(cloud: ResourceCloud, query: str = "", **more: Any) -> list[str]:
    answer = await cloud.get(f"/os-keypairs{query}", **more)
    assert answer.status_code == 200, answer.text
    return [entry["keypair"]["name"] for entry in answer.json()["keypairs"]]


@pytest.mark.spec("API-463", "API-214", "API-215", "API-216", "API-502")
@pytest.mark.parametrize("version", range(1, 105))
async def test_fields_of_every_view(cloud: ResourceCloud, version: int) -> None:
    kind = {"type"} if version >= 2 else set()
    at = f"2.{version}"
    made = await add(cloud, version=at)
    assert made.status_code == (200 if version < 2 else 201)
    assert set(made.json()["keypair"]) == {"name", "public_key", "fingerprint", "user_id"} | kind
    (entry,) = (await cloud.get("/os-keypairs", version=at)).json()["keypairs"]
    assert set(entry["keypair"]) == {"name", "public_key", "fingerprint"} | kind
    shown = (await cloud.get("/os-keypairs/k", version=at)).json()["keypair"]
    assert set(shown) == {
        "name", "public_key", "fingerprint", "user_id", "id", "created_at", "updated_at", "deleted", "deleted_at"
    } | kind


@pytest.mark.spec("API-215", "API-216", "API-463", "API-055")
async def test_import_of_an_ssh_key(cloud: ResourceCloud) -> None:
    await add(cloud, version="2.2")
    shown = (await cloud.get("/os-keypairs/k", version="2.2")).json()["keypair"]
    digest = hashlib.md5(base64.b64decode(KEY.split()[1]), usedforsecurity=False).hexdigest()
    assert shown == {
        "name": "k", "public_key": KEY, "type": "ssh", "user_id": ME, "id": 1, "updated_at": None, "deleted": False,
        "fingerprint": ":".join(digest[i:i + 2] for i in range(0, 32, 2)), "deleted_at": None,
        "created_at": datetime.fromtimestamp(cloud.clock.now(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%f"),
    }


@pytest.mark.spec("API-215")
async def test_other_kinds_of_ssh_keys(cloud: ResourceCloud) -> None:
    openssh = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    hardware = b"".join(struct.pack(">I", len(part)) + part for part in (
        b"sk-ssh-ed25519@openssh.com", b"\1" * 32, b"ssh:"))
    keys = [
        rsa.generate_private_key(65537, 1024).public_key().public_bytes(*openssh).decode(),
        ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(*openssh).decode() + " a b c\n",
        f"sk-ssh-ed25519@openssh.com {base64.b64encode(hardware).decode()}",
    ]
    for index, key in enumerate(keys):
        answer = await add(cloud, f"k{index}", public_key=key)
        assert (answer.status_code, answer.json()["keypair"]["public_key"]) == (201, key)


@pytest.mark.spec("API-215")
@pytest.mark.parametrize("key", [
    "", "ssh-rsa", "ssh-rsa !!!", "ssh-rsa AAAA", f"ssh-rsa {KEY.split()[1]}", f"{KEY}\n{public_key(seed=1)}",
    "ssh-ed25519 " + base64.b64encode(struct.pack(">I", 11) + b"ssh-ed25519" + b"short").decode(),
    "-----BEGIN RSA PRIVATE KEY-----",
])
async def test_bad_ssh_keys(cloud: ResourceCloud, key: str) -> None:
    answer = await add(cloud, public_key=key)
    assert answer.status_code == 400
    assert answer.json()["badRequest"]["message"].startswith("Keypair data is invalid")
    assert await names(cloud) == []


@pytest.mark.spec("API-215", "API-463")
async def test_a_generated_ssh_key_is_handed_over_once(cloud: ResourceCloud) -> None:
    made = (await cloud.post("/os-keypairs", {"keypair": {"name": "k"}}, version="2.91")).json()["keypair"]
    private = serialization.load_pem_private_key(made.pop("private_key").encode(), None)
    public = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    assert made["public_key"].encode().startswith(public + b" ")
    assert (made["type"], made["user_id"]) == ("ssh", ME)
    shown = await cloud.get("/os-keypairs/k", version="2.91")
    assert shown.json()["keypair"]["fingerprint"] == made["fingerprint"]
    assert "private_key" not in shown.text


@pytest.mark.spec("API-215", "API-463", "API-502")
async def test_certificates(cloud: ResourceCloud) -> None:
    body = {"keypair": {"name": "k", "type": "x509"}}
    assert (await cloud.post("/os-keypairs", body, version="2.1")).status_code == 400
    made = (await cloud.post("/os-keypairs", body, version="2.2")).json()["keypair"]
    certificate = x509.load_pem_x509_certificate(made["public_key"].encode())
    private = serialization.load_pem_private_key(made["private_key"].encode(), None)
    assert certificate.public_key() == private.public_key()
    imported = (await add(cloud, "again", type="x509", public_key=made["public_key"])).json()["keypair"]
    assert (imported["type"], imported["fingerprint"]) == ("x509", made["fingerprint"])
    assert len(made["fingerprint"]) == 59, "SHA-1, as pairs of digits"
    assert (await add(cloud, "bad", type="x509")).status_code == 400


def test_a_certificate_names_its_user() -> None:
    made = generate_x509("u" * 200, 1_700_000_000.0)
    certificate = x509.load_pem_x509_certificate(made.public_key.encode())
    names_ = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (principal,) = names_.get_values_for_type(x509.OtherName)
    assert principal.type_id == PRINCIPAL_NAME
    assert principal.value.endswith(b"u@localhost")
    assert certificate.not_valid_before_utc.timestamp() < 1_700_000_000 < certificate.not_valid_after_utc.timestamp()


@pytest.mark.spec("API-592", "API-215", "API-463", "API-057")
async def test_rules_of_2_92(cloud: ResourceCloud) -> None:
    body = {"keypair": {"name": "k"}}
    answer = await cloud.post("/os-keypairs", body, version="2.92")
    assert answer.status_code == 400
    assert "'public_key' is a required property" in answer.text
    assert (await add(cloud, "me@home.org", version="2.91")).status_code == 400
    made = await add(cloud, "me@home.org", version="2.92")
    assert made.status_code == 201
    assert "private_key" not in made.json()["keypair"]
    assert (await cloud.get("/os-keypairs/me@home.org")).status_code == 200


@pytest.mark.spec("API-057", "API-215")
@pytest.mark.parametrize("name", ["", " k", "k ", "a/b", "k\n", "é", "x" * 256, None, 1])
async def test_bad_names(cloud: ResourceCloud, name: Any) -> None:
    for version in ("2.1", "2.92"):
        assert (await add(cloud, name, version=version)).status_code == 400


@pytest.mark.spec("API-215", "API-024", "API-025", "API-502", "API-510")
async def test_fields_by_microversion(cloud: ResourceCloud) -> None:
    assert (await add(cloud, "a", version="2.1", type="ssh")).status_code == 400
    assert (await add(cloud, "a", version="2.2", type="ssh")).status_code == 201
    assert (await add(cloud, "b", version="2.9", user_id=ME)).status_code == 400
    assert (await add(cloud, "b", version="2.10", user_id=ME)).status_code == 201
    assert (await add(cloud, "c", version="2.10", type="dsa")).status_code == 400
    assert (await add(cloud, "c", version="2.10", color="red")).status_code == 400


@pytest.mark.spec("API-215")
async def test_names_are_unique_for_a_user(cloud: ResourceCloud) -> None:
    await add(cloud)
    assert (await add(cloud)).status_code == 409
    assert (await add(cloud, as_="colleague")).status_code == 201


@pytest.mark.spec("API-215", "API-060", "API-061", "API-642", "API-058")
async def test_quota_counts_per_user() -> None:
    async with resource_cloud(limits=Limits(key_pairs=1)) as cloud:
        assert (await add(cloud, "a")).status_code == 201
        answer = await add(cloud, "b")
        assert answer.status_code == 403
        assert answer.json()["forbidden"]["message"] == "Quota exceeded, too many key pairs."
        assert (await add(cloud, "a", as_="colleague")).status_code == 201
        assert (await add(cloud, "c", as_="admin", user_id=ME)).status_code == 403, "the quota of the owner"
        await cloud.delete("/os-keypairs/a")
        assert (await add(cloud, "b")).status_code == 201
    async with resource_cloud(limits=Limits(key_pairs=-1)) as cloud:
        assert (await add(cloud, "a")).status_code == 201


@pytest.mark.spec("API-217", "API-502", "API-033")
async def test_delete(cloud: ResourceCloud) -> None:
    for version, status in (("2.1", 202), ("2.2", 204)):
        await add(cloud)
        answer = await cloud.delete("/os-keypairs/k", version=version)
        assert (answer.status_code, answer.content) == (status, b"")
        assert (await cloud.delete("/os-keypairs/k", version=version)).status_code == 404
        assert (await cloud.get("/os-keypairs/k", version=version)).status_code == 404


@pytest.mark.spec("API-214", "API-215", "API-216", "API-217", "API-510", "API-041")
async def test_keys_of_another_user(cloud: ResourceCloud) -> None:
    await add(cloud, "his", as_="colleague")
    requests = {
        "index": ("GET", f"/os-keypairs?user_id={BOB}", None), "show": ("GET", f"/os-keypairs/his?user_id={BOB}", None),
        "create": ("POST", "/os-keypairs", {"keypair": {"name": "n", "public_key": KEY, "user_id": BOB}}),
        "delete": ("DELETE", f"/os-keypairs/his?user_id={BOB}", None),
    }
    for rule, (method, path, body) in requests.items():
        for as_ in ("manager", "member", "stranger"):
            answer = await cloud.request(method, path, json=body, as_=as_, version="2.10")
            assert answer.status_code == 403
            assert f"os_compute_api:os-keypairs:{rule} " in answer.text
        for as_ in ("colleague", "admin"):
            answer = await cloud.request(method, path, json=body, as_=as_, version="2.10")
            assert answer.status_code in (200, 201, 204, 404, 409)
    assert await names(cloud, f"?user_id={BOB}", as_="admin", version="2.10") == ["n"]
    made = (await add(cloud, "for him", as_="admin", user_id=BOB)).json()["keypair"]
    assert made["user_id"] == BOB


@pytest.mark.spec("API-510", "API-052")
async def test_user_id_in_queries(cloud: ResourceCloud) -> None:
    await add(cloud, "his", as_="colleague")
    await add(cloud, "mine", as_="admin")
    assert await names(cloud, f"?user_id={BOB}", as_="admin", version="2.9") == ["mine"], "unknown before 2.10"
    query = f"?user_id={BOB}&user_id=user-of-admin"
    assert await names(cloud, query, as_="admin", version="2.10") == ["his"], "the first one counts"


@pytest.mark.spec("API-214", "API-535", "API-046", "API-047", "API-048", "API-049")
async def test_pages(cloud: ResourceCloud) -> None:
    for name in "cab":
        await add(cloud, name)
    assert await names(cloud, "?limit=1&marker=x", version="2.34") == ["a", "b", "c"]
    answer = (await cloud.get("/os-keypairs?limit=2", version="2.35")).json()
    assert [entry["keypair"]["name"] for entry in answer["keypairs"]] == ["a", "b"]
    assert answer["keypairs_links"] == [
        {"rel": "next", "href": "http://cloud.test/compute/v2.1/os-keypairs?limit=2&marker=b"}]
    rest = (await cloud.get("/os-keypairs?limit=2&marker=b", version="2.35")).json()
    assert [entry["keypair"]["name"] for entry in rest["keypairs"]] == ["c"]
    assert "keypairs_links" not in rest
    assert await names(cloud, "?limit=0", version="2.35") == []
    for query in ("?limit=-1", "?limit=x", "?marker=z"):
        assert (await cloud.get(f"/os-keypairs{query}", version="2.35")).status_code == 400


@pytest.mark.spec("API-029", "API-575")
@pytest.mark.parametrize(("method", "path", "body"), [
    ("GET", "/os-keypairs?x=1", None), ("GET", "/os-keypairs/k?x=1", None),
    ("POST", "/os-keypairs?x=1", {"keypair": {"name": "new", "public_key": KEY}}),
    ("DELETE", "/os-keypairs/k?x=1", None),
])
async def test_unknown_parameters(cloud: ResourceCloud, method: str, path: str, body: Any) -> None:
    await add(cloud)
    assert (await cloud.request(method, path, json=body, version="2.75")).status_code == 400
    assert (await cloud.request(method, path, json=body, version="2.74")).status_code in (200, 201, 204)


@pytest.mark.spec("API-214")
async def test_keys_are_private(cloud: ResourceCloud) -> None:
    await add(cloud)
    assert await names(cloud, as_="colleague") == []
    assert (await cloud.get("/os-keypairs/k", as_="colleague")).status_code == 404
    assert (await cloud.get("/os-keypairs/k", as_="reader")).status_code == 404
