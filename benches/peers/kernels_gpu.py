"""What PyTorch's own kernels take at DistilBERT-base's shapes on a GPU: the peer of `handbert bench kernels`.

    python benches/peers/kernels_gpu.py [--tokens 65536] [--device cuda] [--json]        needs torch

bf16, random data. Each call is repeated, on as many sets of operands in turn as do not fit a cache, until a run takes 20 ms,
and waited for once; the median of seven runs. The copy and the square product measured first are what it is held against.
One call that cannot be run (no memory, no such kernel) is reported as failed; the others go on.
"""

import argparse
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

C, H, D, FF, V = 768, 12, 64, 3072, 30_522
RUNS = 7
CPU_RUNS = 1


class Timer:
    def __init__(self, device, run_seconds):
        self.device, self.run_seconds = device, run_seconds
        # A CPU only tries the script out.
        self.cold_bytes, self.runs = (512e6, RUNS) if device.type == "cuda" else (1, CPU_RUNS)

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def once(self, call, sets, calls):
        self.wait()
        start = time.perf_counter()
        for i in range(calls):
            call(*sets[i % len(sets)])
        self.wait()
        return (time.perf_counter() - start) / calls

    def seconds(self, make, call):
        """Median seconds of a call; `make` gives its operands."""
        first = make()
        own = sum(x.numel() * x.element_size() for x in first)
        count = max(1, min(64, -(-int(self.cold_bytes) // max(own, 1))))
        sets = [first] + [make() for _ in range(count - 1)]
        for operands in sets:
            call(*operands)
        guess = self.once(call, sets, count)
        calls = max(count, min(1024, int(self.run_seconds / max(guess, 1e-7))))
        return statistics.median(self.once(call, sets, calls) for _ in range(self.runs))


def products(rows, device):
    """Linear layers, forward and both gradients: name, operands, call, FLOP."""
    def random(*shape):
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    for name, inputs, outputs in [("qkv", C, 3 * C), ("out", C, C), ("lin1", C, FF), ("lin2", FF, C)]:
        flops = 2 * rows * inputs * outputs
        x, d_y, w = (rows, inputs), (rows, outputs), (outputs, inputs)
        yield f"linear {name}", lambda x=x, w=w, b=outputs: (random(*x), random(*w), random(b)), F.linear, flops
        yield f"{name} d_x", lambda d=d_y, w=w: (random(*d), random(*w)), torch.mm, flops
        yield f"{name} d_W", lambda d=d_y, x=x: (random(*d), random(*x)), lambda d, x: d.t() @ x, flops
    vocabulary = 512, C, V
    yield (
        "logits of 512 rows",
        lambda: (random(vocabulary[0], C), random(V, C), random(V)),
        F.linear,
        2 * 512 * C * V,
    )


def attention(tokens, device, length, dropout):
    sequences = max(1, tokens // length)
    flops = 4 * sequences * length * length * C

    def operands():
        shape = sequences, H, length, D
        return [torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]

    def forward(q, k, v):
        with torch.no_grad():
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)

    def both(q, k, v):
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return torch.autograd.grad(out, (q, k, v), out)

    name = f"attention, {sequences} x {length}, dropout {dropout}"
    yield f"{name}, forward", operands, forward, flops
    yield f"{name}, forward and backward", operands, both, 3.5 * flops


def row_ops(rows, masked, device):
    """Name, operands, call, bytes that cannot but be moved."""
    def random(*shape, grad=False):
        return torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=grad)

    matrix = 2 * rows * C

    def gradients(out, *inputs):
        return torch.autograd.grad(out, inputs, out)

    yield "layer_norm", lambda: (random(rows, C),), lambda x: F.layer_norm(x, (C,)), 2 * matrix
    yield (
        "layer_norm, forward and backward",
        lambda: (random(rows, C, grad=True), random(C, grad=True), random(C, grad=True)),
        lambda x, g, b: gradients(F.layer_norm(x, (C,), g, b), x, g, b),
        5 * matrix,
    )
    yield (
        "dropout + residual + layer_norm",
        lambda: (random(rows, C), random(rows, C)),
        lambda x, y: F.layer_norm(y + F.dropout(x, 0.1), (C,)),
        4 * matrix,
    )
    yield "gelu", lambda: (random(rows, FF),), F.gelu, 2 * 2 * rows * FF
    yield (
        "gelu, forward and backward",
        lambda: (random(rows, FF, grad=True),),
        lambda x: gradients(F.gelu(x), x),
        5 * 2 * rows * FF,
    )
    yield (
        "cross_entropy of 512 rows, forward and backward",
        lambda: (random(512, V, grad=True), torch.randint(0, V, (512,), device=device)),
        lambda x, t: torch.autograd.grad(F.cross_entropy(x, t, reduction="sum"), x),
        3 * 2 * 512 * V,
    )
    yield (
        "gather of masked rows",
        lambda: (random(rows, C), torch.randperm(rows, device=device)[:masked].sort().values),
        lambda x, i: x.index_select(0, i),
        2 * 2 * masked * C,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--run-seconds", type=float, default=0.02)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; --device cpu tries the script out")
    timer, results = Timer(device, args.run_seconds), []
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

    def measure(name, make, call, work, unit):
        try:
            seconds = timer.seconds(make, call)
            results.append({"name": name, "seconds": seconds, unit: work, f"{unit}_per_second": work / seconds})
        except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
            results.append({"name": name, "error": f"{type(error).__name__}: {error}"})
        if device.type == "cuda":
            torch.cuda.empty_cache()
        line = results[-1]
        if not args.json:
            per_second = line.get(f"{unit}_per_second", 0) / (1e12 if unit == "flops" else 1e9)
            told = f"{1e6 * line['seconds']:12.1f} us {per_second:9.1f} {'TFLOP/s' if unit == 'flops' else 'GB/s'}"
            print(f"{name:52} {told if 'seconds' in line else line['error'].splitlines()[0]}", flush=True)

    size = 1 << (27 if device.type == "cuda" else 22)
    side = 8192 if device.type == "cuda" else 256

    def half(*shape):
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    measure("copy", lambda: (half(size), half(size)), lambda a, b: b.copy_(a), 2 * 2 * size, "bytes")
    measure("square product", lambda: (half(side, side), half(side, side)), torch.mm, 2 * side**3, "flops")
    with torch.no_grad():
        for name_, make, call, flops in products(args.tokens, device):
            measure(name_, make, call, flops, "flops")
    for dropout in (0.0, 0.1):
        for case in attention(args.tokens, device, 512, dropout):
            measure(*case, "flops")
    for case in row_ops(args.tokens, args.tokens * 3 // 20, device):
        measure(*case, "bytes")
    if args.json:
        print(json.dumps({"device": name, "torch": torch.__version__, "tokens": args.tokens, "ops": results}))
    if all("error" in line for line in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
