"""Loads model directories that HandBERT saved; prints their outputs on the first batch of a case.json, as JSON lists.

    python load_in_transformers.py DIR CASE_JSON [DIR CASE_JSON …]

Fails where transformers misses a tensor, finds one too many or one of another shape, or warns of anything.
"""

import json
import logging
import sys

import torch
import transformers


class Refuse(logging.Handler):
    def emit(self, record):
        raise SystemExit(f"transformers warned: {record.getMessage()}")


def output(directory, case):
    architecture = json.load(open(f"{directory}/config.json"))["architectures"][0]
    model, info = getattr(transformers, architecture).from_pretrained(directory, output_loading_info=True)
    for kind, names in info.items():
        assert not names, f"{kind}: {names}"
    assert model.dtype == torch.float32, model.dtype

    batch = json.load(open(case))["batches"][0]
    lengths = [len(sequence) for sequence in batch["ids"]]
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(batch["ids"]):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    if architecture == "DistilBertForMaskedLM":
        logits = torch.cat([logits[row, masked] for row, masked in enumerate(batch["masked"])]).log_softmax(-1)
    return logits.flatten().tolist()


transformers.logging.disable_progress_bar()
logging.getLogger("transformers").addHandler(Refuse(level=logging.WARNING))
print(json.dumps([output(*pair) for pair in zip(sys.argv[1::2], sys.argv[2::2])]))
