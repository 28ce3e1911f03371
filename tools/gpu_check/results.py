# SPDX-License-Identifier: Apache-2.0
"""What the programs of a check print, as numbers, and the goals they are held to."""
import json
import re

BF16_PEAK_TFLOPS = 989.4  # dense, H100 SXM data sheet

PROBE = re.compile(r"^probe: (.+), depth (\d+), (fast|promoted): (\d+) of (\d+) sums inexact, "
                   r"largest relative error (\S+)$")


FAULT = "CUDA_LAUNCH_BLOCKING=1 names it"  # of kernels/cuda/cuda_status.h


def json_lines(text):
    """The objects among the lines, in order; other lines and a torn last one are left out."""
    rows = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                rows.append(json.loads(line))
            except ValueError:
                pass
    return rows


def gtest_counts(text):
    """Of a GoogleTest run, finished or not."""
    def names(mark):
        return re.findall(r"^\[ *%s *\] ([^\s,]+).*\(\d+ ms\)$" % mark, text, re.M)
    started = gtest_names(text)
    passed, failed, skipped = names("OK"), names("FAILED"), names("SKIPPED")
    ended = set(passed + failed + skipped)
    counts = {"passed": len(passed), "failed": len(failed), "skipped": len(skipped)}
    if failed:
        counts["failures"] = failed[:20]
    # A test that says it had no backend cuda proves nothing on a machine with a device.
    without = re.findall(r"Skipped\n(.*backend cuda: .*)$", text, re.M)
    if without:
        counts["without_device"] = sorted(set(without))[:4]
    unfinished = [name for name in started if name not in ended]
    if unfinished:
        counts["unfinished"] = unfinished[-1]
    return counts


def gtest_names(text):
    return re.findall(r"^\[ RUN      \] (\S+)", text, re.M)


def gtest_fault(text, crashed):
    """(name, text until its end) of the first failed test of a run in which the device or the process
    was lost, so that later tests say nothing; None of another run."""
    parts = re.split(r"(?m)^(?=\[ RUN      \] )", text)
    lost = crashed or FAULT in text or "without_device" in gtest_counts(text)
    for i, part in enumerate(parts):
        counts = gtest_counts(part)
        if lost and ("unfinished" in counts or counts["failed"]):
            name = re.match(r"\[ RUN      \] (\S+)", part).group(1)
            return name, "".join(parts[:i + 1])
    return None


def gtest_joined(counts, more):
    """Of two runs of different tests; one that the first did not finish has failed."""
    out = {key: counts[key] + more[key] for key in ("passed", "failed", "skipped")}
    failures = counts.get("failures", []) + more.get("failures", [])
    if "unfinished" in counts:
        out["failed"] += 1
        failures.append(counts["unfinished"])
    if failures:
        out["failures"] = failures
    return {**more, **out}


def probe_rows(text):
    """The rows that CudaMatmul.SumsOfCarriedCodesAreExactWithoutFastAccumulation prints."""
    rows = []
    for line in text.splitlines():
        match = PROBE.match(line)
        if match:
            inputs, depth, flag, inexact, sums, error = match.groups()
            rows.append({"inputs": inputs, "depth": int(depth), "fast_accumulation": flag == "fast",
                         "inexact_share": int(inexact) / int(sums),
                         "largest_relative_error": float(error)})
    return rows


def layer_flop(model, tokens, seq):
    """Forward and backward of one layer: 6 per weight and token, and causal attention."""
    hidden, kv = model["hiddenSize"], model["hiddenSize"] // model["heads"] * model["kvHeads"]
    weights = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * model["intermediateSize"]
    return tokens * (6 * weights + 3.5 * 2 * seq * hidden)


def layers_of(rows, model, seq):
    """What one more layer adds to a step, by recipe: embedding, head and loss cancel."""
    out = {}
    by_recipe = {}
    for row in rows:
        if row.get("name") == "step":
            by_recipe.setdefault(row["recipe"], []).append(row)
    for recipe, pair in by_recipe.items():
        skipped = [row["skipped"] for row in pair if "skipped" in row]
        if skipped or len(pair) < 2:
            out[recipe] = {"skipped": (skipped or ["one depth alone was measured"])[0]}
            continue
        low, high = sorted(pair, key=lambda row: row["layers"])[:2]
        count = high["layers"] - low["layers"]
        ms = (high["ms"]["median"] - low["ms"]["median"]) / count
        entry = {"layer_ms": ms, "steps_ms": [low["ms"]["median"], high["ms"]["median"]]}
        if ms > 0:
            entry["layer_tflops"] = layer_flop(model, high["tokens"], seq) / ms * 1e-9
        if "op_ms" in high and "op_ms" in low:
            names = high["op_ms"]
            entry["op_ms"] = {name: (names[name] - low["op_ms"].get(name, 0)) / count
                              for name in names}
        out[recipe] = entry
    base = out.get("bf16", {}).get("layer_ms", 0)
    for entry in out.values():
        if base > 0 and entry.get("layer_ms", 0) > 0:
            entry["speed_over_bf16"] = base / entry["layer_ms"]
    # Quantization is fused with what makes its input: its price is what the operations beside the
    # products take beyond BF16's.
    def beside_products(entry):
        return sum(ms for name, ms in entry["op_ms"].items() if not name.endswith("gemm"))
    bf16 = out.get("bf16", {})
    for recipe, entry in out.items():
        if recipe != "bf16" and "op_ms" in entry and "op_ms" in bf16:
            total = sum(entry["op_ms"].values())
            if total > 0:
                added = beside_products(entry) - beside_products(bf16)
                entry["quantization_share"] = added / total
    return out


def find(rows, name, **where):
    return [row for row in rows if row.get("name") == name and "skipped" not in row and
            all((row.get("shape") or {}).get(k) == v for k, v in where.items())]


def step_of(rows, recipe):
    for row in rows:
        if row.get("recipe") == recipe and "skipped" not in row and "ms" in row:
            return row
    return {}


def quantizer_shares(rows):
    """Bandwidth of each quantize kernel over that of a copy on the same device."""
    copies = find(rows, "copy")
    if not copies:
        return {}
    copy = copies[0]["gb_per_s"]
    return {row["name"]: row["gb_per_s"] / copy for row in rows
            if row.get("name", "").startswith("quantize_") and "gb_per_s" in row}


# name, must, aim, unit; at least these, but for shares of the step, which are at most.
GOALS = (
    ("bf16_mfu_7b", 0.52, 0.62, "of 989.4 TFLOP/s"),
    ("fp4_over_bf16_7b", 1.40, 1.50, "x, a layer"),
    ("fp4_over_bf16_1.3b", 1.20, 1.34, "x, a layer"),
    ("fp4_over_bf16_13b", 1.45, 1.55, "x, a layer"),
    ("tokens_per_s_1.5b_bf16", 60e3, 65e3, "tokens/s"),
    ("tokens_per_s_1.5b_fp4", 75e3, 85e3, "tokens/s"),
    ("fp8_gemm_over_library_best", 0.95, 1.0, "x, worst shape"),
    ("quantize_over_copy_bandwidth", 0.80, 0.92, "x, slowest kernel"),
    ("quantization_share_of_step_7b", 0.12, 0.07, "at most"),
    ("attention_forward_hd128", 250, 400, "TFLOP/s"),
    ("attention_backward_hd128", 200, 300, "TFLOP/s"),
    ("peak_memory_saved_1.3b", 0.09, 0.25, "of BF16's"),
)
FP4 = ("fp4_fold8_e4m3", "fp4_fold8")  # the second where the first was not measured


def goal_values(stages):
    """Name to (value, recipe or detail). `stages`: the stages of a result, any of them absent."""
    values = {}

    def rows(stage):
        return stages.get(stage, {}).get("rows", [])

    def layers(stage):
        return stages.get(stage, {}).get("layers", {})

    bf16 = layers("layers_7b").get("bf16", {}).get("layer_tflops")
    if bf16:
        values["bf16_mfu_7b"] = bf16 / BF16_PEAK_TFLOPS, "bf16"
    for size in ("7b", "1.3b", "13b"):
        measured = layers("layers_" + size)
        for recipe in FP4:
            if "speed_over_bf16" in measured.get(recipe, {}):
                best = max((r for r in FP4 if "speed_over_bf16" in measured.get(r, {})),
                           key=lambda r: measured[r]["speed_over_bf16"])
                values["fp4_over_bf16_" + size] = measured[best]["speed_over_bf16"], best
                break
    for recipe in FP4:
        share = layers("layers_7b").get(recipe, {}).get("quantization_share")
        if share is not None:
            values.setdefault("quantization_share_of_step_7b", (share, recipe))
    whole = rows("whole_model_1.5b")
    for name, recipes in (("bf16", ("bf16",)), ("fp4", FP4)):
        for recipe in recipes:
            if "tokens_per_s" in step_of(whole, recipe):
                values.setdefault("tokens_per_s_1.5b_" + name,
                                  (step_of(whole, recipe)["tokens_per_s"], recipe))
    shares = [row["share_of_best"] for row in rows("products") if "share_of_best" in row]
    if shares:
        values["fp8_gemm_over_library_best"] = min(shares), "%d shapes" % len(shares)
    quantizers = quantizer_shares(rows("operations"))
    if quantizers:
        slowest = min(quantizers, key=quantizers.get)
        values["quantize_over_copy_bandwidth"] = quantizers[slowest], slowest
    for way in ("forward", "backward"):
        found = find(rows("operations"), "attention_" + way, head_dim=128)
        if found:
            values["attention_%s_hd128" % way] = found[0]["tflops"], "causal, 2048 tokens"
    memory = rows("memory_1.3b")
    base = step_of(memory, "bf16").get("peak_bytes")
    for recipe in FP4:
        peak = step_of(memory, recipe).get("peak_bytes")
        if base and peak:
            values.setdefault("peak_memory_saved_1.3b", (1 - peak / base, recipe))
    return values


def goals(stages):
    values = goal_values(stages)
    out = {}
    for name, must, aim, unit in GOALS:
        goal = {"must": must, "aim": aim, "unit": unit, "value": None, "met": None}
        if name in values:
            value, detail = values[name]
            at_most = aim < must
            goal.update(value=value, of=detail, met=value <= must if at_most else value >= must,
                        aim_met=value <= aim if at_most else value >= aim)
        out[name] = goal
    return out


def estimate_errors(stages):
    """Measured peak over the estimate, less one, of every measured step."""
    out = {}
    for stage, entry in stages.items():
        for row in entry.get("rows", []):
            if row.get("estimated_bytes") and row.get("peak_bytes"):
                name = "%s %s %s layers" % (stage, row["recipe"], row["layers"])
                out[name] = row["peak_bytes"] / row["estimated_bytes"] - 1
    return out
