"""Training steps of DistilBertForMaskedLM in PyTorch and transformers: the peer of `handbert bench train`.

    handbert bench train --data SET --save SAME --json > ours.json
    python benches/peers/train_step.py SAME [--ours ours.json] [--steps 20] [--variants sdpa,compile,...] [--json FILE]

Starts from the weights in SAME/model.safetensors and works on SAME/batches.safetensors, batch after batch in turn: the same
tokens, masks and targets. Dropout as in the config, gradients clipped to 1, AdamW; on a GPU bf16 autocast over f32 weights. Tokens
are real ones: padding is not counted. The first five steps are not timed: a compiled model is compiled in them.

    eager           padded to the longest sequence of the batch, attention written out
    sdpa            padded, scaled_dot_product_attention
    compile         the same under torch.compile
    sorted          sdpa; the batch in eight parts of sequences of like length, each padded to its own longest
    packed          no padding: rows laid end to end, variable-length flash attention, the head at masked rows alone
    packed-compile  the same under torch.compile

A padded batch that does not fit the card is cut into 2, 4, ... parts whose gradients are added, as users of these libraries do.
A variant that fails is reported with its reason; the others go on.
"""

import argparse
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import DistilBertConfig, DistilBertForMaskedLM

VARIANTS = ["sdpa", "compile", "packed", "packed-compile", "sorted", "eager"]
IGNORED = -100


def batches_of(directory, device):
    """[{ids, ends, rows, targets}], the ids masked."""
    tensors = load_file(Path(directory) / "batches.safetensors", device=str(device))
    count = 1 + max(int(name.split(".")[1]) for name in tensors)
    names = {"ids": "ids", "cu_seqlens": "ends", "masked_rows": "rows", "targets": "targets"}
    return [{ours: tensors[f"{name}.{i}"].long() for name, ours in names.items()} for i in range(count)]


def padded(batch, parts, by_length, rows=None):
    """The sequences in so many parts, each a rectangle: ids, attention mask, labels. With `rows`, parts have the shape that
    they would have if there were so many sequences; what fills them up is one token long and asked nothing."""
    ends = batch["ends"].tolist()
    labels = torch.full_like(batch["ids"], IGNORED)
    labels[batch["rows"]] = batch["targets"]
    spans = list(zip(ends[:-1], ends[1:]))
    longest = max(end - start for start, end in spans)
    if by_length:
        spans.sort(key=lambda span: span[1] - span[0])
    size = -(-(rows or len(spans)) // parts)
    for at in range(0, len(spans), size):
        chunk = spans[at : at + size]
        width = max(end - start for start, end in chunk) if by_length else longest
        rectangle = size if rows else len(chunk), width
        ids = batch["ids"].new_zeros(rectangle)
        mask, wanted = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
        for i, (start, end) in enumerate(chunk):
            ids[i, : end - start] = batch["ids"][start:end]
            mask[i, : end - start] = 1
            wanted[i, : end - start] = labels[start:end]
        mask[len(chunk) :, 0] = 1
        yield {"input_ids": ids, "attention_mask": mask, "labels": wanted}


def varlen_attention(device, dropout):
    """Attention over rows laid end to end, q, k, v [N, H, D]; and what it is called."""
    try:
        from flash_attn import flash_attn_varlen_func

        return lambda q, k, v, ends, most: flash_attn_varlen_func(
            q, k, v, ends, ends, most, most, dropout_p=dropout
        ), "flash_attn"
    except ImportError:
        pass
    if device.type == "cuda":
        from torch.nn.attention.varlen import varlen_attn

        without = " without attention dropout" if dropout else ""
        return lambda q, k, v, ends, most: varlen_attn(q, k, v, ends, ends, most, most), f"torch varlen_attn{without}"

    def one_by_one(q, k, v, ends, _):
        ends = ends.tolist()
        parts = [
            F.scaled_dot_product_attention(*(x[a:b].transpose(0, 1) for x in (q, k, v)), dropout_p=dropout)
            for a, b in zip(ends[:-1], ends[1:])
        ]
        return torch.cat([part.transpose(0, 1) for part in parts])

    return one_by_one, "sequence by sequence"


class Packed(torch.nn.Module):
    """The model on rows laid end to end, with transformers' own layers."""

    def __init__(self, model, device):
        super().__init__()
        self.model, config = model, model.config
        self.heads = config.n_heads
        self.attention, self.how = varlen_attention(device, config.attention_dropout)

    def forward(self, ids, positions, ends, most, rows, targets):
        body = self.model.distilbert
        embeddings = body.embeddings
        x = embeddings.word_embeddings(ids) + embeddings.position_embeddings(positions)
        x = embeddings.dropout(embeddings.LayerNorm(x))
        for layer in body.transformer.layer:
            x = self.block(layer, x, ends, most)
        head = self.model
        x = F.gelu(head.vocab_transform(x.index_select(0, rows)))
        logits = head.vocab_projector(head.vocab_layer_norm(x))
        return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")

    def block(self, layer, x, ends, most):
        attention = layer.attention
        split = [lin(x).view(len(x), self.heads, -1) for lin in (attention.q_lin, attention.k_lin, attention.v_lin)]
        context = self.attention(*split, ends, most).reshape(len(x), -1)
        x = layer.sa_layer_norm(attention.out_lin(context) + x)
        y = layer.ffn.lin2(F.gelu(layer.ffn.lin1(x)))
        return layer.output_layer_norm(F.dropout(y, layer.ffn.dropout.p, self.training) + x)


def packed(batch, capacity):
    """Filled up to fixed counts, so that shapes stay the same: rows of last sequences that nothing asks about."""
    tokens, masked, longest = capacity
    ids, ends = batch["ids"], batch["ends"]
    filled = torch.arange(len(ids) + longest, tokens + longest, longest, device=ids.device).clamp(max=tokens)
    ids, ends = F.pad(ids, (0, tokens - len(ids))), torch.cat([ends, filled])
    starts = torch.repeat_interleave(ends[:-1], ends[1:] - ends[:-1])
    return {
        "ids": ids,
        "positions": torch.arange(tokens, device=ids.device) - starts,
        "ends": ends.int(),
        "most": longest,
        "rows": F.pad(batch["rows"], (0, masked - len(batch["rows"]))),
        "targets": F.pad(batch["targets"], (0, masked - len(batch["targets"])), value=IGNORED),
    }


class Variant:
    def __init__(self, name, directory, device, dropout):
        torch.manual_seed(1)
        self.name, self.device, self.how = name, device, ""
        self.is_packed = name.startswith("packed")
        config = DistilBertConfig.from_pretrained(directory)
        if dropout is not None:
            config.dropout = config.attention_dropout = dropout
        attention = "eager" if name == "eager" else "sdpa"
        model = DistilBertForMaskedLM.from_pretrained(
            directory, config=config, attn_implementation=attention, dtype=torch.float32
        )
        self.model = model.to(device).train()
        fused = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-5, weight_decay=0.0, fused=fused)
        self.max_norm = 1.0
        self.call = self.model
        if self.is_packed:
            self.call = Packed(self.model, device)
            self.how = self.call.how
        if name.endswith("compile"):
            self.call = torch.compile(self.call)

    def prepare(self, batches, parts):
        """What each step goes through: its inputs, and the targets of all of them."""
        if self.is_packed:
            most = [max(len(b[name]) for b in batches) for name in ("ids", "rows")]
            longest = max(int((b["ends"][1:] - b["ends"][:-1]).max()) for b in batches)
            capacity = most[0] + 64, -(-most[1] // 64) * 64, longest
            return [([packed(b, capacity)], len(b["rows"])) for b in batches]
        by_length = self.name == "sorted"
        parts = max(parts, 8) if by_length else parts
        # A compiled model is compiled again for every other shape.
        rows = max(len(b["ends"]) - 1 for b in batches) if self.name == "compile" else None
        # A part without targets has no loss.
        asked = [[part for part in padded(b, parts, by_length, rows) if (part["labels"] != IGNORED).any()] for b in batches]
        return [(inputs, len(b["rows"])) for inputs, b in zip(asked, batches)]

    def step(self, inputs, targets):
        """Nats a target."""
        total = 0.0
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self.device.type == "cuda" else nullcontext()
        for part in inputs:
            with autocast:
                if self.is_packed:
                    loss = self.call(**part) / targets
                else:
                    # The mean over the part's targets, weighed by their share.
                    wanted = (part["labels"] != IGNORED).sum()
                    loss = self.call(**part).loss * wanted / targets
            loss.backward()
            total = total + loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def run(self, batches, parts, warm_up, steps):
        inputs = self.prepare(batches, parts)
        losses, start = [], None
        for number in range(warm_up + steps):
            if number == warm_up:
                self.wait()
                start = time.perf_counter()
            losses.append(self.step(*inputs[number % len(inputs)]))
        self.wait()
        seconds = time.perf_counter() - start
        tokens = sum(len(batches[n % len(batches)]["ids"]) for n in range(warm_up, warm_up + steps))
        rows = [sum(part["ids" if self.is_packed else "input_ids"].numel() for part in each) for each, _ in inputs]
        return {
            "variant": self.name,
            "attention": self.how,
            "tokens_per_second": tokens / seconds,
            "seconds_per_step": seconds / steps,
            "steps": steps,
            "parts": len(inputs[0][0]),
            "padding": 1 - sum(len(b["ids"]) for b in batches) / sum(rows),
            "losses": [float(loss) for loss in losses],
            "memory_bytes": torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None,
        }


def measure(name, args, batches, device):
    parts, most = 1, len(batches[0]["ends"]) - 1
    while True:
        try:
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            return Variant(name, args.directory, device, args.dropout).run(batches, parts, args.warm_up, args.steps)
        except torch.OutOfMemoryError as error:
            if name.startswith("packed") or 2 * parts > most:
                return {"variant": name, "error": f"out of memory: {error}".splitlines()[0]}
            parts *= 2
        except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
            return {"variant": name, "error": f"{type(error).__name__}: {error}"}


def told(result, ours):
    if "error" in result:
        return f"{result['variant']:15} failed: {result['error'].splitlines()[0][:160]}"
    line = (
        f"{result['variant']:15} {result['tokens_per_second']:12,.0f} real tokens/s {1e3 * result['seconds_per_step']:9.2f} ms"
        f"  {100 * result['padding']:5.1f} % padding  {result['parts']} parts"
        f"  loss {result['losses'][0]:.4f} to {result['losses'][-1]:.4f}"
    )
    if ours:
        line += f"  handbert is {ours['tokens_per_second'] / result['tokens_per_second']:.2f}x"
        both = list(zip(ours["losses"], result["losses"]))
        line += f", losses apart by {max(abs(a - b) for a, b in both):.4f} at most over {len(both)} steps"
    return f"{line}  {result['attention']}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", help="what `handbert bench train --save` wrote")
    parser.add_argument("--ours", help="the JSON that it printed")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--dropout", type=float, help="instead of the config's")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--json", help="a file for every figure")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; --device cpu tries the script out")
    unknown = [name for name in args.variants.split(",") if name not in VARIANTS]
    if unknown:
        sys.exit(f"--variants {','.join(unknown)}: there are {', '.join(VARIANTS)}")
    ours = json.loads(Path(args.ours).read_text()) if args.ours else None
    batches = batches_of(args.directory, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(f"{name}, torch {torch.__version__}; {len(batches)} batches of about {len(batches[0]['ids']):,} tokens")
    results = []
    for variant in args.variants.split(","):
        results.append(measure(variant, args, batches, device))
        print(told(results[-1], ours), flush=True)
        if args.json:
            Path(args.json).write_text(json.dumps({"device": name, "torch": torch.__version__, "results": results}))
    if all("error" in result for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
