"""Processes that are measured, and the machine that they are measured on."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

# Starts a command and waits for it. In a process of its own, since what a parent has resident when it starts another
# counts as that one's: nothing smaller than this interpreter, some 9 MB, is seen.
STARTER = """
import os, sys, time
began = time.perf_counter()
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
seconds = time.perf_counter() - began
with open(sys.argv[1], "w") as out:
    out.write(f"{os.waitstatus_to_exitcode(status)} {seconds} {usage.ru_maxrss}")
"""


@dataclass
class Finished:
    """A process that has ended as it should."""

    out: str
    error: str
    seconds: float  # start-up included
    peak: int  # bytes, the most that was resident

    def json(self):
        return json.loads(self.out.splitlines()[-1])


class Found(NamedTuple):
    """What a side reached: its figure and the most bytes that were resident."""

    figure: float
    peak: int


class Sitting:
    """How processes are run: with how many threads, how often, where their files lie."""

    def __init__(self, handbert, threads, rounds, work):
        self.handbert_path, self.threads, self.rounds, self.work = handbert, threads, rounds, work
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
        self.environment = os.environ | dict.fromkeys(names, str(threads))
        self.environment |= {"TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"}

    def run(self, command, expected=0):
        command, usage = [str(part) for part in command], self.work / "usage"
        usage.unlink(missing_ok=True)
        starter = [sys.executable, "-I", "-S", "-c", STARTER, str(usage), *command]
        done = subprocess.run(starter, capture_output=True, text=True, env=self.environment)
        said = f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
        if not usage.exists():
            sys.exit(f"{said}could not be started")
        code, seconds, kilobytes = usage.read_text().split()
        if int(code) != expected:
            sys.exit(f"{said}exit code {code}")
        return Finished(done.stdout, done.stderr, float(seconds), int(kilobytes) * 1024)

    def handbert(self, *arguments, expected=0):
        return self.run([self.handbert_path, *arguments, "--threads", self.threads, "--json"], expected)

    def on_cpu(self, *arguments):
        return self.handbert(*arguments, "--device", "cpu")

    def peer(self, script, *arguments):
        return self.run([sys.executable, Path(__file__).parent / script, *arguments])

    def in_turns(self, unit, sides):
        """Calls each of {name: call}, round after round; a call gives Found. Medians of figures and largest peaks."""
        found = {name: [] for name in sides}
        for number in range(self.rounds):
            for name in sides if number % 2 == 0 else reversed(sides):
                found[name].append(sides[name]())
                figure, peak = found[name][-1]
                print(f"    round {number + 1}  {name}: {rounded(figure)} {unit}, {size(peak)}", flush=True)
        return {name: Found(median(f.figure for f in each), max(f.peak for f in each)) for name, each in found.items()}


class Machine:
    """What it is measured on, and whether others were at work meanwhile."""

    def __init__(self):
        self.started, self.load = time.time(), load_average()
        self.busy, self.own = busy_seconds(), own_seconds()

    def told(self):
        info = Path("/proc/cpuinfo").read_text()
        models = [line.split(": ")[1] for line in info.splitlines() if line.startswith("model name")]
        sets = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if f" {name}" in info]
        packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers"))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return (
            f"{time.strftime('%F %R', time.gmtime(self.started))} UTC. {models[0] if models else platform.machine()} "
            f"({', '.join(sets)}), {os.cpu_count()} cores, {size(memory)} of memory. "
            f"Python {platform.python_version()}, {packages}."
        )

    def load_told(self):
        lasted = time.time() - self.started
        others = (busy_seconds() - self.busy) - (own_seconds() - self.own)
        share = max(0.0, others / (lasted * os.cpu_count()))
        return (
            f"Load average {self.load} at the start, {load_average()} at the end, {lasted / 60:.0f} minutes later, "
            f"which counts what was measured; all else on the machine had {100 * share:.1f} % of its cores' time."
        )


def load_average():
    return " ".join(f"{each:.2f}" for each in os.getloadavg())


def busy_seconds():
    """Of all cores, since the machine started: all but idle time and waiting for disks; what the host took is in it."""
    first = Path("/proc/stat").read_text().splitlines()[0]
    user, nice, system, _, _, irq, soft, steal = map(int, first.split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds():
    """Of this process and of those it has waited for."""
    return sum(os.times()[:4])


def rounded(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def size(count):
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
