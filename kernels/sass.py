#!/usr/bin/env python3
"""What machine code the kernels became: the instructions that matter, counted, and the promises about them checked.

    handbert kernels compile --arch sm_80,sm_90a --out DIR
    python3 kernels/sass.py DIR            # needs cuobjdump and nvdisasm: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm

Exits with 1 where a promise is broken: a tensor-core kernel without matrix instructions or asynchronous 16-byte copies, one
for Hopper without wgmma or tensor copies, local memory anywhere.
"""

import collections
import glob
import os
import pathlib
import re
import site
import subprocess
import sys
import tempfile

# Kernels that are matrix products: they must run on tensor cores, from shared memory, fed by asynchronous copies.
PRODUCTS = re.compile(r"^(matmul_|attention_(forward|backward))")
# Those that are written for Hopper.
HOPPER = re.compile(r"^matmul_hopper_")
# Kernels that move matrices: most bytes go in vectors of 16.
COUNTED = {
    "HMMA": r"\bHMMA\.16816\.F32\.BF16",
    "HGMMA": r"\bHGMMA\.\w+\.F32\.BF16",  # wgmma
    "UTMALDG": r"\bUTMALDG\.2D",  # tensor copies
    "LDSM": r"\bLDSM\.16\.M?T?88\.4|\bLDSM\.16\.MT88\.4",
    "LDGSTS.128": r"\bLDGSTS\.E\.BYPASS.*\.128|\bLDGSTS\.E\.BYPASS\.LTC128B\.128",
    "LDG.128": r"\bLDG\.E\.(\w+\.)*128",
    "LDG": r"\bLDG\.",
    "STG.128": r"\bSTG\.E\.(\w+\.)*128",
    "STG": r"\bSTG\.",
    "MUFU.EX2": r"\bMUFU\.EX2",
    "BAR": r"\bBAR\.SYNC",
    "LOCAL": r"\b(LDL|STL)\b",
}


def tools():
    """cuobjdump calls nvdisasm: both must be on the path."""
    env = dict(os.environ)
    roots = sys.path + site.getsitepackages() + [site.getusersitepackages()]
    found = {os.path.dirname(p) for root in roots for p in glob.glob(f"{root}/nvidia/**/bin/*", recursive=True) if root}
    env["PATH"] = os.pathsep.join(sorted(found) + [env.get("PATH", "")])
    return env


def cubin_of(path):
    """A .kernels file is a line of text, the length of the compiler's log, the log, the machine code."""
    body = path.read_bytes().split(b"\n", 1)[1]
    log = int.from_bytes(body[:8], "little")
    return body[8 + log:]


def disassemble(cubin, env):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = ["cuobjdump", "--dump-sass", file.name]
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


def count(sass):
    kernels = collections.OrderedDict()
    here = None
    for line in sass.splitlines():
        if match := re.search(r"Function : (\w+)", line):
            here = kernels.setdefault(match.group(1), collections.Counter())
        elif here is not None and "/*" in line:
            here.update(name for name, pattern in COUNTED.items() if re.search(pattern, line))
    return kernels


def broken(kernel, counts):
    if counts["LOCAL"]:
        yield "uses local memory"
    if HOPPER.match(kernel):
        if not counts["HGMMA"]:
            yield "has no wgmma"
        if not counts["UTMALDG"]:
            yield "has no tensor copies"
    elif PRODUCTS.match(kernel):
        if not counts["HMMA"]:
            yield "has no matrix instruction"
        if not counts["LDSM"]:
            yield "does not load its fragments with ldmatrix"
        if not counts["LDGSTS.128"]:
            yield "has no asynchronous 16-byte copies"


def main(directory):
    env, failures = tools(), []
    files = sorted(pathlib.Path(directory).glob("*.kernels"))
    if not files:
        sys.exit(f"{directory}: no .kernels files; make them with `handbert kernels compile --out {directory}`")
    for path in files:
        print(path.name)
        for kernel, counts in count(disassemble(cubin_of(path), env)).items():
            listed = "  ".join(f"{name} {counts[name]}" for name in COUNTED if counts[name])
            print(f"  {kernel:<36} {listed}")
            failures += [f"{path.name}: {kernel} {why}" for why in broken(kernel, counts)]
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
