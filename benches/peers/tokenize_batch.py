"""Tokenization with Hugging Face's `tokenizers`, from a file of postings to a file of ids: the peer of
`handbert tokenize`.

    python benches/peers/tokenize_batch.py FILE.jsonl --column text --tokenizer DIR --out IDS

IDS are u16, end to end, without special tokens, as in a token set. Reading, encoding and writing are timed on their
own; `encode_batch_fast`, which keeps no offsets, beside `encode_batch`. RAYON_NUM_THREADS says how many threads
encode. One JSON object on stdout.
"""

import argparse
import array
import json
import time
from pathlib import Path

from tokenizers import Tokenizer, __version__


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--column", default="text")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    times = [time.perf_counter()]

    def lap():
        times.append(time.perf_counter())
        return times[-1] - times[-2]

    with args.file.open(encoding="utf-8") as lines:
        texts = [json.loads(line)[args.column] for line in lines]
    read = lap()
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    encode = lap()
    ids = array.array("H")
    for each in encoded:
        ids.extend(each.ids)
    with args.out.open("wb") as out:
        ids.tofile(out)
    write = lap()
    del encoded
    lap()
    tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    encode_fast = lap()
    print(json.dumps({
        "rows": len(texts),
        "tokens": len(ids),
        "text_bytes": sum(len(text.encode()) for text in texts),
        "seconds": read + encode + write,
        "read_seconds": read,
        "encode_seconds": encode,
        "encode_fast_seconds": encode_fast,
        "write_seconds": write,
        "tokenizers": __version__,
    }))


if __name__ == "__main__":
    main()
