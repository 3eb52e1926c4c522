"""HandBERT beside PyTorch, transformers and tokenizers on a CPU: the same inputs, models and threads, in turns.

    python benches/peers/side_by_side.py [--handbert target/release/handbert] [--data ../shared/data] [--out RESULT.md]

Run it with a Python that has torch, transformers and tokenizers, on a machine that has nothing else to do. Each side is
a process of its own, and they take turns, in the other order every other round; figures are medians over the rounds,
and each is printed as soon as it is known. Peak memory is the most that any of a side's processes had resident.
`--only predict,opening` makes some of the rows:

    train      a training step of masked-language modelling, 8 sequences of 512 tokens, f32
    predict    labelling real postings, from file to file, beside a text-classification pipeline
    forward    a forward pass over 8 sequences of 512 tokens, f32
    tokenize   real postings, from file to ids, beside encode_batch
    opening    `handbert inspect` of a token set of 100 GB, whose arrays are sparse files

DATA holds hn_hiring and indeed_remote. `--small` tries the script out: a small model, few postings, figures that mean
nothing.
"""

import argparse
import gzip
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from sitting import Found, Machine, Sitting, rounded, size

SMALL_CONFIG = Path(__file__).resolve().parent.parent.parent / "recipes" / "small.json"

# Files of postings, and the column of the text in each.
POSTINGS = {
    "hn_hiring/hn_hiring_2013_2018.jsonl.gz": "body",
    "indeed_remote/indeed_remote_2021.jsonl.gz": "text",
}


@dataclass
class Work:
    """How much is measured."""

    model: str
    config: list  # the option, of both sides, for another model than one of base size
    tokens: int  # of a batch
    steps: int  # that a round times, after one that it does not
    rows: int  # postings that are labelled
    vocabulary: int
    postings: int | None  # of each file, that are tokenized
    opened: int  # bytes


FULL = Work(
    model="base size",
    config=[],
    tokens=4096,
    steps=3,
    rows=200,
    vocabulary=30522,
    postings=None,
    opened=100 * 10**9,
)
SMALL = Work(
    model="a small model",
    config=["--config", SMALL_CONFIG],
    tokens=1024,
    steps=2,
    rows=60,
    vocabulary=8192,
    postings=1000,
    opened=10**9,
)


@dataclass
class Line:
    """A line of the table. Both figures have one unit, of which more is better, less if it is seconds."""

    what: str
    beside: str
    unit: str
    ours: Found
    theirs: Found
    goal: float | None = None  # of the ratio
    most: float | None = None  # seconds, instead of a ratio
    agreement: str = ""

    def cells(self):
        ratio = self.ours.figure / self.theirs.figure
        ratio = 1 / ratio if self.unit == "s" else ratio
        goal, reached = "", True
        if self.goal is not None:
            goal, reached = f"{self.goal:.1f}", ratio >= self.goal
        elif self.most is not None:
            goal, reached = f"{self.most} s", self.ours.figure <= self.most
        return [
            self.what,
            f"{rounded(self.ours.figure)} {self.unit}",
            self.beside,
            f"{rounded(self.theirs.figure)} {self.unit}",
            f"{ratio:.2f}" if self.most is None else "",
            goal + ("" if reached else ", **missed**"),
            size(self.ours.peak),
            size(self.theirs.peak),
            self.agreement,
        ]


HEADER = ["what", "handbert", "beside", "it has", "ratio", "goal", "peak of handbert", "peak beside", "agreement"]

# ---- The rows --------------------------------------------------------------------------------------------------------


class Rows:
    def __init__(self, sitting, work, data):
        self.sitting, self.work, self.data = sitting, work, data

    def train(self):
        """From the same weights, over the same batches, masks and targets; each side drops out its own."""
        sitting, work, same = self.sitting, self.work, self.sitting.work / "same"
        bench = ["bench", "train", *work.config, "--batch-tokens", work.tokens, "--lengths", "equal", "--no-ops"]
        # The peers' weights and batches; every run of the same seed has them.
        sitting.on_cpu(*bench, "--steps", 1, "--save", same)
        losses = {}

        def ours():
            done = sitting.on_cpu(*bench, "--steps", work.steps)
            losses["handbert"] = done.json()["losses"]
            return Found(done.json()["tokens_per_second"], done.peak)

        def theirs(variant):
            report = sitting.work / "train.json"
            how = ["--device", "cpu", "--warm-up", 1, "--steps", work.steps, "--variants", variant]
            done = sitting.peer("train_step.py", same, *how, "--json", report)
            (result,) = json.loads(report.read_text())["results"]
            losses[variant] = result["losses"]
            return Found(result["tokens_per_second"], done.peak)

        sides = {"handbert": ours, "sdpa": lambda: theirs("sdpa"), "packed": lambda: theirs("packed")}
        found = sitting.in_turns("tokens/s", sides)
        besides = {
            "sdpa": ("DistilBertForMaskedLM, SDPA", 1.5),
            "packed": ("its layers, the head at masked rows alone", None),
        }
        for variant, (beside, goal) in besides.items():
            steps = list(zip(losses["handbert"], losses[variant]))
            agreement = f"losses of {len(steps)} steps at most {max(abs(a - b) for a, b in steps):.1e} apart"
            both = found["handbert"], found[variant]
            yield Line(f"training step, {work.model}", beside, "tokens/s", *both, goal, agreement=agreement)

    def predict(self):
        """Texts cut at 512 tokens. Loading the model is left out on both sides, reading and writing files is not."""
        sitting, model, sample = self.sitting, self.sitting.work / "classifier", self.sample()
        how = ["--make-model", model, "--tokenizer", self.vocabulary()]
        sitting.peer("predict_transformers.py", *how, *self.work.config)
        whole = {}

        def side(name, run):
            out = sitting.work / f"{name}.jsonl"

            def call():
                done = run(out)
                whole.setdefault(name, []).append(done.seconds)
                return Found(done.json()["rows_per_second"], done.peak)

            return call

        def ours(out):
            how = ["--model", model, "--text-columns", "text", "--out", out, "--overwrite"]
            return sitting.on_cpu("predict", sample, *how)

        def theirs(order):
            how = ["--model", model, "--file", sample, "--order", order]
            return side(order, lambda out: sitting.peer("predict_transformers.py", *how, "--out", out))

        pipeline = "pipeline, batch_size 32"
        orders = {"longest-first": f"{pipeline}, longest first", "input": f"{pipeline}, as they come"}
        sides = {"handbert": side("handbert", ours)} | {order: theirs(order) for order in orders}
        found = sitting.in_turns("rows/s", sides)
        mine, what = found["handbert"], f"labelling {self.work.rows} postings"
        for order, beside in orders.items():
            agreement = labels_agree(*(sitting.work / f"{name}.jsonl" for name in ("handbert", order)))
            yield Line(what, beside, "rows/s", mine, found[order], 1.5, agreement=agreement)
        ours, theirs = (Found(median(whole[name]), found[name].peak) for name in ("handbert", "longest-first"))
        yield Line(f"{what}, start-up included", orders["longest-first"], "s", ours, theirs)

    def forward(self):
        sitting, work = self.sitting, self.work
        how = [*work.config, "--steps", work.steps + 2]

        def ours():
            batch = ["--batch-tokens", work.tokens, "--lengths", "equal"]
            done = sitting.on_cpu("bench", "predict", *how, *batch, "--no-ops")
            return Found(done.json()["tokens_per_second"], done.peak)

        def theirs():
            done = sitting.peer("forward.py", *how, "--tokens", work.tokens)
            return Found(done.json()["tokens_per_second"], done.peak)

        found = sitting.in_turns("tokens/s", {"handbert": ours, "torch": theirs})
        beside = "DistilBertForSequenceClassification, SDPA"
        yield Line(f"forward pass, equal lengths, {work.model}", beside, "tokens/s", *found.values(), 1.0)

    def tokenize(self):
        """Ours is a whole process, from the file to the finished token set; theirs is without start-up and imports."""
        sitting, postings, vocabulary = self.sitting, self.postings(), self.vocabulary()
        made, ids, laps = sitting.work / "set", sitting.work / "ids", []

        def ours():
            how = ["--text-columns", "text", "--tokenizer", vocabulary, "--out", made, "--overwrite"]
            done = sitting.handbert("tokenize", postings, *how)
            return Found(done.seconds, done.peak)

        def theirs():
            done = sitting.peer("tokenize_batch.py", postings, "--tokenizer", vocabulary, "--out", ids)
            laps.append(done.json())
            return Found(laps[-1]["seconds"], done.peak)

        mine, other = sitting.in_turns("s", {"handbert": ours, "tokenizers": theirs}).values()
        stored = b"".join(path.read_bytes() for path in sorted(made.glob("tokens-*.bin")))
        agreement = "the same ids" if stored == ids.read_bytes() else "**other ids**"
        what = f"tokenizing {laps[0]['rows']:,} postings, {laps[0]['tokens'] / 1e6:.2f} M tokens"
        yield Line(what, "reading, encode_batch, writing", "s", mine, other, 1.0, agreement=agreement)
        for method, lap in [("encode_batch", "encode_seconds"), ("encode_batch_fast", "encode_fast_seconds")]:
            alone = Found(median(each[lap] for each in laps), other.peak)
            yield Line(what, f"{method} alone, in memory", "s", mine, alone, 1.0)

    def opening(self):
        """Whole processes: `handbert inspect` of a large set, beside the same of the set that gave it its tokenizer."""
        sitting, small = self.sitting, self.vocabulary()
        large = sparse_set(sitting, small, self.work.opened)

        def inspected(path):
            done = sitting.handbert("inspect", path)
            return Found(done.seconds, done.peak)

        found = sitting.in_turns("s", {"large": lambda: inspected(large), "small": lambda: inspected(small)})
        sizes = (size(sum(path.stat().st_size for path in each.iterdir())) for each in (large, small))
        what, beside = (f"`handbert inspect` of {each}" for each in sizes)
        more = found["large"].peak - found["small"].peak
        agreement = f"{round(more / 1e6):+d} MB resident"
        yield Line(what, beside, "s", *found.values(), most=0.05, agreement=agreement)

    def postings(self):
        """All postings, as lines of {id, text}."""
        path = self.sitting.work / "postings.jsonl"
        if path.exists():
            return path
        with path.open("w", encoding="utf-8") as out:
            for name, column in POSTINGS.items():
                with gzip.open(self.data / name, "rt", encoding="utf-8") as lines:
                    for number, line in zip(range(self.work.postings or sys.maxsize), lines):
                        row = {"id": f"{name}:{number}", "text": json.loads(line)[column]}
                        out.write(json.dumps(row, ensure_ascii=False) + "\n")
        return path

    def sample(self):
        """Those that are labelled, at equal distances among all."""
        path = self.sitting.work / "sample.jsonl"
        with self.postings().open(encoding="utf-8") as lines:
            count = sum(1 for _ in lines)
        wanted = {i * count // self.work.rows for i in range(self.work.rows)}
        with self.postings().open(encoding="utf-8") as lines, path.open("w", encoding="utf-8") as out:
            out.writelines(line for number, line in enumerate(lines) if number in wanted)
        return path

    def vocabulary(self):
        """A token set of all postings, whose tokenizer was learnt from them."""
        path = self.sitting.work / "vocabulary"
        if not path.exists():
            how = ["--text-columns", "text", "--train-vocab", self.work.vocabulary, "--out", path]
            self.sitting.handbert("tokenize", self.postings(), *how)
        return path


def labels_agree(ours, theirs):
    """How many labels are the same, how far probabilities are apart, and from where to where they go: if all rows had
    the same, nothing would follow."""
    ours, theirs = ([json.loads(line) for line in path.open(encoding="utf-8")] for path in (ours, theirs))
    if [row["id"] for row in ours] != [row["id"] for row in theirs]:
        sys.exit("predict: the two sides did not label the same postings in the same order")
    same = sum(a["label"] == b["label"] for a, b in zip(ours, theirs))
    remote = [[r["score"] if r["label"] == "remote" else 1 - r["score"] for r in rows] for rows in (ours, theirs)]
    apart = max(abs(a - b) for a, b in zip(*remote))
    span = f"{min(remote[1]):.3f} to {max(remote[1]):.3f}"
    return f"{same} of {len(ours)} labels; probabilities {span}, at most {apart:.1e} apart"


def sparse_set(sitting, like, wanted):
    """A token set of the wanted bytes that takes no room on the disk. Its arrays are holes: each posting is empty, and
    only `--verify` would read that their checksums are others."""
    large = sitting.work / "large"
    shutil.copytree(like, large, ignore=shutil.ignore_patterns("*.bin"))
    meta = json.loads((large / "meta.json").read_text())
    width = {"u16": 2, "u32": 4}[meta["dtype"]]
    per_posting = meta["tokens"] // meta["samples"]
    # As the writer does: a new shard once the tokens fill 1 GiB.
    samples = 2**30 // (width * per_posting)
    lengths = {"tokens": width * per_posting * samples, "offsets": 8 * (samples + 1), "groups": 8 * samples}
    shards = -(-wanted // sum(lengths.values()))
    meta["files"] = {name: about for name, about in meta["files"].items() if not name.endswith(".bin")}
    for number in range(shards):
        for part, length in lengths.items():
            name = f"{part}-{number:05}.bin"
            with (large / name).open("wb") as file:
                file.truncate(length)
            meta["files"][name] = {"bytes": length, "xxh3": "0" * 16}
    meta["shards"] = [{"samples": samples, "tokens": per_posting * samples}] * shards
    meta["samples"], meta["tokens"] = samples * shards, per_posting * samples * shards
    # The checksum of the description itself is in the error that a wrong one gives.
    meta["checksum"] = ""
    (large / "meta.json").write_text(json.dumps(meta))
    error = sitting.handbert("inspect", large, expected=2).error
    meta["checksum"] = error.split('"checksum" is ')[1].split("expected ")[1][:16]
    (large / "meta.json").write_text(json.dumps(meta))
    return large


# ---- The report ------------------------------------------------------------------------------------------------------

NAMES = ["train", "predict", "forward", "tokenize", "opening"]


def report(conditions, lines):
    table = [HEADER, ["---"] * len(HEADER), *(line.cells() for line in lines)]
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
    command = shlex.join(["python", *sys.argv])
    told = "\n".join(conditions)
    title = "Side by side with PyTorch, transformers and tokenizers, on a CPU"
    return f"# {title}\n\n{told}\n\n```\n{command}\n```\n\n{rows}\n"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--handbert", type=Path, default=Path("target/release/handbert"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", default=",".join(NAMES), help="rows to make, comma-separated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="a file for the table, written anew after each row")
    parser.add_argument("--small", action="store_true", help="try the script out")
    args = parser.parse_args()
    args.only = args.only.split(",")
    if unknown := [name for name in args.only if name not in NAMES]:
        parser.error(f"--only {','.join(unknown)}: there are {', '.join(NAMES)}")
    if not args.handbert.exists():
        parser.error(f"--handbert {args.handbert} is not there; `cargo build --release` makes it")
    args.handbert = args.handbert.resolve()
    return args


def main():
    args, machine = arguments(), Machine()
    told = subprocess.run([args.handbert, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    conditions = [machine.told(), f"{told}; {args.threads} threads a side, medians of {args.rounds} rounds."]
    if args.small:
        conditions.append("**A small run: its figures say that everything works, not how fast.**")
    print("\n".join(conditions), flush=True)
    lines = []
    with tempfile.TemporaryDirectory(prefix="side-by-side-") as place:
        sitting = Sitting(args.handbert, args.threads, args.rounds, Path(place))
        rows = Rows(sitting, SMALL if args.small else FULL, args.data)
        for name in args.only:
            print(name, flush=True)
            for line in getattr(rows, name)():
                lines.append(line)
                print(f"  | {' | '.join(line.cells())} |", flush=True)
            text = report([*conditions, machine.load_told()], lines)
            if args.out:
                args.out.write_text(text)
    print(f"\n{text}")


if __name__ == "__main__":
    main()
