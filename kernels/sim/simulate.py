"""Runs a CUDA kernel on the CPU, from Python, with numpy arrays: from edit to result in seconds.

    import numpy as np
    from simulate import launch, Read, Write, Rows, to_bf16, from_bf16

    x = to_bf16(np.random.randn(5, 128))
    y = np.empty_like(x)
    launch("gelu.cu", "gelu_forward", grid=1, block=128, args=[Read(x), Write(y), Rows([5], 0, 5)], defines={"WIDTH": 128})
    print(from_bf16(y))

Arrays are copied into memory that is checked access by access (README.md says for what) and copied back after the launch.
A launch that does something wrong raises SimulationError with kernel, block and thread. Needs numpy, and g++ or $CXX.
Where this file is run as a program: simulate.py FILE.cu [-DNAME=VALUE ...] compiles only and lists the kernels.
"""

import ctypes
import hashlib
import os
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
KERNELS = HERE.parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "handbert" / "simulator"

RUNTIME_FLAGS = ["-std=c++20", "-O3", "-g1", "-fPIC", "-shared"]
# The hooks of -fsanitize=thread are the runtime's own: nothing of ThreadSanitizer is linked.
KERNEL_FLAGS = ["-std=c++20", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-DHANDBERT_SIM", "-fsanitize=thread"]
# A frame larger than the stack's guard must not jump over it.
KERNEL_FLAGS += ["-fstack-clash-protection", "-Wall", "-Wno-sign-compare", "-Wno-unknown-pragmas"]
# Without -fno-tree-sra GCC would split a load of a struct into loads of the members that are used.
GCC_FLAGS = ["--param", "tsan-instrument-func-entry-exit=0", "-fno-tree-sra"]
# clang puts its hooks in last, when loads of structs have been split for good; what is vectorized it has no hooks for.
CLANG_FLAGS = ["-mllvm", "-tsan-instrument-func-entry-exit=0", "-fno-vectorize", "-fno-slp-vectorize"]


class SimulationError(Exception):
    """A launch was stopped, or its output is not all there."""


# ---- Arguments -----------------------------------------------------------------------------------------------------------


class Array:
    """A numpy array the kernel gets a pointer to. `access`: see abi.h."""

    access = 0

    def __init__(self, array, part=False):
        self.array = array if isinstance(array, np.ndarray) else np.array(array)
        if not self.array.flags.c_contiguous:
            raise ValueError("the array must be contiguous")
        self.part = part


class Read(Array):
    """Input. Writing to it is an error. Read(array)"""

    access = 1


class Write(Array):
    """Output, never written before. All of it must be written by the kernel; with part=True what is not keeps its value."""

    access = 2


class Update(Array):
    """Input and output in one."""

    access = 3


class Rows:
    """`Rows` of common.cuh: `live` is an array of u32 (or a Read of one shared with other arguments)."""

    def __init__(self, live, first, capacity):
        self.live = live if isinstance(live, Array) else Read(np.array(live, dtype=np.uint32))
        self.first, self.capacity = first, capacity


class Dropout:
    """`Dropout` of common.cuh for a drop probability; `step` is an array of one u32."""

    def __init__(self, step, drop_prob, site=0, key=(0, 0)):
        self.step = step if isinstance(step, Array) else Read(np.array(step, dtype=np.uint32).reshape(-1))
        self.threshold = round(drop_prob * 65536)
        self.site, self.key = site, key
        self.keep_scale = 1.0 / (1.0 - self.threshold / 65536.0)


class TensorMap:
    """`TensorMap` of ptx_hopper.cuh over a two-dimensional array. `box`: (columns, rows) of one copy; `swizzle`: bytes."""

    TYPES = {"uint16": 9, "float16": 6, "float32": 7}  # CUtensorMapDataType; uint16 holds bf16
    SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}  # CUtensorMapSwizzle

    def __init__(self, array, box, swizzle=128):
        self.array, self.box, self.swizzle = array, box, swizzle

    def encode(self, address):
        rows, columns = self.array.array.shape
        u64s, u32s, word = ctypes.c_uint64 * 2, ctypes.c_uint32 * 2, ctypes.c_uint32
        encoded, error = ctypes.create_string_buffer(128), ctypes.create_string_buffer(1024)
        failed = runtime().sim_encode_tensor_map(
            encoded, word(self.TYPES[self.array.array.dtype.name]), word(2), ctypes.c_void_p(address), u64s(columns, rows),
            u64s(columns * self.array.array.itemsize), u32s(*self.box), u32s(1, 1), word(0), word(self.SWIZZLES[self.swizzle]),
            word(0), word(0), error, ctypes.c_size_t(len(error)),
        )  # fmt: skip
        if failed:
            raise SimulationError(error.value.decode())
        return encoded.raw


class Struct:
    """A struct passed by value: fields in order, as for `struct.pack`; pointers ("P") are arrays or None.

    Struct("PIIf", Read(step), 3, 4, 0.5)
    """

    def __init__(self, layout, *fields):
        self.layout, self.fields = layout, fields


def to_bf16(x):
    """f32 values to the bits of the nearest bf16, ties to even, as uint16."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(np.asarray(x, dtype=np.float32)), np.uint16(0x7FFF), rounded)


def from_bf16(bits):
    return (np.asarray(bits, dtype=np.uint16).astype(np.uint32) << 16).view(np.float32)


# ---- Building ------------------------------------------------------------------------------------------------------------


def compiler():
    return os.environ.get("CXX", "g++")


def _is_clang():
    return "clang" in subprocess.run([compiler(), "--version"], capture_output=True, text=True).stdout


def _build(kind, inputs, commands):
    """Runs `commands(out)` unless its result, named by a hash of all inputs, is there already."""
    digest = hashlib.sha256(repr([kind, compiler(), *inputs]).encode()).hexdigest()[:20]
    out = CACHE / f"{kind}-{digest}.so"
    if out.exists():
        return out
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        fresh = pathlib.Path(work) / "out.so"
        for command in commands(pathlib.Path(work), fresh):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise SimulationError(" ".join(map(str, command)) + "\n" + done.stderr)
            sys.stderr.write(done.stderr)  # warnings
        os.replace(fresh, out)
    return out


def _contents(paths):
    return [(path.name, path.read_text()) for path in sorted(paths)]


_runtime = None


def runtime():
    """The runtime, loaded so that kernels find its functions."""
    global _runtime
    if _runtime is None:
        sources = sorted(HERE.glob("*.cpp"))
        inputs = [RUNTIME_FLAGS, _contents([*sources, *HERE.glob("*.h")])]
        path = _build("runtime", inputs, lambda work, out: [[compiler(), *RUNTIME_FLAGS, *map(str, sources), "-o", str(out)]])
        _runtime = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        _runtime.sim_alloc.restype = ctypes.c_void_p
        _runtime.sim_alloc.argtypes = [ctypes.c_uint64]
        _runtime.sim_free.argtypes = [ctypes.c_void_p]
        _runtime.sim_host_written.argtypes = [ctypes.c_uint64] * 2
        _runtime.sim_check_written.argtypes = [ctypes.c_uint64] * 2 + [ctypes.POINTER(ctypes.c_uint64), ctypes.c_char_p, ctypes.c_size_t]
        _runtime.sim_launch.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    return _runtime


KERNEL = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\s*\(([^)]*)\)\s*)?(\w+)\s*\(([^)]*)\)")


def _signatures(path):
    """What stands in the launch bounds, name, and parameters of each kernel in a source file."""
    return KERNEL.findall(re.sub(r"//[^\n]*", "", pathlib.Path(path).read_text()))


def kernels_of(path):
    """Names and parameter names of the kernels in a source file."""
    signatures = _signatures(path)
    return {name: [p.split()[-1].lstrip("*&") for p in list_.split(",") if p.strip()] for _, name, list_ in signatures}


_modules = {}


def compile(path, defines=None):
    """Builds a .cu file for the simulator; returns the loaded library. A bare name is looked up in kernels/."""
    path = _find(path)
    defines = sorted((defines or {}).items())
    headers = [*KERNELS.glob("*.cuh"), *HERE.glob("*.cuh"), *HERE.glob("*.h"), *path.parent.glob("*.cuh")]
    flags = KERNEL_FLAGS + (CLANG_FLAGS if _is_clang() else GCC_FLAGS)
    flags += [f"-D{name}={value}" for name, value in defines] + [f"-I{KERNELS}", f"-I{path.parent}"]
    signatures = _signatures(path)

    def commands(work, out):
        entries = "".join(f"SIM_ENTRY({name});\n" for _, name, _ in signatures)
        entries += "".join(f"SIM_BOUNDS({name}, {bounds});\n" for bounds, name, _ in signatures if bounds)
        unit = work / f"{path.stem}.cpp"
        unit.write_text(f'#include "{path}"\n' + entries)
        yield [compiler(), *flags, "-c", str(unit), "-o", str(work / "kernel.o")]
        yield [compiler(), "-shared", str(work / "kernel.o"), "-o", str(out)]

    inputs = [flags, str(path), path.read_text(), _contents(headers)]
    runtime()
    built = _build(path.stem, inputs, commands)
    if built not in _modules:
        _modules[built] = ctypes.CDLL(str(built))
    return _modules[built]


def _find(path):
    path = pathlib.Path(path)
    return path.resolve() if path.exists() else KERNELS / path


# ---- Launching -----------------------------------------------------------------------------------------------------------


class _Region(ctypes.Structure):
    _fields_ = [("address", ctypes.c_uint64), ("bytes", ctypes.c_uint64), ("access", ctypes.c_uint32), ("name", ctypes.c_char_p)]


class _Parameters(ctypes.Structure):
    _fields_ = [("count", ctypes.c_uint32), ("bytes", ctypes.c_uint32 * 31)]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_char_p),
        ("entry", ctypes.c_void_p),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("most_threads", ctypes.c_uint32),
        ("shared_bytes", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("args", ctypes.POINTER(ctypes.c_void_p)),
        ("regions", ctypes.POINTER(_Region)),
        ("region_count", ctypes.c_uint32),
    ]


class _Bound:
    """The arrays of one launch in the simulator's memory."""

    def __init__(self):
        self.arrays = {}  # id(array) -> (address, wrapper)
        self.regions = []

    def pointer(self, wrapper, name):
        if wrapper is None:
            return 0
        array = wrapper.array
        if id(array) not in self.arrays:
            address = runtime().sim_alloc(array.nbytes)
            if address is None:
                raise MemoryError(f"{array.nbytes} bytes for {name}")
            ctypes.memmove(address, array.ctypes.data, array.nbytes)
            runtime().sim_host_written(address, array.nbytes)
            self.arrays[id(array)] = (address, array)
        address = self.arrays[id(array)][0]
        self.regions.append((_Region(address, array.nbytes, wrapper.access, name.encode()), wrapper))
        return address

    def copy_back(self):
        for region, wrapper in self.regions:
            if wrapper.access == Read.access or region.bytes == 0:
                continue
            array, name = wrapper.array, region.name.decode()
            first, error = ctypes.c_uint64(), ctypes.create_string_buffer(1024)
            if wrapper.part:
                self._copy_written(array, region.address)
            elif runtime().sim_check_written(region.address, region.bytes, ctypes.byref(first), error, len(error)):
                element = (first.value - region.address) // array.itemsize
                where = ", ".join(map(str, np.unravel_index(element, array.shape)))
                raise SimulationError(f"{name}[{where}]: {error.value.decode()}")
            else:
                ctypes.memmove(array.ctypes.data, region.address, array.nbytes)

    @staticmethod
    def _copy_written(array, address):
        flat, size = array.reshape(-1), array.itemsize
        fresh = np.ctypeslib.as_array((ctypes.c_uint8 * array.nbytes).from_address(address)).view(array.dtype)
        first, error = ctypes.c_uint64(), ctypes.create_string_buffer(1024)
        at = 0
        while at < flat.size:
            bad = runtime().sim_check_written(address + at * size, (flat.size - at) * size, ctypes.byref(first), error, len(error))
            end = (first.value - address) // size if bad else flat.size
            flat[at:end] = fresh[at:end]
            at = end
            while bad and at < flat.size and runtime().sim_check_written(address + at * size, size, ctypes.byref(first), error, len(error)):
                at += 1

    def free(self):
        for address, _ in self.arrays.values():
            runtime().sim_free(address)


def _argument(arg, name, bound):
    """The bytes a kernel gets for one argument."""
    if arg is None or isinstance(arg, Array):
        return struct.pack("P", bound.pointer(arg, name))
    if isinstance(arg, Rows):
        return struct.pack("PII", bound.pointer(arg.live, f"{name}.live"), arg.first, arg.capacity)
    if isinstance(arg, Dropout):
        step = bound.pointer(arg.step, f"{name}.step")
        return struct.pack("PIIIIf4x", step, arg.threshold, arg.site, *arg.key, arg.keep_scale)
    if isinstance(arg, TensorMap):
        return arg.encode(bound.pointer(arg.array, name))
    if isinstance(arg, Struct):
        fields = [bound.pointer(f, f"{name}[{i}]") if f is None or isinstance(f, Array) else f for i, f in enumerate(arg.fields)]
        return struct.pack(arg.layout, *fields)
    if isinstance(arg, bytes):
        return arg
    if isinstance(arg, (bool, int)):
        return struct.pack("I", arg & 0xFFFFFFFF)
    if isinstance(arg, float):
        return struct.pack("f", arg)
    if isinstance(arg, np.generic):
        return arg.tobytes()
    raise TypeError(f"argument {name}: {type(arg).__name__} (wrap arrays in Read, Write or Update)")


def _aligned(values, alignment=64):
    """Copies of the values, each aligned; what keeps them alive, and their addresses."""
    held = [ctypes.create_string_buffer(len(value) + alignment) for value in values]
    pointers = (ctypes.c_void_p * max(len(held), 1))()
    for i, (buffer, value) in enumerate(zip(held, values)):
        pointers[i] = -(-ctypes.addressof(buffer) // alignment) * alignment
        ctypes.memmove(pointers[i], value, len(value))
    return held, pointers


def _three(n):
    n = tuple(n) if isinstance(n, (tuple, list)) else (n,)
    return n + (1,) * (3 - len(n))


def launch(path, kernel, grid, block, args, defines=None, shared=0, seed=1):
    """Runs `kernel` of the .cu file and copies outputs back into their arrays. ints are passed as u32, floats as f32."""
    library = compile(path, defines)
    names = kernels_of(_find(path))[kernel]
    if len(names) != len(args):
        raise TypeError(f"{kernel} takes {len(names)} arguments ({', '.join(names)}), not {len(args)}")
    bound = _Bound()
    try:
        values = [_argument(a, n, bound) for a, n in zip(args, names)]
        sizes = list(_Parameters.in_dll(library, f"sim_parameters_{kernel}").bytes)
        for name, value, size in zip(names, values, sizes):
            if len(value) != size:
                raise TypeError(f"{kernel}: {name} has {size} bytes, not {len(value)}")
        held, pointers = _aligned(values)
        regions = (_Region * max(len(bound.regions), 1))(*[r for r, _ in bound.regions])
        entry = ctypes.cast(getattr(library, f"sim_entry_{kernel}"), ctypes.c_void_p)
        order = _Launch(kernel.encode(), entry, _three(grid), _three(block))
        if hasattr(library, f"sim_bounds_{kernel}"):
            order.most_threads = ctypes.c_uint32.in_dll(library, f"sim_bounds_{kernel}").value
        order.shared_bytes, order.seed, order.args = shared, seed, pointers
        order.regions, order.region_count = regions, len(bound.regions)
        error = ctypes.create_string_buffer(4096)
        if runtime().sim_launch(ctypes.byref(order), error, len(error)):
            raise SimulationError(error.value.decode())
        bound.copy_back()
    finally:
        bound.free()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    given = dict((a[2:] + "=1").split("=")[:2] for a in sys.argv[2:] if a.startswith("-D"))
    compile(sys.argv[1], given)
    for found, parameters in kernels_of(_find(sys.argv[1])).items():
        print(f"{found}({', '.join(parameters)})")
