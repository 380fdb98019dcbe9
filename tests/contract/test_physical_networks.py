"""Networks of the world outside, on both databases."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import sqlalchemy as sa
import test_network

from kilonova.db import upgrade
from kilonova.db.database import Database
from kilonova.embedded.network import physical
from kilonova.embedded.network.errors import VlanIdInUse
from kilonova.embedded.network.physical_schema import NETWORK, Physical

database = test_network.database
FIRST, SECOND = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


async def test_of_two_that_want_a_vlan_at_once_one_gets_it(database: Database) -> None:
    await upgrade.ensure(database, NETWORK)
    for vlan in range(100, 105):
        both = threading.Barrier(2)

        async def join(network: str, vlan: int = vlan, both: threading.Barrier = both) -> None:
            def unit(conn: sa.Connection) -> None:
                with contextlib.suppress(threading.BrokenBarrierError):  # SQLite lets one in at a time
                    both.wait(0.2)
                physical.join(conn, network, Physical(name="physnet1", vlan=vlan))

            await database.write(unit)

        ended = await asyncio.gather(join(FIRST), join(SECOND), return_exceptions=True)
        assert [type(one) for one in ended if one is not None] == [VlanIdInUse]
        await database.write(lambda conn: [physical.leave(conn, network) for network in (FIRST, SECOND)])
