"""The loss of a run of `handbert train mlm`, step by step, beside PyTorch's from the same initial weights, over the same
batches in the same order, with the same learning rates.

    handbert bench train --data SET --config CONFIG --batch-tokens N --batches STEPS --steps 1 --no-ops --save SAME
    handbert train mlm --data SET --config CONFIG --batch-tokens N --max-steps STEPS --logging-steps 1 … --out RUN
    python benches/peers/train_curve.py SAME RUN [--csv curve.csv] [--variants sdpa,packed] [--device cuda]

Learning rates are those in RUN/metrics.jsonl, decay, moments and clipping those in RUN/run.toml. CONFIG has no dropout, so
the two do the same arithmetic and differ by rounding alone: in f32 on a CPU, in bf16 (autocast, here) on a GPU. Rounding grows over the
steps of any training; how far PyTorch's variants, as in train_step.py, are from one another says what it comes to by itself.

The first variant is the one that HandBERT is compared with. Each may take its share of --seconds, and is compared over
the steps that it made. The last line says how far apart the curves are, in nats a target.
"""

import argparse
import csv
import json
import math
import sys
import time
import tomllib
from pathlib import Path

import torch
from train_step import VARIANTS, Variant, batches_of

EVERY = 20


def steps_of(run):
    """[{step, loss, learning_rate}] of each step of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "learning_rate" in line]
    if not steps or [line["step"] for line in steps] != list(range(1, len(steps) + 1)):
        sys.exit(f"{run}/metrics.jsonl does not have each step from the first on: --logging-steps 1 is needed, and no step skipped")
    return steps


def adamw(model, settings, device):
    """As the run had it: biases and LayerNorms are not decayed."""
    decayed, exempt = [], []
    for name, parameter in model.named_parameters():
        (exempt if name.endswith("bias") or "layer_norm" in name or "LayerNorm" in name else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": settings["weight_decay"]}, {"params": exempt, "weight_decay": 0.0}]
    betas = settings["adam_beta1"], settings["adam_beta2"]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=settings["adam_epsilon"], fused=device.type == "cuda")


def curve(name, args, steps, batches, settings):
    """Nats a target, step by step, as far as the time goes."""
    device = torch.device(args.device)
    variant = Variant(name, args.same, device, 0.0)
    variant.optimizer = adamw(variant.model, settings, device)
    variant.max_norm = settings["max_grad_norm"] or math.inf
    began, limit, losses = time.perf_counter(), args.seconds / len(args.variants), []
    for step, batch in zip(steps, batches):
        for group in variant.optimizer.param_groups:
            group["lr"] = step["learning_rate"]
        ((inputs, targets),) = variant.prepare([batch], 1)
        losses.append(variant.step(inputs, targets))
        if len(losses) % EVERY == 0:
            variant.wait()
            if time.perf_counter() - began > limit:
                break
    losses = [float(loss) for loss in losses]
    seconds = time.perf_counter() - began
    print(f"{name}: {len(losses)} of {len(steps)} steps in {seconds:.1f} s, loss {losses[0]:.4f} to {losses[-1]:.4f}", flush=True)
    return losses


def apart(ours, theirs):
    """How far, at most and on average."""
    both = [abs(a - b) for a, b in zip(ours, theirs)]
    most = max(both)
    return f"apart by {most:.2e} at most (step {both.index(most) + 1}), {sum(both) / len(both):.2e} on average over {len(both)} steps"


def write(path, steps, curves):
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["step", "learning_rate", "handbert", *curves])
        for i, step in enumerate(steps):
            theirs = [losses[i] if i < len(losses) else "" for losses in curves.values()]
            out.writerow([step["step"], step["learning_rate"], step["loss"], *theirs])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("same", help="what `handbert bench train --save` wrote")
    parser.add_argument("run", type=Path, help="the run of `handbert train mlm`")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--variants", type=lambda names: names.split(","), default=["sdpa", "packed"])
    parser.add_argument("--seconds", type=float, default=60, help="for all variants, start-up left out")
    parser.add_argument("--csv", help="a file for all curves, side by side")
    args = parser.parse_args()
    unknown = [name for name in args.variants if name not in VARIANTS]
    if unknown:
        sys.exit(f"--variants {','.join(unknown)}: there are {', '.join(VARIANTS)}")
    config = json.loads((Path(args.same) / "config.json").read_text())
    if config["dropout"] or config["attention_dropout"]:
        sys.exit(f"{args.same}/config.json has dropout: the curves would differ by more than rounding")
    steps = steps_of(args.run)
    batches = batches_of(args.same, torch.device(args.device))
    if len(batches) < len(steps):
        sys.exit(f"{args.same} has {len(batches)} batches, the run {len(steps)} steps: raise --batches")
    settings = tomllib.loads((args.run / "run.toml").read_text())
    ours, curves = [step["loss"] for step in steps], {}
    for name in args.variants:
        try:
            curves[name] = curve(name, args, steps, batches, settings)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
            print(f"{name} failed: {type(error).__name__}: {error}", flush=True)
        if args.csv:
            write(args.csv, steps, curves)
    if not curves:
        sys.exit(1)
    (first, theirs), *others = curves.items()
    for name, losses in others:
        print(f"{name} and {first} of PyTorch are {apart(losses, theirs)}")
    last = min(len(ours), len(theirs)) - 1
    print(f"handbert and {first} of PyTorch are {apart(ours, theirs)}; the last of them {ours[last]:.4f} and {theirs[last]:.4f}")
    if not all(map(math.isfinite, ours + theirs)):
        sys.exit("a loss is no number")


if __name__ == "__main__":
    main()
