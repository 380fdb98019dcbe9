"""Paths of access rules."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.embedded.identity.access_paths import matches


@pytest.mark.parametrize(("pattern", "path", "fits"), [
    ("/v2.1/servers", "/v2.1/servers", True), ("/v2.1/servers", "/v2.1/servers/", False),
    ("/v2.1/servers", "/v2x1/servers", False), ("/v2.1/servers", "/V2.1/servers", False),
    ("/v2.1/servers/*", "/v2.1/servers/one", True), ("/v2.1/servers/*", "/v2.1/servers/", False),
    ("/v2.1/servers/*", "/v2.1/servers/one/ips", False), ("/v2.1/*/ips", "/v2.1/one/ips", True),
    ("/v2.1/servers/{server_id}/ips", "/v2.1/servers/one/ips", True),
    ("/v2.1/servers/{server_id}/ips", "/v2.1/servers//ips", False),
    ("/v2.1/**", "/v2.1/servers/one/ips", True), ("/v2.1/**", "/v2.1/", True), ("/v2.1/**", "/v2.1", False),
    ("/v2.1/**/ips", "/v2.1/servers/one/ips", True), ("/**a*b", "/a/ab", False), ("/**a*b", "/a/aab", True),
    ("/a{b", "/a{b", True), ("/", "/", True), ("/**", "/", True),
])
def test_what_fits(pattern: str, path: str, fits: bool) -> None:
    assert matches(pattern, path) is fits


@given(
    st.lists(st.sampled_from(["a", "b", "/", "*", "**", "{x}"]), max_size=8).map("".join),
    st.text("ab/", max_size=10),
)
def test_it_is_the_regular_expression(pattern: str, path: str) -> None:
    wild = {"**": ".*", "*": "[^/]+"}
    parts = re.findall(r"\*\*|\*|\{[^{}]*\}|.", pattern)
    expression = "".join(wild.get(part) or ("[^/]+" if len(part) > 1 else re.escape(part)) for part in parts)
    assert matches(pattern, path) is bool(re.fullmatch(expression, path))


@pytest.mark.parametrize("pattern", ["/" + "*a" * 60 + "b", "/" + "**a" * 40 + "b", "/" + "**" * 60 + "b"])
def test_no_rule_takes_long(pattern: str) -> None:
    began = time.process_time()
    assert not matches(pattern, "/" + "a" * 20_000)
    assert time.process_time() - began < 2
