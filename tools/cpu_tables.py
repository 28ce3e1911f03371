#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tables of docs/performance/cpu.md from the JSON of nibble-bench.

usage: tools/cpu_tables.py FILE.json...     Markdown on standard output, one section per file

Each file is what `nibble-bench NAME --json` printed. Ratios: median (p10-p90 of the rounds).
"""
import json
import sys

PEERS = ("openblas_fp32", "nibble_fp32", "onednn_fp32", "onednn_int8")
GROUPS = (("int8_x_e2m1", "int8 x E2M1"), ("e2m1_group128", "groups of 128"),
          ("e2m1_group32_mxfp4", "groups of 32 (MXFP4)"),
          ("e2m1_group16_nvfp4", "groups of 16 (NVFP4)"))
STEP_RATIOS = ("ratio_vs_fp32", "ratio_vs_one_thread", "ratio_vs_pytorch", "cpu_ratio_vs_fp32",
               "cpu_ratio_vs_pytorch")
LEAST_SHARE = 0.01  # of operations in the table of shares


def short(value):
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def ratio(row, key):
    """Median and spread; a dash where the row has no such ratio."""
    if row is None or key not in row:
        return "–"
    spread = ""
    if key + "_p10" in row:
        spread = f" ({row[key + '_p10']:.2f}–{row[key + '_p90']:.2f})"
    return f"{row[key]:.2f}{spread}"


def table(heads, rows):
    print("| " + " | ".join(heads) + " |")
    print("| " + " | ".join("---" for _ in heads) + " |")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def by_shape(results):
    """[(shape, {name: row})] in the order of the file."""
    shapes = []
    for row in results:
        if not shapes or shapes[-1][0] != row["shape"]:
            shapes.append((row["shape"], {}))
        shapes[-1][1][row["name"]] = row
    return shapes


def gemm(data):
    heads = ["M x N x K", "OpenBLAS", "our FP32", "oneDNN FP32", "oneDNN int8", "E2M1 x E2M1 packed",
             "whole call", "ratio, packed", "ratio, whole call", "packed to oneDNN int8", "n"]
    rows, groups = [], []
    for shape, names in by_shape(data["results"]):
        label = f"{shape['m']}x{shape['n']}x{shape['k']}"
        packed, whole = names.get("e2m1_x_e2m1_packed"), names.get("e2m1_x_e2m1")
        gops = [short(names[p]["gops"]) if p in names else "–" for p in PEERS]
        gops += [short(r["gops"]) if r else "–" for r in (packed, whole)]
        count = str(packed["ms"]["n"]) if packed else "–"
        rows.append([label] + gops + [ratio(packed, "ratio_vs_openblas"),
                                      ratio(whole, "ratio_vs_openblas"),
                                      ratio(packed, "ratio_vs_onednn_int8"), count])
        if any(name in names for name, _ in GROUPS[1:]):
            cells = [ratio(names.get(name + "_packed"), "ratio_vs_openblas") + " / " +
                     ratio(names.get(name), "ratio_vs_openblas").split(" ")[0]
                     for name, _ in GROUPS]
            groups.append([label] + cells)
    table(heads, rows)
    if groups:
        table(["M x N x K"] + [title for _, title in GROUPS], groups)


def linear(data):
    recipes = []
    for row in data["results"]:
        if row["name"] != "openblas_fp32" and row["name"] not in recipes:
            recipes.append(row["name"])
    rows = []
    for shape, names in by_shape(data["results"]):
        base = names.get("openblas_fp32")
        cells = [f"{shape['tokens']}x{shape['in']}x{shape['out']}",
                 short(base["ms"]["median"]) if base else "–"]
        cells += [ratio(names.get(name), "ratio_vs_openblas") for name in recipes]
        last = names.get("fp4_fold4")
        cells.append(f"{short(last['quantize_ms']['median'])} / {short(last['gemm_ms']['median'])}"
                     if last else "–")
        cells.append(str(next(iter(names.values()))["ms"]["n"]))
        rows.append(cells)
    table(["tokens x in x out", "OpenBLAS ms"] + recipes +
          ["fold4 quantize / products ms", "n"], rows)


def quantize(data):
    table(["name", "quantizer", "ms", "GB/s of the source", "ns per element", "ratio to a copy", "n"],
          [[row["name"], row["shape"].get("quantizer", row.get("quantizer", "")),
            short(row["ms"]["median"]), short(row.get("source_gb_per_s")),
            short(row.get("ns_per_element")), short(row.get("ratio_vs_copy")),
            str(row["ms"]["n"])] for row in data["results"]])


def attention(data):
    def label(shape):
        return "x".join(str(value) for value in shape.values())
    table(["name", "batch x sequence x heads x head size", "threads", "ms", "GFLOP/s",
           "share of FP32 peak", "n"],
          [[row["name"], label(row["shape"]), str(row["threads"]), short(row["ms"]["median"]),
            short(row.get("gflops")), short(row.get("share_of_fp32_peak")), str(row["ms"]["n"])]
           for row in data["results"]])


def step(data):
    models = []
    for row in data["results"]:
        if row["shape"]["model"] not in models:
            models.append(row["shape"]["model"])
    for model in models:
        rows = [row for row in data["results"] if row["shape"]["model"] == model]
        keys = [key for key in STEP_RATIOS if any(key in row for row in rows)]
        print(f"`{model}`\n")
        table(["name", "threads", "ms", "processor ms", "tokens/s", "GFLOP/s",
               "share of FP32 peak"] + [key.replace("_", " ") for key in keys] + ["n"],
              [[row["name"], str(row["threads"]), short(row["ms"]["median"]),
                short(row["cpu_ms"]["median"]), short(row.get("tokens_per_s")),
                short(row.get("gflops")), short(row.get("share_of_fp32_peak"))] +
               [ratio(row, key) for key in keys] + [str(row["ms"]["n"])] for row in rows])
        shared = [row for row in rows if "share_by_op" in row]
        threads = max((row["threads"] for row in shared), default=0)
        shared = [row for row in shared if row["threads"] == threads]
        ops = []
        for row in shared:
            ops += [op for op, share in row["share_by_op"].items()
                    if share >= LEAST_SHARE and op not in ops]
        print("Milliseconds of the median step by operation (those above one percent somewhere):\n")
        table(["recipe"] + ops,
              [[row["name"]] + [short(row["share_by_op"].get(op, 0) * row["ms"]["median"])
                                for op in ops] for row in shared])


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    kinds = {"gemm": gemm, "linear": linear, "quantize": quantize, "attention": attention,
             "step": step}
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        machine = data["machine"]
        isa = data.get("options", {}).get("isa", "native")
        print(f"**{data['benchmark']}**, {machine['code GEMM']}"
              f"{' (--isa avx2)' if isa == 'avx2' else ''}, {machine['cpu']}, load "
              f"{machine['load_average']}, commit {machine['commit']}, {machine['date'][:10]}\n")
        kinds[data["benchmark"]](data)


if __name__ == "__main__":
    main()
