"""Whose signature an image must carry, and what it must be a signature of."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from signed_images import Signer, elliptic, rules

from kilonova.domain.errors import InvalidInput
from kilonova.domain.image import Image

DATA = b"the bytes of an image" * 1000
IMAGE = Image(id="one")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.write_bytes(DATA)
    return made


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "certificates"


def refused(store: Path, image: Image, trusted: tuple[str, ...] = (), **options: Any) -> str:
    """Why an image is refused before its bytes are looked at."""
    with pytest.raises(InvalidInput, match="Signature verification of image one failed") as raised:
        rules(store, **options).demanded(image, trusted)
    return str(raised.value).partition("failed: ")[2]


@pytest.mark.parametrize("method", ["SHA-224", "SHA-256", "SHA-384", "SHA-512"])
@pytest.mark.parametrize(
    ("key", "key_type"),
    [
        (lambda: rsa.generate_private_key(65537, 2048), "RSA-PSS"),
        (lambda: dsa.generate_private_key(1024), "DSA"),
        (lambda: ec.generate_private_key(ec.SECP384R1()), "ECC_SECP384R1"),
        (lambda: ec.generate_private_key(ec.SECP521R1()), "ECC_SECP521R1"),
    ],
    ids=["rsa", "dsa", "secp384r1", "secp521r1"],
)
def test_each_kind_of_signature_is_verified(key: Any, key_type: str, method: str, file: Path, store: Path) -> None:
    signer = Signer(store, key(), key_type)
    demanded = rules(store).demanded(signer.signed(IMAGE, DATA, img_signature_hash_method=method), (signer.id,))
    assert demanded is not None
    demanded.verify(file)
    file.write_bytes(DATA + b"!")
    with pytest.raises(InvalidInput, match="its data is not what was signed"):
        demanded.verify(file)


def test_a_signature_by_another_key_is_wrong(file: Path, store: Path) -> None:
    signer, other = elliptic(store), elliptic(store)
    image = signer.signed(IMAGE, DATA, img_signature_certificate_uuid=other.id)
    demanded = rules(store).demanded(image, (other.id,))
    assert demanded is not None
    with pytest.raises(InvalidInput, match="its data is not what was signed"):
        demanded.verify(file)


def test_nothing_is_demanded_unless_somebody_demands_it(store: Path) -> None:
    assert rules(store).demanded(IMAGE, ()) is None
    assert rules(store, default_trusted_certificate_ids=("x",)).demanded(IMAGE, ()) is None
    missing = "it lacks img_signature, img_signature_hash_method, img_signature_key_type, "
    assert refused(store, IMAGE, ("x",)).startswith(missing)
    assert refused(store, IMAGE, verify_glance_signatures=True).startswith(missing)
    both = {"enable_certificate_validation": True, "default_trusted_certificate_ids": ("x",)}
    assert refused(store, IMAGE, **both).startswith(missing)


def test_the_properties_must_make_sense(store: Path) -> None:
    signer = elliptic(store)
    for changes, why in (
        ({"img_signature": "?"}, "is not base64"),
        ({"img_signature_key_type": "RSA-PSS"}, "is not that of certificate"),
        ({"img_signature_key_type": "ECC_SECP521R1"}, "is not that of certificate"),
        ({"img_signature_certificate_uuid": "unheard-of"}, "the host does not know certificate unheard-of"),
        ({"img_signature_certificate_uuid": f"../certificates/{signer.id}"}, "the host does not know"),
    ):
        assert why in refused(store, signer.signed(IMAGE, DATA, **changes), (signer.id,))
    image = signer.signed(IMAGE, DATA)
    image.properties["img_signature_hash_method"] = "MD5"
    assert "must be one of SHA-224, SHA-256, SHA-384, SHA-512" in refused(store, image, (signer.id,))
    (store / f"{signer.id}.pem").write_text("no certificate")
    assert "holds none" in refused(store, signer.signed(IMAGE, DATA), (signer.id,))


def test_a_certificate_is_trusted_if_it_or_its_issuer_is_named(store: Path) -> None:
    root = elliptic(store, ca=True)
    middle = elliptic(store, issuer=root, ca=True)
    leaf, stranger = elliptic(store, issuer=middle), elliptic(store, ca=True)
    image = leaf.signed(IMAGE, DATA)
    for trusted in ((leaf.id,), (middle.id,), (root.id, middle.id)):
        assert rules(store).demanded(image, trusted) is not None
    for trusted in ((root.id,), (stranger.id,)):
        assert "is not trusted" in refused(store, image, trusted)
    assert "does not know certificate nobody" in refused(store, image, (leaf.id, "nobody"))


def test_who_may_not_sign_certificates_vouches_for_none(store: Path) -> None:
    no_authority, other_purpose = elliptic(store), elliptic(store, ca=True, signs_others=False)
    late = elliptic(store, ca=True, days=(-3, -2))
    for issuer in (no_authority, other_purpose, late):
        image = elliptic(store, issuer=issuer).signed(IMAGE, DATA)
        assert "is not trusted" in refused(store, image, (issuer.id,))


@pytest.mark.parametrize("days", [(-3, -2), (2, 3)])
def test_a_certificate_counts_only_in_its_time(days: tuple[int, int], store: Path) -> None:
    signer = elliptic(store, days=days)
    assert "is not valid at this time" in refused(store, signer.signed(IMAGE, DATA), verify_glance_signatures=True)


def test_the_default_list_is_for_servers_that_name_none(store: Path) -> None:
    usual, own = elliptic(store), elliptic(store)
    options = {"enable_certificate_validation": True, "default_trusted_certificate_ids": (usual.id,)}
    assert rules(store, **options).demanded(usual.signed(IMAGE, DATA), ()) is not None
    assert "is not trusted" in refused(store, own.signed(IMAGE, DATA), **options)
    assert rules(store, **options).demanded(own.signed(IMAGE, DATA), (own.id,)) is not None
    assert "is not trusted" in refused(store, usual.signed(IMAGE, DATA), (own.id,), **options)


def test_signatures_count_for_themselves_unless_certificates_are_validated(store: Path) -> None:
    image = elliptic(store).signed(IMAGE, DATA)
    assert rules(store, verify_glance_signatures=True).demanded(image, ()) is not None
    both = {"verify_glance_signatures": True, "enable_certificate_validation": True}
    assert "is not trusted" in refused(store, image, **both)


def test_a_fingerprint_is_that_of_one_signature_by_one_certificate(store: Path) -> None:
    signer, other = elliptic(store), elliptic(store)
    known = rules(store, verify_glance_signatures=True)
    image, again = signer.signed(IMAGE, DATA), signer.signed(IMAGE, DATA)

    def fingerprint(image: Image) -> str:
        demanded = known.demanded(image, ())
        assert demanded is not None
        return demanded.fingerprint

    before = fingerprint(image)
    assert before == fingerprint(image)
    assert before != fingerprint(again)
    (store / f"{signer.id}.pem").write_bytes(other.pem)
    assert before != fingerprint(image)


def test_an_image_is_not_read_into_memory(tmp_path: Path, store: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(64 << 20)
    signer = elliptic(store)
    demanded = rules(store).demanded(signer.signed(IMAGE, b"something else"), (signer.id,))
    assert demanded is not None
    tracemalloc.start()
    with pytest.raises(InvalidInput):
        demanded.verify(large)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
