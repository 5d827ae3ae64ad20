"""The quarantine's threads: what hangs in them holds up nothing else."""

import asyncio
import threading

import pytest

from service.errors import QuarantineUnavailableError
from service.quarantine.threads import MOST_CALLS, NUM_THREADS, QuarantineThreads


def test_calls_that_hang_hold_up_nothing_else_and_are_bounded():
    async def scenario() -> None:
        threads, go_on = QuarantineThreads(), threading.Event()
        hanging = [asyncio.create_task(threads.run(go_on.wait, timeout=60)) for _ in range(MOST_CALLS)]
        await asyncio.sleep(0)
        with pytest.raises(QuarantineUnavailableError, match=f"{MOST_CALLS} calls wait"):
            await threads.run(int)
        async with asyncio.timeout(10):
            assert await asyncio.gather(*(asyncio.to_thread(int) for _ in range(20))) == [0] * 20
        go_on.set()
        assert await asyncio.gather(*hanging) == [True] * MOST_CALLS
        assert await threads.run(divmod, 7, 2) == (3, 1)
        threads.close()

    asyncio.run(scenario())


def test_a_call_that_was_given_up_frees_its_place_when_it_ends():
    async def scenario() -> None:
        threads, go_on = QuarantineThreads(), threading.Event()
        calls = [asyncio.create_task(threads.run(go_on.wait)) for _ in range(MOST_CALLS)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        still_running = [asyncio.create_task(threads.run(int)) for _ in range(MOST_CALLS - NUM_THREADS)]
        await asyncio.sleep(0)
        with pytest.raises(QuarantineUnavailableError):
            await threads.run(int)
        go_on.set()
        assert await asyncio.gather(*still_running) == [0] * len(still_running)
        threads.close()

    asyncio.run(scenario())


def test_what_a_call_raises_is_raised():
    async def scenario() -> None:
        threads = QuarantineThreads()
        with pytest.raises(ZeroDivisionError):
            await threads.run(divmod, 1, 0)
        threads.close()

    asyncio.run(scenario())
