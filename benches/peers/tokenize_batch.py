"""Tokenization beside Hugging Face's `tokenizers`: the same postings, vocabulary and cores.

    python benches/peers/tokenize_batch.py FILE.jsonl.gz COLUMN TOKENIZER_DIR [--handbert target/release/handbert] [--threads 2]

The peer's `encode_batch` is timed on texts that lie in memory; `handbert tokenize` from the compressed file to the
finished token set, reading, parsing, hashing and writing included. Medians of five.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import tempfile
import time


def median(runs):
    return statistics.median(runs)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("column")
    parser.add_argument("tokenizer")
    parser.add_argument("--handbert", default="target/release/handbert")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    from tokenizers import Tokenizer, __version__

    with gzip.open(args.file, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)[args.column] for line in lines]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    peer = Tokenizer.from_file(os.path.join(args.tokenizer, "tokenizer.json"))
    for name in ("encode_batch", "encode_batch_fast"):
        runs = []
        for _ in range(5):
            start = time.perf_counter()
            encoded = getattr(peer, name)(texts, add_special_tokens=False)
            runs.append(time.perf_counter() - start)
        tokens = sum(len(e.ids) for e in encoded)
        seconds = median(runs)
        print(f"tokenizers {__version__} {name}: {seconds:.3f} s, {tokens / seconds / 1e6:.2f} M tokens/s, {megabytes / seconds:.1f} MB/s")
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        command = [args.handbert, "tokenize", args.file, "--text-columns", args.column, "--tokenizer", args.tokenizer]
        command += ["--out", os.path.join(folder, "set"), "--overwrite", "--threads", str(args.threads), "--json"]
        for _ in range(5):
            start = time.perf_counter()
            figures = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            runs.append(time.perf_counter() - start)
    assert figures["tokens"] == tokens, (figures["tokens"], tokens)
    seconds = median(runs)
    print(f"handbert tokenize, file to token set: {seconds:.3f} s, {tokens / seconds / 1e6:.2f} M tokens/s, {megabytes / seconds:.1f} MB/s")


if __name__ == "__main__":
    main()
