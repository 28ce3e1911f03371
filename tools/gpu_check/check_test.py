#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tests of the GPU check on a machine without one: its numbers on recorded output, and its stages
with programs that play such output.

    check_test.py [BIN]    BIN: folder with nibble-device-bench, whose rows are then read, too
"""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import results
import train_data

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPT = os.path.join(os.path.dirname(HERE), "gpu_check.sh")
BIN = ""

PROBE = """[ RUN      ] CudaMatmul.SumsOfCarriedCodesAreExactWithoutFastAccumulation
probe: mean-shifted, depth 4096, fast: 5120 of 5120 sums inexact, largest relative error 0.0025
probe: mean-shifted, depth 4096, promoted: 0 of 5120 sums inexact, largest relative error 0
[       OK ] CudaMatmul.SumsOfCarriedCodesAreExactWithoutFastAccumulation (1208 ms)
[ RUN      ] CudaMatmul.BlockScaledProductsReadTheirScales
this device has no block-scaled products
[  SKIPPED ] CudaMatmul.BlockScaledProductsReadTheirScales (3 ms)
"""
TESTS = """[ RUN      ] Device.QuantizesToTheBitsOfTheCpu
[       OK ] Device.QuantizesToTheBitsOfTheCpu (801 ms)
[ RUN      ] Cuda/Op.EqualsTheReference/gemm_fp32
[       OK ] Cuda/Op.EqualsTheReference/gemm_fp32 (11 ms)
"""
SKIPPED = """[ RUN      ] Cuda/Op.EqualsTheReference/add
tests/ops/ops_test.cc:144: Skipped
%s

[  SKIPPED ] Cuda/Op.EqualsTheReference/add (0 ms)
"""
FAILURE = """[ RUN      ] Device.ProductsOnCodesAreTheCpus
[  FAILED  ] Device.ProductsOnCodesAreTheCpus, where GetParam() = 3 (20 ms)
[ RUN      ] Device.TensorCoreAttentionIsTheCpus
"""
OPERATIONS = [
    {"backend": "cuda", "device": "NVIDIA H100"},
    {"name": "copy", "shape": {"rows": 8192, "cols": 4096}, "ms": {"median": 0.1},
     "gb_per_s": 2500.0},
    {"name": "quantize_e2m1_rows", "shape": {"rows": 8192, "cols": 4096}, "gb_per_s": 2250.0},
    {"name": "quantize_nvfp4", "shape": {"rows": 8192, "cols": 4096}, "gb_per_s": 2100.0},
    {"name": "attention_forward", "shape": {"head_dim": 64}, "tflops": 200.0},
    {"name": "attention_forward", "shape": {"head_dim": 128}, "tflops": 300.0},
    {"name": "attention_backward", "shape": {"head_dim": 128}, "tflops": 180.0}]
DEVICE = {"name": "NVIDIA H100", "features": ["e2m1", "recipe:bf16"], "refused": {}}
PRODUCTS = [{"name": "gemm_fp8_best", "m": 8192, "ms": 1.0, "share_of_best": 0.97},
            {"name": "gemm_fp8_best", "m": 8192, "ms": 1.0, "share_of_best": 0.96}]


def step(recipe, layers, ms, **more):
    return {"name": "step", "recipe": recipe, "layers": layers, "tokens": 8192,
            "ms": {"median": ms}, "tokens_per_s": 8192e3 / ms, "peak_bytes": 10_000,
            "estimated_bytes": 10_000, **more}


def stack():
    rows = []
    for recipe, ms in (("bf16", 18.0), ("fp4_fold8_e4m3", 12.0), ("fp4_fold8", 15.0)):
        for n in (1, 2):
            ops = {"gemm": 16.0 * n, "rms_norm": 2.0 * n, "head_gemm": 7.0}
            if recipe != "bf16":
                # The norm is in the quantizer.
                ops = {"gemm": 1.0 * n, "quantized_gemm": 7.0 * n, "quantize": 3.0 * n,
                       "head_gemm": 7.0}
                ops["rms_norm"] = 0.0
            rows.append(step(recipe, n, 10 + ms * n, op_ms=ops))
    return rows


def whole():
    return [step("bf16", 24, 130.0, peak_bytes=50_000, estimated_bytes=40_000),
            step("fp4_fold8_e4m3", 24, 100.0, peak_bytes=40_000, estimated_bytes=40_000)]


class Results(unittest.TestCase):
    def test_tests_are_counted_also_when_they_were_stopped(self):
        self.assertEqual(results.gtest_counts(PROBE), {"passed": 1, "failed": 0, "skipped": 1})
        stopped = results.gtest_counts(TESTS + FAILURE)
        self.assertEqual((stopped["passed"], stopped["failed"]), (2, 1))
        self.assertEqual(stopped["failures"], ["Device.ProductsOnCodesAreTheCpus"])
        self.assertEqual(stopped["unfinished"], "Device.TensorCoreAttentionIsTheCpus")

    def test_tests_that_found_no_device_are_told(self):
        for reason in ("backend cuda: no usable device", "on the CPU only: backend cuda: not found"):
            counts = results.gtest_counts(TESTS + SKIPPED % reason)
            self.assertEqual((counts["skipped"], counts["without_device"]), (1, [reason]))
        self.assertNotIn("without_device", results.gtest_counts(TESTS + SKIPPED % "no NCCL"))

    def test_a_fault_takes_no_later_test_with_it(self):
        passed = TESTS + FAILURE
        self.assertIsNone(results.gtest_fault(TESTS, False))
        # A test that fails without a fault leaves the others their say.
        self.assertIsNone(results.gtest_fault(TESTS + FAILURE.splitlines(True)[0] +
                                              FAILURE.splitlines(True)[1], False))
        name, text = results.gtest_fault(passed, True)
        self.assertEqual(name, "Device.ProductsOnCodesAreTheCpus")
        self.assertNotIn("TensorCoreAttention", text)
        name, _ = results.gtest_fault(TESTS + FAILURE.splitlines(True)[2], True)
        self.assertEqual(name, "Device.TensorCoreAttentionIsTheCpus")
        lost = TESTS + "".join(FAILURE.splitlines(True)[:2]) + SKIPPED % "backend cuda: no usable"
        self.assertEqual(results.gtest_fault(lost, False)[0], "Device.ProductsOnCodesAreTheCpus")
        self.assertIsNone(results.gtest_fault(TESTS + SKIPPED % "backend cuda: no usable", False))
        joined = results.gtest_joined(results.gtest_counts(TESTS + FAILURE),
                                      results.gtest_counts(TESTS))
        self.assertEqual((joined["passed"], joined["failed"]), (4, 2))
        self.assertNotIn("unfinished", joined)

    def test_probe_rows(self):
        fast, promoted = results.probe_rows(PROBE)
        self.assertEqual((fast["inputs"], fast["depth"]), ("mean-shifted", 4096))
        self.assertTrue(fast["fast_accumulation"])
        self.assertEqual((fast["inexact_share"], promoted["inexact_share"]), (1, 0))

    def test_a_torn_last_line_is_left_out(self):
        self.assertEqual(results.json_lines('{"a": 1}\nnoise\n{"b": '), [{"a": 1}])

    def test_goals_from_every_stage(self):
        model = train_data.MODELS["7b"][0]
        layers = results.layers_of(stack(), model, 2048)
        self.assertAlmostEqual(layers["bf16"]["layer_ms"], 18)
        self.assertAlmostEqual(layers["fp4_fold8_e4m3"]["speed_over_bf16"], 1.5)
        self.assertAlmostEqual(layers["fp4_fold8_e4m3"]["quantization_share"], 1 / 11)
        self.assertNotIn("quantization_share", layers["bf16"])
        stages = {"layers_7b": {"layers": layers}, "layers_13b": {"layers": layers},
                  "operations": {"rows": OPERATIONS}, "products": {"rows": PRODUCTS},
                  "memory_1.3b": {"rows": whole()}, "whole_model_1.5b": {"rows": whole()}}
        goals = results.goals(stages)
        # 6 x 202,375,168 weights and 7 x 2048 x 4096 of attention, 8192 tokens, in 18 ms.
        flop = 8192 * (6 * 202375168 + 7 * 2048 * 4096)
        self.assertAlmostEqual(goals["bf16_mfu_7b"]["value"], flop / 18e-3 / 989.4e12)
        self.assertEqual(goals["fp4_over_bf16_7b"]["of"], "fp4_fold8_e4m3")
        self.assertTrue(goals["fp4_over_bf16_7b"]["aim_met"])
        self.assertFalse(goals["fp4_over_bf16_13b"]["aim_met"])
        self.assertTrue(goals["quantization_share_of_step_7b"]["met"])
        self.assertFalse(goals["quantization_share_of_step_7b"]["aim_met"])
        self.assertAlmostEqual(goals["quantize_over_copy_bandwidth"]["value"], 0.84)
        self.assertEqual(goals["quantize_over_copy_bandwidth"]["of"], "quantize_nvfp4")
        self.assertEqual(goals["attention_forward_hd128"]["value"], 300)
        self.assertFalse(goals["attention_backward_hd128"]["met"])
        self.assertEqual(goals["fp8_gemm_over_library_best"]["value"], 0.96)
        self.assertAlmostEqual(goals["peak_memory_saved_1.3b"]["value"], 0.2)
        self.assertAlmostEqual(goals["tokens_per_s_1.5b_fp4"]["value"], 81920)
        self.assertIsNone(goals["fp4_over_bf16_1.3b"]["value"])
        self.assertAlmostEqual(
            results.estimate_errors(stages)["memory_1.3b bf16 24 layers"], 0.25)

    def test_a_case_that_was_not_measured_gives_no_goal(self):
        rows = stack()
        rows[2] = {"name": "step", "recipe": "fp4_fold8_e4m3", "layers": 1, "skipped": "no memory"}
        layers = results.layers_of(rows, train_data.MODELS["7b"][0], 2048)
        self.assertEqual(layers["fp4_fold8_e4m3"], {"skipped": "no memory"})
        goal = results.goals({"layers_7b": {"layers": layers}})["fp4_over_bf16_7b"]
        self.assertEqual(goal["of"], "fp4_fold8")


class RealRows(unittest.TestCase):
    def test_rows_of_the_device_bench_have_what_the_goals_need(self):
        program = os.path.join(BIN, "nibble-device-bench")
        if not BIN or not os.path.exists(program):
            self.skipTest("no nibble-device-bench given")
        with tempfile.TemporaryDirectory() as folder:
            config = train_data.bench_config(folder, "tiny")

            def rows(*arguments):
                return results.json_lines(subprocess.run(
                    [program, "--backend", "cpu", *arguments], capture_output=True, text=True,
                    check=True).stdout)

            steps = rows("--config", config["path"], "--recipes", "bf16,fp4_fold8", "--layers",
                         "1,3", "--seconds", "0.01", "--shares")
            layers = results.layers_of(steps, config["model"], config["seq"])
            self.assertIn("quantize", layers["fp4_fold8"]["op_ms"])
            self.assertIn("quantization_share", layers["fp4_fold8"])
            self.assertIn("layer_ms", layers["bf16"])
            self.assertEqual(len(results.estimate_errors({"s": {"rows": steps}})), 4)
            operations = rows("--quick")
            self.assertGreaterEqual(len(results.quantizer_shares(operations)), 5)
            # Head sizes of the quick shapes are 64.
            self.assertTrue(results.find(operations, "attention_forward", head_dim=64))


# Plays the programs of a GPU machine. $0 names which.
PLAYER = r"""#!/usr/bin/env python3
import json, os, shutil, sys, time
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
here = os.path.dirname(os.path.realpath(__file__))
build = os.environ.get("GPU_CHECK_BUILD", "")
def play(what):
    with open(os.path.join(here, what + ".txt")) as file:
        sys.stdout.write(file.read())
if name in os.environ.get("PLAY_HANGS", "").split():
    print("[ RUN      ] Device.Hangs", flush=True)
    time.sleep(600)
if name == "nvidia-smi":
    print("NVIDIA H100 80GB HBM3, 580.1, 9.0, 81559 MiB, 1980 MHz, 700.00 W")
elif name == "nvcc":
    print("Cuda compilation tools, release 13.0, V13.0.88")
elif name == "cmake":
    for target in arguments[arguments.index("--target") + 1:] if "--target" in arguments else []:
        if target in os.environ.get("PLAY_FAILS", "").split():
            sys.exit("error: %s does not compile" % target)
        folder = {"ops_test": "tests/ops", "cuda_matmul_test": "tests/ops",
                  "train_test": "worker/train"}.get(target, "bin")
        target = {"nibble_nccl": "libnibble_nccl.so"}.get(target, target)
        os.makedirs(os.path.join(build, folder), exist_ok=True)
        path = os.path.join(build, folder, target)
        if not os.path.lexists(path):
            os.symlink(os.path.realpath(__file__), path)
elif name == "compute-sanitizer":
    program = arguments[arguments.index("--error-exitcode") + 2:]
    os.execv(program[0], program)
elif name == "nibble-device-bench":
    config = arguments[arguments.index("--config") + 1] if "--config" in arguments else "operations"
    play(os.path.basename(config).replace(".json", ""))
elif name == "nibble-trainer" and arguments[0] == "self-test":
    play("self-test")
elif name == "nibble-trainer":
    folder = arguments[arguments.index("--dir") + 1]
    with open(arguments[arguments.index("--config") + 1]) as file:
        steps = json.load(file)["schedule"]["steps"]
    os.makedirs(folder, exist_ok=True)
    first = 200 if steps > 200 else 0
    with open(os.path.join(folder, "journal.jsonl"), "a") as file:
        file.write(json.dumps({"type": "start", "resumedFromStep": first}) + "\n")
        for i in range(first, steps):
            file.write(json.dumps({"type": "step", "step": i + 1, "loss": 6 - i * 0.01,
                                   "stepSeconds": 0.01}) + "\n")
        file.write(json.dumps({"type": "end", "weightsSha256": "0f"}) + "\n")
else:
    rest = "-" in next((a for a in arguments if a.startswith("--gtest_filter=")), "")[15:]
    again = rest and os.path.exists(os.path.join(here, name + "-again.txt"))
    play(name + "-again" if again else name)
"""


class Script(unittest.TestCase):
    def setUp(self):
        self.temp = tempfile.TemporaryDirectory()
        self.addCleanup(self.temp.cleanup)
        self.out = os.path.join(self.temp.name, "out")
        self.player = os.path.join(self.temp.name, "bin")
        self.gtest = os.path.join(self.temp.name, "gtest")
        os.makedirs(self.player)
        os.makedirs(self.gtest)
        open(os.path.join(self.gtest, "CMakeLists.txt"), "w").close()
        path = os.path.join(self.player, "player")
        with open(path, "w") as file:
            file.write(PLAYER)
        os.chmod(path, 0o755)
        for name in ("nvidia-smi", "nvcc", "cmake", "compute-sanitizer"):
            os.symlink(path, os.path.join(self.player, name))
        rows = {"operations": OPERATIONS, "nibble-matmul-bench": PRODUCTS, "bench-7b": stack(),
                "bench-13b": stack(), "bench-1.3b": stack(), "bench-1.5b": whole(),
                "bench-whole_1.3b": whole(), "bench-tiny": stack()}
        for name, lines in rows.items():
            self.play(name, "".join(json.dumps(line) + "\n" for line in lines))
        self.play("cuda_matmul_test", PROBE)
        self.play("self-test", json.dumps({"devices": [DEVICE], "notes": []}))
        self.play("ops_test", TESTS)
        self.play("train_test", TESTS)

    def play(self, name, text):
        with open(os.path.join(self.player, name + ".txt"), "w") as file:
            file.write(text)

    def start(self, *arguments, path=None, **environment):
        made = {**os.environ, "GPU_CHECK_BUILD": os.path.join(self.temp.name, "build"),
                "PATH": path or self.player + os.pathsep + os.environ["PATH"], **environment}
        return subprocess.Popen([SCRIPT, self.out, *arguments], env=made, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def check(self, *arguments, **environment):
        process = self.start("--gtest", self.gtest, *arguments, **environment)
        text, _ = process.communicate(timeout=120)
        return process.returncode, self.result(), text

    def result(self):
        with open(os.path.join(self.out, "gpu_check.json")) as file:
            return json.load(file)

    def status(self, result):
        return {name: entry["status"] for name, entry in result["stages"].items()}

    def test_without_a_device_it_says_so_and_ends(self):
        os.remove(os.path.join(self.player, "nvidia-smi"))
        code, result, text = self.check()
        if result["device"] is not None:
            self.skipTest("this machine has a GPU")
        self.assertEqual(code, 3, text)
        self.assertTrue(result["status"].startswith("no usable device"), result["status"])
        self.assertLess(result["seconds"], 30)
        self.assertEqual(list(result["stages"]), ["device"])

    def test_every_stage_runs_and_every_goal_has_a_value(self):
        code, result, text = self.check()
        status = self.status(result)
        # PyTorch may be missing here: then its stage alone fails, and says so.
        failed = {name for name, what in status.items() if what != "passed"}
        self.assertLessEqual(failed, {"pytorch"}, text + json.dumps(status, indent=1))
        self.assertEqual(code, 1 if failed else 0)
        for name, goal in result["goals"].items():
            self.assertIsNotNone(goal["value"], name)
        self.assertEqual(result["driver"], "580.1")
        self.assertEqual(result["nvcc"], "13.0")
        self.assertEqual(len(result["stages"]["probe"]["rows"]), 2)
        self.assertEqual(result["stages"]["device"]["architecture"], "90a")
        self.assertEqual(result["stages"]["training"]["bf16"]["steps"], [200, 200])
        self.assertEqual(result["stages"]["self_test"]["features"], DEVICE["features"])
        self.assertIn("cuda_to_cpu", result["stages"]["checkpoints"])
        self.assertEqual(result["stages"]["offload"]["weights"], ["0f", "0f"])
        self.assertTrue(result["stages"]["activations"]["passed"])
        with open(os.path.join(self.out, "gpu_check.log")) as file:
            log = file.read()
        self.assertIn("-DCMAKE_CUDA_ARCHITECTURES=90a-real", log)
        self.assertIn("nibble-matmul-bench", log)

    def test_a_failed_and_a_hanging_stage_lose_nothing_else(self):
        self.play("ops_test", TESTS + FAILURE)
        code, result, _ = self.check("--only", "configure,build,build_tests,device_tests,operations")
        status = self.status(result)
        self.assertEqual(code, 1)
        self.assertIn("Device.ProductsOnCodesAreTheCpus", status["device_tests"])
        self.assertEqual(status["operations"], "passed")
        self.assertIsNotNone(result["goals"]["attention_forward_hd128"]["value"])
        self.play("ops_test", TESTS + SKIPPED % "backend cuda: the plug-in was not found")
        self.play("self-test", json.dumps({"devices": [], "notes": ["backend cuda: no driver"]}))
        self.play("bench-tiny", json.dumps(step("nvfp4_te", 2, 1.0, skipped="an illegal address")))
        code, result, _ = self.check("--only",
                                     "configure,build,build_tests,device_tests,self_test,sanitizer")
        status = self.status(result)
        self.assertIn("the plug-in was not found", status["device_tests"])
        self.assertIn("no driver", status["self_test"])
        self.assertIn("an illegal address", status["sanitizer"])
        code, result, _ = self.check("--only", "products,operations,layers_7b",
                                     PLAY_HANGS="nibble-matmul-bench", GPU_CHECK_SECONDS="14")
        status = self.status(result)
        self.assertEqual(code, 1)
        self.assertEqual(status["operations"], "passed")
        self.assertIn("stopped", status["products"])
        self.assertIn("not run", status["layers_7b"])
        self.assertLess(result["seconds"], 20)

    def test_tests_after_a_fault_run_again_without_it(self):
        self.play("ops_test", TESTS + "%s (CUDA_LAUNCH_BLOCKING=1 names it)\n%s" % tuple(
            FAILURE.splitlines()[:2]) + "\n" + SKIPPED % "backend cuda: no usable device")
        self.play("ops_test-again", TESTS)
        _, result, text = self.check("--only", "configure,build,build_tests,device_tests")
        stage = result["stages"]["device_tests"]
        self.assertEqual(stage["tests"], {"passed": 4, "failed": 1, "skipped": 0, "failures": [
            "Device.ProductsOnCodesAreTheCpus"]}, text)
        self.assertIn("Device.ProductsOnCodesAreTheCpus", stage["alone"])
        self.assertIn("Device.ProductsOnCodesAreTheCpus", stage["status"])

    def test_a_broken_build_ends_it_with_the_compilers_words(self):
        code, result, _ = self.check(PLAY_FAILS="nibble_cuda")
        self.assertEqual(code, 1)
        self.assertIn("nibble_cuda does not compile", result["status"])
        self.assertEqual(result["stages"]["probe"]["status"], "passed")

    def test_killed_it_keeps_what_there_is(self):
        process = self.start("--gtest", self.gtest, PLAY_HANGS="ops_test")
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if os.path.exists(os.path.join(self.out, "gpu_check.json")):
                if self.status(self.result()).get("device_tests") == "running":
                    break
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        status = self.status(self.result())
        self.assertEqual(status["device_tests"], "running")
        self.assertEqual(status["probe"], "passed")
        self.assertEqual(self.result()["status"], "running")

    def test_without_googletest_the_rest_runs(self):
        process = self.start("--only", "configure,build,probe,products")
        process.communicate(timeout=120)
        if os.path.isdir(os.path.join(HERE, "..", "..", ".gpu-check")):
            self.skipTest("GoogleTest's sources are packed here")
        status = self.status(self.result())
        self.assertIn("--pack", status["probe"])
        self.assertEqual(status["products"], "passed")


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        BIN = sys.argv.pop(1)
    unittest.main()
