"""The peer of `handbert predict`: a transformers text-classification pipeline with batching, in f32.

    python benches/peers/predict_transformers.py --make-model MODEL --tokenizer DIR [--config config.json]
    python benches/peers/predict_transformers.py --model MODEL --file postings.jsonl --out labelled.jsonl

Reads a JSONL file, writes each row with `label` and `score`, and prints one JSON object with what it took, loading the
model left out. OMP_NUM_THREADS says how many threads compute. `--make-model` saves a classifier of DistilBERT's base
size, or of the config's, with random weights and the tokenizer in DIR: speed does not depend on the weights.
"""

import argparse
import json
import time

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    pipeline,
)

MAX_LENGTH = 512


def make_model(args):
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    config = DistilBertConfig.from_json_file(args.config) if args.config else DistilBertConfig()
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    config.id2label, config.label2id = {0: "in_person", 1: "remote"}, {"in_person": 0, "remote": 1}
    # Larger than a training would begin with: scores should differ from posting to posting.
    config.initializer_range = 0.08
    DistilBertForSequenceClassification(config).save_pretrained(args.make_model)
    tokenizer.save_pretrained(args.make_model)


def predict(args):
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForSequenceClassification.from_pretrained(args.model, dtype=torch.float32).eval()
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    began = time.perf_counter()
    with open(args.file, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts = [row[args.text_column] or "" for row in rows]
    order = list(range(len(texts)))
    if args.order == "longest-first":
        order.sort(key=lambda i: -len(texts[i]))
    results = [None] * len(texts)
    with torch.inference_mode():
        ordered = (texts[i] for i in order)
        labelled = classify(ordered, batch_size=args.batch_size, truncation=True, max_length=MAX_LENGTH)
        for i, result in zip(order, labelled):
            results[i] = result
    with open(args.out, "w", encoding="utf-8") as out:
        for row, result in zip(rows, results):
            out.write(json.dumps({**row, **result}, ensure_ascii=False) + "\n")
    seconds = time.perf_counter() - began
    tokens = sum(map(len, tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]))
    print(json.dumps({
        "rows": len(rows),
        "tokens": tokens,
        "seconds": seconds,
        "rows_per_second": len(rows) / seconds,
        "tokens_per_second": tokens / seconds,
        "order": args.order,
        "batch_size": args.batch_size,
        "attention": model.config._attn_implementation,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--file")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--out", default="/dev/null")
    parser.add_argument("--batch-size", type=int, default=32)
    # Longest first is the usual remedy against padding; input order is what the pipeline does by itself.
    parser.add_argument("--order", choices=["longest-first", "input"], default="longest-first")
    parser.add_argument("--make-model", metavar="MODEL")
    parser.add_argument("--tokenizer")
    parser.add_argument("--config")
    args = parser.parse_args()
    if args.make_model and args.tokenizer:
        make_model(args)
    elif args.model and args.file:
        predict(args)
    else:
        parser.error("--model and --file, or --make-model and --tokenizer")


if __name__ == "__main__":
    main()
