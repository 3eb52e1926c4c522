"""A training step of DistilBERT-base in PyTorch f32, the peer of `cargo bench --bench step -- equal`.

python benches/peers/train_step.py [THREADS]        needs torch and transformers
8 sequences of 512 tokens without padding, 15 % masked, dropout as in the config, clipping, AdamW.
"""

import statistics
import sys
import time

import torch
from transformers import DistilBertConfig, DistilBertForMaskedLM

STEPS = 5
torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
torch.manual_seed(1)
model = DistilBertForMaskedLM(DistilBertConfig()).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
ids = torch.randint(0, 30522, (8, 512))
labels = torch.where(torch.arange(8 * 512).reshape(8, 512) % 20 < 3, ids, -100)
times = []
for number in range(STEPS + 1):
    start = time.perf_counter()
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    times.append(time.perf_counter() - start)
    print(f"step {number}: {times[-1]:.3f} s, loss {loss.item():.4f}")
timed = times[1:]
tokens = ids.numel()
print(f"torch {torch.__version__}, {torch.get_num_threads()} threads:", end=" ")
print(f"best {tokens / min(timed):.0f} tokens/s, median {tokens / statistics.median(timed):.0f} tokens/s")
