"""Virtual environments with weaver's own wheel, where packages are installed as anybody would: by pip."""

import os
import subprocess
import sysconfig
import venv
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "plugins"
ECHO = ("--model", "m=echo:", "--backend", "echo", "--sampler", "echo")
SECONDS = 280
PIP = "import runpy; runpy.run_module('pip', run_name='__main__')"


def run(*command, **options):
    options = {"capture_output": True, "text": True, "timeout": SECONDS, "check": False} | options
    return subprocess.run([str(part) for part in command], **options)


class Environment:
    """Its own: weaver's wheel and what a test installs. From the environment that runs the tests: everything that
    weaver needs, but not weaver, because what is installed here comes first. There is no index to install from."""

    def __init__(self, folder, wheel):
        self.folder, self.bin = folder, folder / "bin"
        venv.create(folder, symlinks=True)
        self.site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
        needed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (self.site / "needed.pth").write_text("".join(f"{path}\n" for path in sorted(needed)))
        pip = self.bin / "pip"
        pip.write_text(f"#!{self.bin / 'python'}\n{PIP}\n")
        pip.chmod(0o755)
        self.install(wheel)

    def environ(self, **more):
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "WEAVER", "TINKER"))
        }
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        pip = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        quiet = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TINKER_TELEMETRY": "0"}
        return kept | pip | quiet | {"PATH": path, "PYTHONNOUSERSITE": "1"} | more

    def run(self, command, *arguments, cwd=None, **environ):
        return run(self.bin / command, *arguments, cwd=cwd or self.folder, env=self.environ(**environ))

    def install(self, *what):
        done = self.run("pip", "install", "-q", *what)
        assert done.returncode == 0, done.stderr

    def uninstall(self, *names):
        done = self.run("pip", "uninstall", "-q", "-y", *names)
        assert done.returncode == 0, done.stderr

    @contextmanager
    def serve(self, *arguments, data_dir, **environ):
        """The URL of `weaver serve`, which lives as long as the block."""
        command = [self.bin / "weaver", "serve", "--port", "0", "--data-dir", data_dir, *arguments]
        data_dir.parent.mkdir(exist_ok=True, parents=True)
        with (
            open(f"{data_dir}.log", "w+") as log,
            subprocess.Popen(
                [str(part) for part in command],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.folder,
                env=self.environ(**environ),
            ) as server,
        ):
            try:
                said = server.stdout.readline()  # one line when it answers, none when it ends before
                log.seek(0)
                assert " ready: " in said, log.read()
                yield said.split(" ready: ")[1].split()[0]
            finally:
                server.terminate()
