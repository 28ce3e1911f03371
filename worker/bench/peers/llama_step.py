#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One LLaMA training step in eager FP32 PyTorch on the CPU: the peer of our own step.

The same work as a step of nibble-trainer: embedding, RMSNorm, rotary embedding (half split), causal
attention, SwiGLU, an untied head, cross-entropy, backward, global-norm clipping, AdamW with decay on
matrices only. Written the way that ran fastest with PyTorch 1.13: scores by matmul with an additive
causal mask, multi-tensor (foreach) AdamW and clipping, gradients dropped instead of zeroed.

Needs PyTorch only (Debian: python3-torch). Standard output is JSON.
  llama_step.py [--layers 6 ...]   runs --warmup + --steps steps, prints one object with all times
  llama_step.py --serve            prints {"ready": true, ...} after the warm-up, then runs one step
                                   for each line on standard input and answers {"step_ms": ...,
                                   "cpu_ms": ...} (wall and processor time of all threads), so that
                                   a caller can take turns with it; ends with the input.
"""
import argparse
import json
import os
import statistics
import sys
import time


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--kv-heads", type=int, default=0, help="0: as many as heads")
    parser.add_argument("--ffn", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--serve", action="store_true", help="one step per line of input")
    return parser.parse_args()


OPTIONS = parse_options()
# The BLAS library and OpenMP read these when they are loaded.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = str(OPTIONS.threads)

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

EPSILON = 1e-5


class RmsNorm(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON) * self.weight


def linear(inputs, outputs):
    layer = torch.nn.Linear(inputs, outputs, bias=False)
    torch.nn.init.normal_(layer.weight, std=0.02)
    return layer


def rotate(x, cosine, sine):
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


class Block(torch.nn.Module):
    def __init__(self, options, kv_heads):
        super().__init__()
        width = options.hidden
        self.heads, self.kv_heads, self.dim = options.heads, kv_heads, width // options.heads
        self.input_norm, self.post_norm = RmsNorm(width), RmsNorm(width)
        self.query = linear(width, width)
        self.key = linear(width, kv_heads * self.dim)
        self.value = linear(width, kv_heads * self.dim)
        self.output = linear(width, width)
        self.gate, self.up = linear(width, options.ffn), linear(width, options.ffn)
        self.down = linear(options.ffn, width)

    def attention(self, x, cosine, sine, mask):
        batch, seq, width = x.shape
        query = self.query(x).view(batch, seq, self.heads, self.dim).transpose(1, 2)
        key = self.key(x).view(batch, seq, self.kv_heads, self.dim).transpose(1, 2)
        value = self.value(x).view(batch, seq, self.kv_heads, self.dim).transpose(1, 2)
        query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
        if self.kv_heads != self.heads:
            key = key.repeat_interleave(self.heads // self.kv_heads, dim=1)
            value = value.repeat_interleave(self.heads // self.kv_heads, dim=1)
        scores = torch.matmul(query * self.dim**-0.5, key.transpose(2, 3)) + mask
        out = torch.matmul(torch.softmax(scores, dim=-1), value)
        return self.output(out.transpose(1, 2).reshape(batch, seq, width))

    def forward(self, x, cosine, sine, mask):
        x = x + self.attention(self.input_norm(x), cosine, sine, mask)
        hidden = self.post_norm(x)
        return x + self.down(F.silu(self.gate(hidden)) * self.up(hidden))


class Llama(torch.nn.Module):
    def __init__(self, options):
        super().__init__()
        kv_heads = options.kv_heads or options.heads
        dim = options.hidden // options.heads
        self.embedding = torch.nn.Embedding(options.vocab, options.hidden)
        torch.nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = torch.nn.ModuleList(Block(options, kv_heads) for _ in range(options.layers))
        self.norm = RmsNorm(options.hidden)
        self.head = linear(options.hidden, options.vocab)
        angles = torch.outer(torch.arange(options.seq).float(),
                             10000.0 ** (-torch.arange(0, dim, 2).float() / dim))
        angles = torch.cat((angles, angles), dim=-1)
        self.cosine, self.sine = angles.cos(), angles.sin()
        self.mask = torch.full((options.seq, options.seq), float("-inf")).triu(1)

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cosine, self.sine, self.mask)
        return self.head(self.norm(x))


def clip(parameters, limit):
    """Global-norm clipping with multi-tensor operations; returns the norm."""
    gradients = [p.grad for p in parameters]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, float(torch.clamp(limit / (norm + 1e-6), max=1.0)))
    return norm


class Trainer:
    def __init__(self, options):
        torch.manual_seed(1)
        torch.set_num_threads(options.threads)
        self.options = options
        self.model = Llama(options)
        self.parameters = list(self.model.parameters())
        matrices = [p for p in self.parameters if p.dim() > 1]
        vectors = [p for p in self.parameters if p.dim() == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=3e-4, betas=(0.9, 0.95), eps=1e-8, foreach=True)

    def step(self):
        """One step on a fresh random batch; (milliseconds, processor milliseconds, loss)."""
        shape = (self.options.batch, self.options.seq + 1)
        tokens = torch.randint(0, self.options.vocab, shape)
        start, cpu_start = time.perf_counter(), time.process_time()
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.model(tokens[:, :-1])
        loss = F.cross_entropy(logits.view(-1, self.options.vocab), tokens[:, 1:].reshape(-1))
        loss.backward()
        clip(self.parameters, 1.0)
        self.optimizer.step()
        value = loss.item()
        cpu = time.process_time() - cpu_start
        return 1e3 * (time.perf_counter() - start), 1e3 * cpu, value


def main():
    trainer = Trainer(OPTIONS)
    for _ in range(OPTIONS.warmup):
        trainer.step()
    about = {
        "peer": "pytorch", "version": torch.__version__, "threads": OPTIONS.threads,
        "layers": OPTIONS.layers, "hidden": OPTIONS.hidden, "heads": OPTIONS.heads,
        "ffn": OPTIONS.ffn, "vocab": OPTIONS.vocab, "batch": OPTIONS.batch, "seq": OPTIONS.seq,
        "parameters": sum(p.numel() for p in trainer.parameters),
    }
    if OPTIONS.serve:
        print(json.dumps({"ready": True, **about}), flush=True)
        for _ in sys.stdin:
            ms, cpu_ms, loss = trainer.step()
            print(json.dumps({"step_ms": ms, "cpu_ms": cpu_ms, "loss": loss}), flush=True)
        return
    results = [trainer.step() for _ in range(OPTIONS.steps)]
    times = [ms for ms, _, _ in results]
    median = statistics.median(times)
    tokens = OPTIONS.batch * OPTIONS.seq
    print(json.dumps({**about, "step_ms": times, "median_ms": median,
                      "tokens_per_s": 1e3 * tokens / median, "loss": results[-1][2]}))


main()
