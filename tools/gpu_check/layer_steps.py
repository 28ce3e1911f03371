#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Seconds that one layer of 7B shape adds to a training step, by recipe, as one JSON object.

    layer_steps.py TRAINER TOKENS_FOLDER WORK_FOLDER [--quick]

Trains stacks of one and of two layers (hidden 4096, feed-forward 11008, 32 heads, 8192 tokens a step)
for a few steps and takes the difference of the median step times: embedding, head and loss cancel.
Model FLOP of the layer: 6 per parameter and token, and causal attention. --quick takes tiny shapes on
the CPU and shows that the script runs.
"""
import json
import os
import shutil
import subprocess
import sys

RECIPES = ("bf16", "fp4_ms_paper", "fp4_fold8", "fp4_fold8_e4m3")
STEPS = 8
SKIPPED = 3  # steps that warm up
SECONDS = 40  # of one run


def config(tokens, recipe, layers, quick):
    model = {"hiddenSize": 4096, "intermediateSize": 11008, "heads": 32, "kvHeads": 32}
    if quick:
        model = {"hiddenSize": 64, "intermediateSize": 128, "heads": 2, "kvHeads": 2}
    return {
        "apiVersion": "nibble/v1",
        "kind": "TrainJob",
        "metadata": {"name": "layer-steps"},
        "seed": 1,
        "model": {"vocabSize": 512, "layers": layers, **model},
        "data": {"path": tokens, "train": [tokens + "/train-000000.bin"],
                 "seqLen": 64 if quick else 2048},
        "schedule": {"steps": STEPS, "microBatch": 4, "globalBatch": 4, "validationBatches": 1},
        "precision": {"recipe": recipe},
        "metrics": {"every": 1, "healthEvery": 0},
    }


def median_step(trainer, run, settings, backend):
    shutil.rmtree(run, ignore_errors=True)
    os.makedirs(run)
    with open(run + "/config.json", "w") as file:
        json.dump(settings, file)
    command = [trainer, "--config", run + "/config.json", "--dir", run, "--backend", backend, "--quiet"]
    try:
        subprocess.run(command, timeout=SECONDS, stderr=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        pass  # the steps it made are in the journal
    seconds, message = [], ""
    with open(run + "/journal.jsonl") as file:
        for line in file:
            record = json.loads(line)
            if record.get("type") == "step":
                seconds.append(record["stepSeconds"])
            message = record.get("message", message)
    shutil.rmtree(run, ignore_errors=True)
    seconds = sorted(seconds[SKIPPED:])
    if not seconds:
        raise RuntimeError(message or "no steps within %d seconds" % SECONDS)
    return seconds[len(seconds) // 2]


def main():
    trainer, tokens, work = sys.argv[1:4]
    quick = "--quick" in sys.argv[4:]
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11008
    flop = 8192 * (6 * layer + 3.5 * 2 * 2048 * 4096)
    result = {}
    for recipe in RECIPES:
        try:
            one, two = (median_step(trainer, work + "/run", config(tokens, recipe, n, quick),
                                    "cpu" if quick else "cuda") for n in (1, 2))
            seconds = two - one
            result[recipe] = {"one_layer_step_ms": one * 1e3, "two_layer_step_ms": two * 1e3,
                              "layer_ms": seconds * 1e3}
            if not quick and seconds > 0:
                result[recipe]["layer_tflops"] = flop / seconds * 1e-12
        except (RuntimeError, OSError) as error:
            result[recipe] = {"error": str(error)}
    base = result["bf16"].get("layer_ms")
    for row in result.values():
        if base and row.get("layer_ms", 0) > 0:
            row["speed_over_bf16"] = base / row["layer_ms"]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
