"""Processes of one layout that hold backends by name and do what they are told, all alike."""

import multiprocessing
import os
import pickle
import traceback
import warnings

import torch

PRELOAD = ["weaver_megatron.rank", "rank_tasks", "breaks"]


class Groups:
    """Starts the ranks of a layout when they are first asked for; ends all of them at the end."""

    def __init__(self, factory):
        self._factory, self._running = factory, {}
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)

    def __enter__(self):
        return self

    def __call__(self, layout):
        if layout not in self._running:
            store = self._factory.mktemp("store") / "rendezvous"
            self._running[layout] = Group(self._context, layout, store)
        return self._running[layout]

    def end(self, layout):
        """Fewer idle processes."""
        if layout in self._running:
            self._running.pop(layout).close()

    def __exit__(self, *_):
        for layout in list(self._running):
            self.end(layout)


class Group:
    def __init__(self, context, layout, store):
        self.layout, self._pipes, self._processes = layout, [], []
        for rank in range(layout.world):
            here, there = context.Pipe()
            process = context.Process(target=work, args=(there, str(store), rank, layout), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def call(self, task, *arguments):
        """What each rank's `task(state, *arguments)` returned, by rank. An exception there is raised here."""
        for pipe in self._pipes:
            pipe.send((task, arguments))
        results = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(120):
                self.close()
                raise TimeoutError(f"rank {rank} of {self.layout} does not answer")
            results.append(pipe.recv_bytes())
        results = [pickle.loads(result) for result in results]
        for rank, (error, trace, _) in enumerate(results):
            if error is not None:
                error.add_note(f"on rank {rank} of {self.layout}:\n{trace}")
                raise error
        return [result for _, _, result in results]

    def close(self):
        for process in self._processes:
            process.kill()
            process.join()


def work(pipe, store, rank, layout):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=layout.world)
    state = {"layout": layout}
    while True:
        try:
            task, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = (None, "", task(state, *arguments))
        except Exception as error:  # noqa: BLE001 -- the test shall see it
            answer = (error, traceback.format_exc(), None)
        pipe.send(answer)
