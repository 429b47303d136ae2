"""The library's plans and launches, told by its example `launches`, which runs beside this program."""

import json
import os
import subprocess
from pathlib import Path

CANDIDATES = (".gpu/examples/launches", "target/release/examples/launches")


class LaunchesError(Exception):
    """What the library refused, or why it could not be asked."""


def find(given):
    """The executable: the given one, $CARGO_TARGET_DIR's or one of the usual."""
    candidates = [given] if given else list(CANDIDATES)
    if not given and "CARGO_TARGET_DIR" in os.environ:
        candidates.append(os.path.join(os.environ["CARGO_TARGET_DIR"], "release/examples/launches"))
    for candidate in candidates:
        if Path(candidate).is_file():
            return str(Path(candidate).resolve())
    raise LaunchesError(
        f"there is no {' or '.join(candidates)}: build it with\n"
        "    cargo build --release --features ptx --example launches\n"
        "or name it with --launches PATH"
    )


class Launches:
    """A running `launches`. `encode` makes the 16 words of a tensor map from the arguments of its layout."""

    def __init__(self, path, encode):
        self.encode = encode
        self.process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def ptx(self, target):
        return self._ask({"ptx": target})["ptx"]

    def plan(self, problem, work):
        """Number of a new plan, workspace_bytes, regions and what is selected."""
        return self._ask({"plan": {"problem": problem, "work": work}})

    def launches(self, plan, target, multiprocessors, operands):
        request = {"plan": plan, "target": target, "multiprocessors": multiprocessors, **operands}
        return self._ask({"launches": request})["launches"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def _ask(self, request):
        self._say(request)
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise LaunchesError(f"launches ended with status {self.process.wait()}")
            answer = json.loads(line)
            if "error" in answer:
                raise LaunchesError(answer["error"])
            if "tensor_map" not in answer:
                return answer
            self._say({"words": self.encode(answer["tensor_map"])})

    def _say(self, value):
        self.process.stdin.write(json.dumps(value) + "\n")
        self.process.stdin.flush()
