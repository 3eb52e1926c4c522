"""Forward passes of DistilBertForSequenceClassification in f32 over sequences of equal length, random ids and random
weights: the peer of `handbert bench predict --lengths equal`.

    python benches/peers/forward.py [--config config.json] [--tokens 4096] [--steps 5]

No padding and no attention mask, scaled_dot_product_attention, inference mode. OMP_NUM_THREADS says how many threads
compute. One JSON object on stdout.
"""

import argparse
import json
import time

import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(1)
    config = DistilBertConfig.from_json_file(args.config) if args.config else DistilBertConfig()
    config._attn_implementation = "sdpa"
    model = DistilBertForSequenceClassification(config).eval()
    length = min(config.max_position_embeddings, args.tokens)
    # As many batches as HandBERT lets take turns, so that none finds its rows of the tables in a cache.
    batches = torch.randint(0, config.vocab_size, (4, args.tokens // length, length))
    times = []
    with torch.inference_mode():
        for number in range(1 + args.steps):
            start = time.perf_counter()
            model(input_ids=batches[number % len(batches)])
            times.append(time.perf_counter() - start)
    # The first touches all memory for the first time.
    seconds = times[1:]
    print(json.dumps({
        "tokens_per_second": batches[0].numel() * len(seconds) / sum(seconds),
        "seconds": seconds,
        "attention": model.config._attn_implementation,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }))


if __name__ == "__main__":
    main()
