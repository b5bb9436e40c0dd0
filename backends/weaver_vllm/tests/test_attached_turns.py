"""Who runs on an engine at the same time, and which adapters it holds."""

import asyncio

import pytest
from weaver_vllm.attached_adapters import EngineAdapters
from weaver_vllm.attached_turns import Kind, Turns

from weaver.domain import AdapterRef


class Running:
    """Counts who runs beside whom, and lets go when told."""

    def __init__(self):
        self.turns, self.now, self.order, self.doors = Turns(), [], [], {}

    async def run(self, name, kind):
        self.doors[name] = asyncio.Event()
        async with self.turns.of(kind):
            self.now.append(name)
            self.order.append(name)
            await self.doors[name].wait()
            self.now.remove(name)

    async def start(self, **kinds):
        tasks = [asyncio.create_task(self.run(name, kind)) for name, kind in kinds.items()]
        await settled()
        return tasks

    async def let_go(self, *names):
        for name in names:
            self.doors[name].set()
        await settled()


async def settled():
    for _ in range(20):
        await asyncio.sleep(0)


def test_all_run_together_but_those_who_run_alone():
    async def play():
        running, together, alone = Running(), Kind.TOGETHER, Kind.ALONE
        await running.start(a=together, b=together, c=alone, d=together, e=alone, f=together)
        assert running.now == ["a", "b"], "d comes after somebody who waits: it waits too"
        await running.let_go("a")
        assert running.now == ["b"]
        for done, now in (("b", ["c"]), ("c", ["d", "f"])):
            await running.let_go(done)
            assert running.now == now
        await running.start(g=together)
        assert running.now == ["d", "f"]
        await running.let_go("d", "f")
        assert running.now == ["e"]
        await running.let_go("e")
        assert running.now == ["g"]
        await running.start(h=together)
        assert running.now == ["g", "h"]

    asyncio.run(play())


def test_who_is_cancelled_keeps_nobody_waiting():
    async def play():
        running = Running()
        base, alone, *_ = await running.start(a=Kind.TOGETHER, b=Kind.ALONE, c=Kind.TOGETHER)
        alone.cancel()
        await settled()
        assert running.now == ["a", "c"]
        base.cancel()
        [other] = await running.start(d=Kind.ALONE)
        assert running.now == ["a", "c"], "a did not leave: it was cancelled"
        await running.let_go("c")
        assert running.now == ["a", "d"]
        other.cancel()
        await settled()
        await running.start(e=Kind.ALONE)
        assert running.order[-1] == "e"

    asyncio.run(play())


class Engine:
    """What an engine was told."""

    def __init__(self, broken=()):
        self.told, self.broken = [], list(broken)

    async def load(self, name, adapter):
        await asyncio.sleep(0)
        if adapter.adapter_id in self.broken:
            raise ValueError(f"{adapter.adapter_id} is broken")
        self.told.append(f"+{adapter.adapter_id}")

    async def unload(self, name):
        self.told.append("-")


def ref(name):
    return AdapterRef(name, None)


def test_an_adapter_is_loaded_once_and_the_least_recently_used_makes_room():
    async def play():
        engine = Engine()
        adapters = EngineAdapters(2, engine.load, engine.unload)

        async def use(name):
            async with adapters.using(ref(name)) as found:
                return found

        one, again = await asyncio.gather(use("a"), use("a"))
        assert one == again
        other = await use("b")
        await use("a")
        await use("c")
        assert engine.told == ["+a", "+b", "-", "+c"]
        assert await use("a") == one
        assert await use("b") not in (one, other), "what the prefix cache has of it came before the others"
        assert engine.told == ["+a", "+b", "-", "+c", "-", "+b"]

    asyncio.run(play())


def test_who_finds_all_slots_in_use_waits_and_forgotten_adapters_leave_when_they_are_done():
    async def play():
        engine = Engine()
        adapters = EngineAdapters(1, engine.load, engine.unload)
        done = asyncio.Event()

        async def use(name, until):
            async with adapters.using(ref(name)):
                await until.wait()

        holding = asyncio.create_task(use("a", done))
        await settled()
        waiting = asyncio.create_task(use("b", done))
        await adapters.forget("a")
        await settled()
        assert engine.told == ["+a"]
        done.set()
        await asyncio.gather(holding, waiting)
        assert engine.told == ["+a", "-", "+b"]

    asyncio.run(play())


def test_an_adapter_that_was_not_loaded_is_tried_again():
    async def play():
        engine = Engine(broken=["a"])
        adapters = EngineAdapters(1, engine.load, engine.unload)
        with pytest.raises(ValueError, match="a is broken"):
            async with adapters.using(ref("a")):
                raise AssertionError("it is used as if it were there")
        engine.broken.clear()
        async with adapters.using(ref("a")):
            assert engine.told == ["+a"]

    asyncio.run(play())
