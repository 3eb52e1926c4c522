"""The peer of `handbert predict`: a transformers text-classification pipeline with batching, in f32.

Reads a JSONL file (also .gz), writes each row with `label` and `score` as JSONL, and prints one JSON
object with what it took. `--make-model DIR` saves a randomly initialised classifier of DistilBERT's
base size with a WordPiece vocabulary trained on the file, for machines without a pretrained one.

    python predict_transformers.py --make-model MODEL --file postings.jsonl.gz --text-column body
    python predict_transformers.py --model MODEL --file postings.jsonl.gz --text-column body --out labelled.jsonl
"""

import argparse
import gzip
import json
import time

STARTED = time.perf_counter()


def rows_of(path, limit):
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for i, line in enumerate(lines):
            if limit and i >= limit:
                return
            yield json.loads(line)


def make_model(args):
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import DistilBertConfig, DistilBertForSequenceClassification, DistilBertTokenizerFast

    texts = (row[args.text_column] or "" for row in rows_of(args.file, None))
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(texts, vocab_size=args.vocab_size, show_progress=False)
    tokenizer = DistilBertTokenizerFast(tokenizer_object=trained._tokenizer, model_max_length=512)
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=args.vocab_size,
        id2label={0: "in_person", 1: "remote"},
        label2id={"in_person": 0, "remote": 1},
        pad_token_id=tokenizer.pad_token_id,
    )
    DistilBertForSequenceClassification(config).save_pretrained(args.make_model)
    tokenizer.save_pretrained(args.make_model)


def predict(args):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForSequenceClassification.from_pretrained(args.model, dtype=torch.float32).eval()
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    rows = list(rows_of(args.file, args.limit))
    began = time.perf_counter()
    texts = [row[args.text_column] or "" for row in rows]
    # Longest first is the usual remedy against padding; --in-order is what the pipeline does by itself.
    order = range(len(texts)) if args.in_order else sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    results = [None] * len(texts)
    with torch.inference_mode():
        labelled = classify((texts[i] for i in order), batch_size=args.batch_size, truncation=True, max_length=512)
        for i, result in zip(order, labelled):
            results[i] = result
    with open(args.out, "w", encoding="utf-8") as out:
        for row, result in zip(rows, results):
            out.write(json.dumps({**row, "predicted_label": result["label"], "score": result["score"]}) + "\n")
    ended = time.perf_counter()
    tokens = sum(len(ids) for ids in tokenizer(texts, truncation=True, max_length=512)["input_ids"])
    seconds = ended - began
    print(json.dumps({
        "rows": len(rows),
        "tokens": tokens,
        "seconds": seconds,
        "seconds_with_start": ended - STARTED,
        "rows_per_second": len(rows) / seconds,
        "tokens_per_second": tokens / seconds,
        "order": "input" if args.in_order else "longest first",
        "batch_size": args.batch_size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--make-model")
    parser.add_argument("--file", required=True)
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--out", default="/dev/null")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocab-size", type=int, default=30522)
    parser.add_argument("--in-order", action="store_true")
    args = parser.parse_args()
    if args.make_model:
        make_model(args)
    elif args.model:
        predict(args)
    else:
        parser.error("--model or --make-model")


if __name__ == "__main__":
    main()
