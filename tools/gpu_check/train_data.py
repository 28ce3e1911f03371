#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Token shards and run configs for tools/gpu_check.sh.

    train_data.py FOLDER

`threads` of the CPU in the run configs; 0: all. Writes FOLDER/tokens/{train,val}-000000.bin (docs/reference/file-formats-tokens.md): words of a fixed
random dictionary joined by a second-order rule, so that a model has something to learn and the same
bytes come out everywhere. Writes FOLDER/RECIPE.json, the run config of each recipe compared, and
FOLDER/resume.json, which goes on where bf16 ends, FOLDER/offload.json, bf16 with the moments in
host memory, and FOLDER/activations.json, ACTIVATIONS_RECIPE with activations in BF16.
"""
import array
import json
import os
import sys

VOCABULARY = 512
STEPS = 200
RESUMED_STEPS = 4
RECIPES = ("bf16", "fp4_ms_paper", "fp4_fold8_e4m3")
ACTIVATIONS_RECIPE = "fp4_fold8_e4m3"

# Models whose steps are timed: sizes, tokens of a window, windows of a micro-batch and of a step,
# and for stacks of layers the depths whose difference is a layer. Stacks have a small vocabulary.
# Several micro-batches to an update, as real runs have: with one, the optimizer's traffic,
# which no recipe changes, would weigh on every ratio.
LLAMA_7B = {"vocabSize": VOCABULARY, "hiddenSize": 4096, "intermediateSize": 11008, "layers": 2,
            "heads": 32, "kvHeads": 32}
MODELS = {
    "7b": (LLAMA_7B, 2048, 4, 16, "1,2"),
    "13b": ({**LLAMA_7B, "hiddenSize": 5120, "intermediateSize": 13824, "heads": 40, "kvHeads": 40},
            2048, 4, 16, "1,2"),
    # Small layers: more of them, so that the difference is not noise.
    "1.3b": ({**LLAMA_7B, "hiddenSize": 2048, "intermediateSize": 5504, "heads": 16, "kvHeads": 16},
             2048, 4, 16, "2,6"),
    # The shape of Qwen2.5-1.5B, which llmq's figures are of.
    "1.5b": ({"vocabSize": 151936, "hiddenSize": 1536, "intermediateSize": 8960, "layers": 28,
              "heads": 12, "kvHeads": 2, "tiedEmbeddings": True}, 1024, 8, 64, "28"),
    # Whole, with the batch at which BF16 takes about what the paper's table has for it.
    "whole_1.3b": ({"preset": "llama2-1.3b", "vocabSize": 32000}, 2048, 4, 4, "24"),
    "tiny": ({"vocabSize": VOCABULARY, "hiddenSize": 128, "intermediateSize": 256, "layers": 2,
              "heads": 2, "kvHeads": 1}, 64, 2, 4, "2"),
}


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


def config(folder, recipe, threads=0):
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
        "run": {"threads": threads},
    }


def write(folder, threads=0):
    folder = os.path.abspath(folder)
    os.makedirs(os.path.join(folder, "tokens"), exist_ok=True)
    write_shard(os.path.join(folder, "tokens", "train-000000.bin"), tokens(400_000, 1))
    write_shard(os.path.join(folder, "tokens", "val-000000.bin"), tokens(20_000, 2))
    for recipe in RECIPES:
        with open(os.path.join(folder, recipe + ".json"), "w") as file:
            json.dump(config(folder, recipe, threads), file, indent=1)
    longer = config(folder, "bf16", threads)
    longer["schedule"]["steps"] += RESUMED_STEPS
    with open(os.path.join(folder, "resume.json"), "w") as file:
        json.dump(longer, file, indent=1)
    offloaded = config(folder, "bf16", threads)
    offloaded["memory"] = {"offloadOptimizer": True}
    with open(os.path.join(folder, "offload.json"), "w") as file:
        json.dump(offloaded, file, indent=1)
    narrow = config(folder, ACTIVATIONS_RECIPE, threads)
    narrow["memory"] = {"activations": "bf16"}
    with open(os.path.join(folder, "activations.json"), "w") as file:
        json.dump(narrow, file, indent=1)


def bench_config(folder, name, activations="bf16"):
    """Writes the config of nibble-device-bench for one of MODELS, every recipe's activations alike."""
    folder = os.path.abspath(folder)
    if not os.path.isdir(os.path.join(folder, "tokens")):
        write(folder)
    model, seq, micro, whole, depths = MODELS[name]
    made = config(folder, "bf16")
    made["metadata"]["name"] = "bench-" + name.replace(".", "-").replace("_", "-")
    made["model"] = model
    made["data"]["seqLen"] = seq
    made["schedule"].update(microBatch=micro, globalBatch=whole)
    made["memory"] = {"activations": activations}
    path = os.path.join(folder, "bench-%s.json" % name)
    with open(path, "w") as file:
        json.dump(made, file, indent=1)
    return {"path": path, "model": model, "seq": seq, "depths": depths}


def resumed(journal):
    """Losses before and after a run was taken up again; raises where it was not."""
    steps = {}
    resumed_from = 0
    with open(journal) as file:
        for line in file:
            record = json.loads(line)
            if record.get("type") == "start":
                resumed_from = record.get("resumedFromStep", 0)
            if record.get("type") == "step":
                steps[record["step"]] = record["loss"]
    last = STEPS + RESUMED_STEPS
    if resumed_from != STEPS or last not in steps:
        raise ValueError("resumed from step %s, last step %s" % (resumed_from, max(steps)))
    before, after = steps[STEPS], steps[last]
    if abs(after - before) > 0.2 * before:
        raise ValueError("loss %g at step %d, %g at step %d" % (before, STEPS, after, last))
    return {"loss_before": before, "loss_after": after}


def last_weights(journal):
    """The fingerprint of the weights that a run ended with."""
    with open(journal) as file:
        ends = [record for record in map(json.loads, file) if record.get("type") == "end"]
    if not ends or not ends[-1].get("weightsSha256"):
        raise ValueError("%s: %s" % (journal, ends[-1].get("message") if ends else "no end"))
    return ends[-1]["weightsSha256"]


def main():
    write(sys.argv[1])


if __name__ == "__main__":
    main()
