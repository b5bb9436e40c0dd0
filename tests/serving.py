"""Real servers on free ports of this machine: in threads of this process, or by the command `weaver serve`."""

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import uvicorn

from weaver.server.app import create_app
from weaver.server.serve import listening_socket, url_of

READY = re.compile(r"ready: (http://\S+) ")


class Running:
    """An app over HTTP, in a thread of this process. Its address is known before it listens; connections wait from then
    on, so nobody needs to poll for readiness."""

    def __init__(self, app, *, wrapped=None, log_level="warning"):
        self._app, self._socket = app, listening_socket("127.0.0.1", 0)
        self.url = url_of(self._socket)
        config = uvicorn.Config(wrapped or app, log_level=log_level, lifespan="off", ws="none", timeout_keep_alive=120)
        self._server = uvicorn.Server(config)
        # A fixture that fails before it can stop the server must not keep the tests from ending.
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def start(self):
        self._socket.listen(512)
        self._thread.start()
        return self

    def stop(self):
        self._app.state.context.stopping.set()
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


@contextmanager
def serving(service, api_keys=(), *, wrap=None, **settings):
    """Yields the URL of a service, which the caller closes. `wrap` may put something around the app."""
    app = create_app(service, api_keys, **settings)
    running = Running(app, wrapped=wrap and wrap(app)).start()
    try:
        yield running.url
    finally:
        running.stop()


@contextmanager
def serving_command(data_dir, *options):
    """Yields the URL of `weaver serve` with these options, in a process of its own, which must end well."""
    command = [sys.executable, "-m", "weaver.server.cli", "serve", "--port", "0", "--device", "cpu"]
    command += ["--data-dir", str(data_dir), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            yield READY.search(process.stdout.readline())[1]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
