#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares the loss curves of two runs, reference first, and prints one JSON object.

    compare_curves.py REFERENCE_RUN OTHER_RUN [FIRST_TOLERANCE]

Two backends add the same numbers in another order, so a step's loss differs in its last bits and the
difference grows with training. The tolerance is therefore of two kinds: the first ten steps within
1e-3 relative, where the weights have hardly moved and a wrong kernel shows at once, and the mean of
the last fifty within 2 percent. Runs that round differently give a first tolerance of their own.
Exit 0: within both; 1: not.
"""
import json
import sys

FIRST_STEPS, FIRST_TOLERANCE = 10, 1e-3
LAST_STEPS, LAST_TOLERANCE = 50, 0.02


def read(folder):
    losses, seconds, validation = [], [], []
    with open(folder + "/journal.jsonl") as file:
        for line in file:
            record = json.loads(line)
            if record.get("type") == "step":
                losses.append(record["loss"])
                seconds.append(record["stepSeconds"])
            elif record.get("type") == "validation":
                validation.append(record["loss"])
    return losses, seconds, validation


def mean(values):
    return sum(values) / max(len(values), 1)


def main():
    reference, reference_seconds, reference_validation = read(sys.argv[1])
    other, other_seconds, other_validation = read(sys.argv[2])
    first_tolerance = float(sys.argv[3]) if len(sys.argv) > 3 else FIRST_TOLERANCE
    result = {"steps": [len(reference), len(other)], "passed": False}
    if reference and len(reference) == len(other):
        first = max(abs(a - b) / abs(a) for a, b in zip(reference[:FIRST_STEPS], other[:FIRST_STEPS]))
        last_reference, last_other = mean(reference[-LAST_STEPS:]), mean(other[-LAST_STEPS:])
        last = abs(last_reference - last_other) / last_reference
        result.update(
            first_steps_relative=first, last_steps_relative=last,
            last_mean_loss=[last_reference, last_other],
            validation_loss=[reference_validation[-1:], other_validation[-1:]],
            step_seconds_median=[sorted(s)[len(s) // 2] for s in (reference_seconds, other_seconds)],
            passed=first <= first_tolerance and last <= LAST_TOLERANCE)
    print(json.dumps(result))
    sys.exit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()
