#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The stages of tools/gpu_check.sh, which says what this is for and how to call it."""
import argparse
import datetime
import glob
import os
import shutil
import signal
import sys
import time

import results
import toolkit
import train_data
from stages import StageError, Stages

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
BUILD = os.environ.get("GPU_CHECK_BUILD") or os.path.join(ROOT, "build", "gpu-check")
PACKED_GTEST = os.path.join(ROOT, ".gpu-check", "googletest")
SECONDS = 570
EXIT_FAILED, EXIT_USAGE, EXIT_NO_DEVICE = 1, 2, 3

PROGRAMS = ["nibble_cuda", "nibble-trainer", "nibble-device-bench", "nibble-matmul-bench"]
TESTS = ["ops_test", "train_test"]
CHECK_RECIPES = ("bf16", "fp4_ms_paper", "fp4_fold8_e4m3")
# Of the first losses with activations in BF16; on a CPU they differ by up to 1.4e-3.
ROUNDED_TOLERANCE = "5e-3"
LAYER_RECIPES = "bf16,fp4_fold8_e4m3"


class Check:
    def __init__(self, stages, gtest):
        self.stages = stages
        self.gtest = gtest  # "": no tests
        self.only = set()  # names of stages; empty: all
        self.work = os.path.join(BUILD, "training")
        self.background = {}  # name -> process
        self.result = stages.result
        self.result.update(
            date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            commit=toolkit.output(["git", "describe", "--always", "--dirty"], ROOT) or "unknown",
            device=None, driver=None, nvcc=None, goals=results.goals({}))

    # --- the machine ------------------------------------------------------------------------------

    def find_device(self, entry):
        device = toolkit.device()
        if device is None:
            raise StageError("nvidia-smi names no GPU")
        self.result.update(device=device["name"], driver=device["driver_version"])
        entry.update(device)
        self.architecture = device["architecture"]
        nvcc = toolkit.nvcc()
        if nvcc is None:
            raise StageError("nvcc not found on PATH or in /usr/local/cuda/bin")
        self.result["nvcc"] = toolkit.nvcc_version(nvcc)
        self.environment = toolkit.environment(nvcc, os.path.join(BUILD, "libraries"))
        self.environment["NIBBLE_CUDA_PLUGIN"] = self.program("libnibble_cuda.so")

    def program(self, name):
        return os.path.join(BUILD, "bin", name)

    def run(self, command, limit):
        return self.stages.run(command, limit, cwd=ROOT, env=self.environment)

    def must(self, command, limit):
        return self.stages.must(command, limit, cwd=ROOT, env=self.environment)

    # --- build ------------------------------------------------------------------------------------

    def configure(self, entry):
        tests = "ON" if self.gtest else "OFF"
        os.makedirs(BUILD, exist_ok=True)
        cache = os.path.join(BUILD, "CMakeCache.txt")
        if os.path.exists(cache):
            os.remove(cache)  # what was found on another machine does not hold here
        self.must(["cmake", "-B", BUILD, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                   "-DCMAKE_CXX_FLAGS_RELEASE=-O2", "-DNIBBLE_SERVICE=OFF", "-DNIBBLE_CUDA=ON",
                   "-DNIBBLE_TESTS=" + tests, "-DNIBBLE_WERROR=OFF", "-DNIBBLE_GTEST_SOURCE_DIR=" + (self.gtest or ""),
                   "-DCMAKE_CUDA_ARCHITECTURES=%s-real" % self.architecture]
                  + toolkit.cmake_hints(self.environment), 120)
        # PyTorch's speed while the compiler works: nothing of ours is timed yet.
        if not self.only or "pytorch" in self.only:
            self.background["torch"] = self.stages.start(
                [sys.executable, "tools/gpu_check/torch_peers.py"], cwd=ROOT, env=self.environment)

    def build(self, targets, limit):
        def work(entry):
            self.must(["nice", "cmake", "--build", BUILD, "--target"] + targets, limit)
        return work

    def with_gtest(self, work):
        def refuse(entry):
            raise StageError("no GoogleTest sources here; tools/gpu_check.sh --pack on a machine that "
                             "has them, and bring .gpu-check")
        return work if self.gtest else refuse

    def probe(self, entry):
        code, text = self.run([os.path.join(BUILD, "tests", "ops", "cuda_matmul_test")], 40)
        entry["rows"] = results.probe_rows(text)
        entry["tests"] = results.gtest_counts(text)
        self.judge(code, entry["tests"])

    @staticmethod
    def judge(code, tests):
        if code is None:
            raise StageError("stopped at its limit in %s" % tests.get("unfinished", "no test"))
        if code != 0 or tests["failed"] or tests.get("unfinished"):
            raise StageError("exit code %d, %d tests failed: %s" % (
                code, tests["failed"],
                ", ".join(tests.get("failures", [tests.get("unfinished", "?")]))))
        if "without_device" in tests:
            raise StageError("skipped: " + " | ".join(tests["without_device"]))
        if tests["passed"] == 0:
            raise StageError("every test was skipped")

    def gtest_stage(self, folder, name, selection, limit):
        def work(entry):
            code, entry["tests"] = self.tests(os.path.join(BUILD, folder, name), selection, limit,
                                              entry)
            self.judge(code, entry["tests"])
        return work

    def tests(self, program, selection, limit, entry):
        """Runs tests. A fault of the device or a crash ends those after it, too: they run again
        without it, and it runs once more alone, where every launch answers for itself."""
        end = time.monotonic() + limit
        done, total = [], {"passed": 0, "failed": 0, "skipped": 0}
        while True:
            chosen = selection + ("-" + ":".join(done) if done else "")
            code, text = self.run([program, "--gtest_filter=" + chosen],
                                  max(1, end - time.monotonic()))
            fault = results.gtest_fault(text, code not in (None, 0, 1))
            if fault is None or fault[0] in done or time.monotonic() > end:
                return code, results.gtest_joined(total, results.gtest_counts(text))
            name, text = fault
            total = results.gtest_joined(total, results.gtest_counts(text))
            done += results.gtest_names(text)
            if len(entry.setdefault("alone", {})) < 3:
                _, text = self.alone([program, "--gtest_filter=" + name])
                entry["alone"][name] = text.strip()[-800:]

    def alone(self, command):
        """A command that failed once more, slowly: a fault is named by the operation it is of."""
        return self.stages.run(command, 30, cwd=ROOT,
                               env={**self.environment, "CUDA_LAUNCH_BLOCKING": "1"})

    def collect_torch(self, entry):
        process = self.background.pop("torch", None)
        if process is None:
            raise StageError("configure did not start it")
        code, text = self.stages.finish(process, 60)
        entry["rows"] = results.json_lines(text)
        if code != 0:
            raise StageError("ended early: %s" % text.strip()[-300:])

    def nccl(self, entry):
        if not glob.glob(self.program("libnibble_nccl.so")):
            self.must(["cmake", "--build", BUILD, "--target", "nibble_nccl"], 60)
        self.gtest_stage("worker/train", "train_test", "Communicator.Nccl*OnADevice", 30)(entry)

    def self_test(self, entry):
        """What a worker asks of this GPU before it offers it."""
        text = self.must([self.program("nibble-trainer"), "self-test", "--backend", "cuda", "--json"],
                         60)
        proof = (results.json_lines(text) or [{}])[-1]
        if not proof.get("devices"):
            raise StageError("no device: %s" % ", ".join(proof.get("notes", ["no answer"])))
        device = proof["devices"][0]
        entry.update({key: device[key] for key in ("name", "features", "refused")})

    # --- training ---------------------------------------------------------------------------------

    def trainer(self, config, folder, backend):
        return [self.program("nibble-trainer"), "--config",
                os.path.join(self.work, config + ".json"), "--dir",
                os.path.join(self.work, folder), "--backend", backend, "--quiet"]

    def start_cpu_training(self, entry):
        """The CPU's curves, one after the other, while the GPU is tested."""
        shutil.rmtree(self.work, ignore_errors=True)
        entry["threads_each"] = max(1, (os.cpu_count() or 1) // 2 // len(CHECK_RECIPES))
        train_data.write(self.work, entry["threads_each"])
        for recipe in CHECK_RECIPES:
            self.background[recipe] = self.stages.start(
                self.trainer(recipe, recipe + "-cpu", "cpu"), cwd=ROOT,
                env=self.environment)

    def training(self, entry):
        for recipe in CHECK_RECIPES:
            code, text = self.run(self.trainer(recipe, recipe + "-cuda", "cuda"), 60)
            entry[recipe] = {"cuda": "passed" if code == 0 else text.strip()[-300:]}
            if code not in (None, 0):
                _, text = self.alone(self.trainer(recipe, recipe + "-again", "cuda"))
                entry[recipe]["alone"] = text.strip()[-300:]
        for recipe in CHECK_RECIPES:
            process = self.background.pop(recipe, None)
            if process is None:
                raise StageError("the CPU's runs were not started")
            self.stages.finish(process, 90)
        failed = []
        for recipe in CHECK_RECIPES:
            code, text = self.run([sys.executable, "tools/gpu_check/compare_curves.py",
                                   os.path.join(self.work, recipe + "-cpu"),
                                   os.path.join(self.work, recipe + "-cuda")], 20)
            entry[recipe].update((results.json_lines(text) or [{"passed": False}])[-1])
            if code != 0:
                failed.append(recipe)
        if failed:
            raise StageError("loss curves differ: " + ", ".join(failed))

    def checkpoints(self, entry):
        """The last checkpoint of each backend goes on training on the other."""
        for source, target in (("cuda", "cpu"), ("cpu", "cuda")):
            folder = "resume-" + target
            shutil.copytree(os.path.join(self.work, "bf16-" + source),
                            os.path.join(self.work, folder))
            self.must(self.trainer("resume", folder, target), 40)
            entry[source + "_to_" + target] = train_data.resumed(
                os.path.join(self.work, folder, "journal.jsonl"))

    def offload(self, entry):
        """Moments in host memory on lanes of their own: the same weights, bit for bit."""
        self.must(self.trainer("offload", "offload-cuda", "cuda"), 60)
        weights = [train_data.last_weights(os.path.join(self.work, run, "journal.jsonl"))
                   for run in ("bf16-cuda", "offload-cuda")]
        entry["weights"] = weights
        if weights[0] != weights[1]:
            raise StageError("offloaded moments gave other weights")

    def activations(self, entry):
        """Activations in BF16: the curve of FP32 ones, within the roundings."""
        self.must(self.trainer("activations", "activations-cuda", "cuda"), 60)
        code, text = self.run([sys.executable, "tools/gpu_check/compare_curves.py",
                               os.path.join(self.work, train_data.ACTIVATIONS_RECIPE + "-cuda"),
                               os.path.join(self.work, "activations-cuda"),
                               ROUNDED_TOLERANCE], 20)
        entry.update((results.json_lines(text) or [{"passed": False}])[-1])
        if code != 0:
            raise StageError("the loss curve is not that of FP32 activations")

    # --- speed ------------------------------------------------------------------------------------

    def bench(self, arguments, limit, entry):
        command = [self.program("nibble-device-bench"), "--backend", "cuda"] + arguments
        code, text = self.run(command, limit)
        entry["rows"] = [row for row in results.json_lines(text) if "name" in row]
        if results.FAULT in text:
            entry["alone"] = self.alone(command)[1].strip()[-800:]
        if code is None:
            entry["status"] = "stopped at its limit; rows so far are kept"
        elif code != 0 or not entry["rows"]:
            raise StageError(text.strip()[-400:])
        self.measured(entry["rows"])

    @staticmethod
    def measured(rows):
        """Cases that fail are rows, too."""
        skipped = ["%s: %s" % (row.get("recipe", row["name"]), row["skipped"])
                   for row in rows if "skipped" in row]
        if skipped:
            raise StageError("not measured: " + " | ".join(skipped)[:600])

    def operations(self, entry):
        self.bench([], 75, entry)
        entry["over_copy_bandwidth"] = results.quantizer_shares(entry["rows"])

    def products(self, entry):
        code, text = self.run([self.program("nibble-matmul-bench")], 40)
        entry["rows"] = results.json_lines(text)
        if code is None:
            entry["status"] = "stopped at its limit; rows so far are kept"
        elif code != 0:
            raise StageError(text.strip()[-400:])
        self.measured(entry["rows"])

    def layers(self, name, limit, recipes=LAYER_RECIPES):
        def work(entry):
            config = train_data.bench_config(self.work, name)
            try:
                self.bench(["--config", config["path"], "--recipes", recipes, "--layers",
                            config["depths"], "--seconds", "1.5", "--shares"], limit, entry)
            finally:
                entry["layers"] = results.layers_of(entry.get("rows", []), config["model"],
                                                    config["seq"])
        return work

    def whole(self, name, seconds, limit):
        def work(entry):
            config = train_data.bench_config(self.work, name)
            self.bench(["--config", config["path"], "--recipes", "bf16,fp4_fold8_e4m3",
                        "--seconds", str(seconds)], limit, entry)
        return work

    def sanitizer(self, entry):
        if shutil.which("compute-sanitizer", path=self.environment["PATH"]) is None:
            raise StageError("compute-sanitizer not found")
        config = train_data.bench_config(self.work, "tiny")
        # In the tests every buffer is an allocation of its own; those of a run lie in one.
        program = os.path.join(BUILD, "tests", "ops", "ops_test")
        tests = [program, "--gtest_filter=Device*:Cuda/Op.EqualsTheReference/*"]
        # Of blocks with tiles in shared memory and copies under way.
        races = [program, "--gtest_filter=Device.TensorCore*:Device.Quantizes*:Device.Updates*"]
        steps = [self.program("nibble-device-bench"), "--backend", "cuda", "--config",
                 config["path"], "--recipes", "fp4_ms_paper,fp4_fold8_e4m3,nvfp4_te", "--seconds",
                 "0"]
        failed, stopped = [], []
        for name, tool, arguments, limit in (("tests", "memcheck", tests, 100),
                                             ("training steps", "memcheck", steps, 60),
                                             ("races", "racecheck", races, 90)):
            if arguments[0] == program and not self.gtest:
                continue
            code, text = self.run(["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"] +
                                  arguments, limit)
            entry[name] = {"ended": "stopped" if code is None else "exit %d" % code}
            try:
                if arguments[0] == program:
                    counts = results.gtest_counts(text)
                    entry[name].update(counts)
                    if code is not None or counts["failed"]:
                        self.judge(code, counts)
                else:
                    self.measured(results.json_lines(text))
                    if code not in (None, 0):
                        raise StageError(text.strip()[-400:])
            except StageError as error:
                failed.append("%s: %s" % (name, error))
            if code is None:
                stopped.append(name)
        if failed:
            raise StageError(" | ".join(failed))
        if stopped:
            entry["status"] = "stopped at its limit: %s; no error until then" % ", ".join(stopped)

    # --- all --------------------------------------------------------------------------------------

    def plan(self):
        """(name, seconds that must be left, work), in order of what matters first."""
        t = self.with_gtest
        return [
            ("configure", 30, self.configure),
            ("build_probe", 30, t(self.build(["cuda_matmul_test"], 120))),
            ("probe", 10, t(self.probe)),
            ("build", 60, self.build(PROGRAMS, 200)),
            ("build_tests", 60, t(self.build(TESTS, 200))),
            ("pytorch", 5, self.collect_torch),
            ("self_test", 10, self.self_test),
            ("cpu_training", 5, self.start_cpu_training),
            ("device_tests", 15, t(self.gtest_stage("tests/ops", "ops_test", "Cuda*:Device*", 90))),
            ("trainer_tests", 15, t(self.gtest_stage(
                "worker/train", "train_test", "*Device*:*Cuda*:*Offload*:Communicator.*", 60))),
            ("nccl", 10, t(self.nccl)),
            ("training", 20, self.training),
            ("checkpoints", 15, self.checkpoints),
            ("offload", 10, self.offload),
            ("activations", 10, self.activations),
            ("operations", 10, self.operations),
            ("products", 10, self.products),
            ("layers_7b", 20, self.layers("7b", 75, LAYER_RECIPES + ",fp4_fold8")),
            ("whole_model_1.5b", 25, self.whole("1.5b", 5, 60)),
            ("layers_13b", 20, self.layers("13b", 75)),
            ("memory_1.3b", 20, self.whole("whole_1.3b", 1, 45)),
            ("layers_1.3b", 15, self.layers("1.3b", 45)),
            ("sanitizer", 15, self.sanitizer)]

    def execute(self, only):
        self.only = only
        if not self.stages.stage("device", 0, self.find_device):
            reason = self.result["stages"]["device"]["status"]
            return self.end("no usable device: " + reason.replace("failed: ", "", 1),
                            EXIT_NO_DEVICE if self.result["device"] is None else EXIT_FAILED)
        passed = True
        names = []
        for name, needs, work in self.plan():
            if only and name not in only:
                continue
            ok = self.stages.stage(name, needs, work)
            passed = passed and ok
            names.append(name)
            measured = self.result["stages"]
            self.result["goals"] = results.goals(measured)
            self.result["peak_over_estimate"] = results.estimate_errors(measured)
            self.stages.write()
            if not ok and name in ("configure", "build"):
                return self.end("failed: %s: %s" % (name, measured[name]["status"]), EXIT_FAILED)
        return self.end("passed" if passed else "failed: " + ", ".join(
            n for n in names if self.result["stages"][n]["status"] != "passed"),
            0 if passed else EXIT_FAILED)

    def end(self, status, code):
        self.stages.stop()
        self.result["status"] = status
        self.stages.write()
        print("%s: %s" % (self.stages.path, status), file=sys.stderr)
        return code


def main():
    parser = argparse.ArgumentParser(prog="tools/gpu_check.sh")
    parser.add_argument("out", nargs="?", help="folder for gpu_check.json and gpu_check.log")
    parser.add_argument("--only", default="", help="names of stages, with commas")
    parser.add_argument("--gtest", default=PACKED_GTEST, help="folder with GoogleTest's sources")
    parser.add_argument("--list", action="store_true", help="name the stages")
    arguments = parser.parse_args()
    here = os.path.isfile(os.path.join(arguments.gtest, "CMakeLists.txt"))
    if not here and arguments.gtest != PACKED_GTEST:
        parser.error("no GoogleTest sources in " + arguments.gtest)
    folder = os.path.abspath(arguments.out or "")
    seconds = float(os.environ.get("GPU_CHECK_SECONDS", SECONDS))
    check = Check(Stages(folder, seconds), os.path.abspath(arguments.gtest) if here else "")
    names = [name for name, _, _ in check.plan()]
    if arguments.list:
        print("\n".join(names))
        return 0
    if arguments.out is None:
        parser.error("give the folder for the results")
    only = {name for name in arguments.only.split(",") if name}
    if only - set(names):
        parser.error("no stage %s; --list names them" % ", ".join(sorted(only - set(names))))
    check.stages.open()

    def stopped(number, _):
        sys.exit(check.end("stopped by signal %d" % number, EXIT_FAILED))

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stopped)
    return check.execute(only)


if __name__ == "__main__":
    sys.exit(main())
