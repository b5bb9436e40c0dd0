"""`make demo`: start `weaver serve`, run the Pig Latin client against it, and stop the server whatever happens.

Everything it writes is below ./demo-output: the server's log, its database and its checkpoints.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

READY_SECONDS, TRAIN_SECONDS, STOP_SECONDS = 600, 3600, 30
READY_LINE = re.compile(r"^weaver \S+ ready: (\S+) serving ", re.MULTILINE)
CLIENT = Path(__file__).parent / "pig_latin" / "train.py"
OUTPUT = Path("demo-output")


@contextmanager
def served(log: Path, data_dir: Path) -> Iterator[str]:
    """The URL of a server that lives as long as the block."""
    weaver = str(Path(sys.executable).with_name("weaver"))
    command = [weaver, "serve", "--port", "0", "--data-dir", str(data_dir)]
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        yield wait_until_ready(server, log)
    finally:
        stop(server)


def wait_until_ready(server: subprocess.Popen[bytes], log: Path) -> str:
    """The URL in the line that the server prints when it answers requests."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        running = server.poll() is None  # asked first: what a process wrote before it ended is then in the log
        written = log.read_text(errors="replace")
        if ready := READY_LINE.search(written):
            return ready[1]
        if not running:
            sys.exit(f"the server ended with status {server.returncode} before it was ready:\n{written[-2000:]}")
        time.sleep(0.1)
    sys.exit(f"the server was not ready within {READY_SECONDS} s; its log is {log}")


def stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def run_client(url: str, data_dir: Path) -> int:
    environment = os.environ | {"TINKER_BASE_URL": url, "TINKER_API_KEY": "tml-demo", "TINKER_TELEMETRY": "0"}
    command = [sys.executable, str(CLIENT), "--data-dir", str(data_dir)]
    return subprocess.run(command, env=environment, timeout=TRAIN_SECONDS).returncode


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the server is stopped then too
    log, data_dir = OUTPUT / "server.log", OUTPUT / "data"
    OUTPUT.mkdir(exist_ok=True)
    print(
        f"starting weaver serve (the first time converts the demo model, half a minute); its log is {log}", flush=True
    )
    with served(log, data_dir) as url:
        print(f"the server is ready: {url}", flush=True)
        return run_client(url, data_dir)


if __name__ == "__main__":
    sys.exit(main())
