#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What PyTorch reaches on this GPU at the shapes of a 7B layer: lines of JSON, one for each part.

    torch_peers.py [--tokens N]

BF16 matmul, rowwise-scaled FP8 matmul with and without fast accumulation, causal attention forward
and backward, and one LLaMA layer forward and backward under torch.compile. Random operands; medians
of CUDA-event times after a warm-up. A part that fails says why and does not stop the others.
"""
import argparse
import json

import torch
import torch.nn.functional as F

HIDDEN, FFN, HEADS, SEQ = 4096, 11008, 32, 2048
SHAPES = ((HIDDEN, HIDDEN), (FFN, HIDDEN), (HIDDEN, FFN))


def seconds(call, repeats=20):
    for _ in range(5):
        call()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3)
    return sorted(times)[len(times) // 2]


def rate(flops, call):
    time = seconds(call)
    return {"ms": time * 1e3, "tflops": flops / time * 1e-12}


def matmul(tokens):
    rows = []
    for n, k in SHAPES:
        a = torch.randn(tokens, k, device="cuda", dtype=torch.bfloat16)
        b = torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
        rows.append({"m": tokens, "n": n, "k": k, **rate(2 * tokens * n * k, lambda: a @ b.t())})
    return rows


def scaled_mm(tokens):
    rows = []
    for n, k in SHAPES:
        a = torch.randn(tokens, k, device="cuda").to(torch.float8_e4m3fn)
        b = torch.randn(n, k, device="cuda").to(torch.float8_e4m3fn)
        scale_a = torch.rand(tokens, 1, device="cuda") + 0.5
        scale_b = torch.rand(1, n, device="cuda") + 0.5
        for fast in (True, False):
            def call():
                return torch._scaled_mm(a, b.t(), scale_a, scale_b, out_dtype=torch.bfloat16,
                                        use_fast_accum=fast)
            row = {"m": tokens, "n": n, "k": k, "fast_accum": fast}
            try:
                row.update(rate(2 * tokens * n * k, call))
            except RuntimeError as error:  # one of the two may be all there is
                row["error"] = (str(error).splitlines() or ["RuntimeError"])[0]
            rows.append(row)
    return rows


def attention(tokens):
    rows = []
    for head_dim in (64, 128):
        heads = HIDDEN // head_dim
        shape = (tokens // SEQ, heads, SEQ, head_dim)
        q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
                   for _ in range(3))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        gradient = torch.randn_like(out)
        flops = 2 * shape[0] * heads * SEQ * SEQ * head_dim  # two products over the causal half
        rows.append({
            "head_dim": head_dim,
            "forward": rate(flops, lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
            "backward": rate(2.5 * flops, lambda: torch.autograd.grad(
                out, (q, k, v), gradient, retain_graph=True)),
        })
    return rows


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(HIDDEN)) for _ in "ab"])
        linear = lambda n, k: torch.nn.Linear(k, n, bias=False)
        self.q, self.k, self.v, self.o = (linear(HIDDEN, HIDDEN) for _ in range(4))
        self.gate, self.up = linear(FFN, HIDDEN), linear(FFN, HIDDEN)
        self.down = linear(HIDDEN, FFN)

    def forward(self, x, cos, sin):
        def heads(y):
            return y.view(*y.shape[:2], HEADS, -1).transpose(1, 2)

        def rope(y):
            a, b = y.chunk(2, -1)
            return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

        def norm(y, weight):
            return F.rms_norm(y, (HIDDEN,), weight, 1e-5)

        h = norm(x, self.norms[0])
        y = F.scaled_dot_product_attention(rope(heads(self.q(h))), rope(heads(self.k(h))),
                                           heads(self.v(h)), is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(x.shape))
        h = norm(x, self.norms[1])
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def layer(tokens):
    model = torch.compile(Layer().to("cuda", torch.bfloat16))
    half = HIDDEN // HEADS // 2
    angle = torch.arange(SEQ, device="cuda")[:, None] * 10000 ** (
        -torch.arange(half, device="cuda") / half)
    cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()
    x = torch.randn(tokens // SEQ, SEQ, HIDDEN, device="cuda", dtype=torch.bfloat16,
                    requires_grad=True)
    gradient = torch.randn_like(x)

    def step():
        model(x, cos, sin).backward(gradient)

    linear = 6 * tokens * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * FFN)
    return {"tokens": tokens, **rate(linear + 3.5 * 2 * tokens * SEQ * HIDDEN, step)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=8192)
    tokens = parser.parse_args().tokens
    head = {"part": "versions", "torch": torch.__version__, "cuda": torch.version.cuda}
    if not torch.cuda.is_available():
        head["error"] = "no CUDA device"
        print(json.dumps(head))
        return
    print(json.dumps({**head, "device": torch.cuda.get_device_name()}), flush=True)
    for part in (matmul, scaled_mm, attention, layer):
        row = {"part": part.__name__}
        try:
            row["result"] = part(tokens)
        except Exception as error:  # one peer's failure is a result, too
            row["error"] = (str(error).splitlines() or [type(error).__name__])[0]
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
