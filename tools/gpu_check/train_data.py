#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Token shards and run configs for the training comparison of tools/gpu_check.sh.

    train_data.py FOLDER

Writes FOLDER/tokens/{train,val}-000000.bin (docs/reference/file-formats-tokens.md): words of a fixed
random dictionary joined by a second-order rule, so that a model has something to learn and the same
bytes come out everywhere. Writes FOLDER/RECIPE.json, the run config of each recipe compared.
"""
import array
import json
import os
import sys

VOCABULARY = 512
STEPS = 200
RECIPES = ("bf16", "fp4_ms_paper", "fp4_fold8_e4m3")


class Random:
    """The linear congruential generator of Numerical Recipes: the same on every machine."""

    def __init__(self, seed):
        self.state = seed

    def below(self, limit):
        self.state = (self.state * 1664525 + 1013904223) % (1 << 32)
        return (self.state >> 8) % limit


def tokens(count, seed):
    words = Random(7)
    dictionary = [[words.below(VOCABULARY) for _ in range(2 + words.below(6))] for _ in range(900)]
    random = Random(seed)
    out = array.array("H")
    word = 0
    while len(out) < count:
        out.extend(dictionary[word])
        step = random.below(8)
        word = (word * 31 + 17 + step * step) % len(dictionary)
    return out[:count]


def write_shard(path, ids):
    header = array.array("i", [20240520, 1, len(ids)] + [0] * 253)
    with open(path, "wb") as file:
        header.tofile(file)
        ids.tofile(file)


def config(folder, recipe):
    return {
        "apiVersion": "nibble/v1",
        "kind": "TrainJob",
        "metadata": {"name": "gpu-check-" + recipe.replace("_", "-")},
        "seed": 1234,
        "model": {"vocabSize": VOCABULARY, "hiddenSize": 256, "intermediateSize": 704, "layers": 4,
                  "heads": 4, "kvHeads": 2},
        "data": {"path": os.path.join(folder, "tokens"), "seqLen": 128},
        "optimizer": {"peakLr": 0.001},
        "schedule": {"steps": STEPS, "microBatch": 8, "globalBatch": 8, "validateEvery": 50,
                     "validationBatches": 8},
        "precision": {"recipe": recipe},
        "metrics": {"every": 1, "healthEvery": 0},
    }


def main():
    folder = os.path.abspath(sys.argv[1])
    os.makedirs(os.path.join(folder, "tokens"), exist_ok=True)
    write_shard(os.path.join(folder, "tokens", "train-000000.bin"), tokens(400_000, 1))
    write_shard(os.path.join(folder, "tokens", "val-000000.bin"), tokens(20_000, 2))
    for recipe in RECIPES:
        with open(os.path.join(folder, recipe + ".json"), "w") as file:
            json.dump(config(folder, recipe), file, indent=1)


if __name__ == "__main__":
    main()
