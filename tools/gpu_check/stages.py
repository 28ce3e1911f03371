# SPDX-License-Identifier: Apache-2.0
"""Stages of a check: commands with time limits, a log, and a JSON file that is always whole.

A stage that fails or is stopped is an entry of the result and never ends the others. Every command
runs in a process group of its own, which is killed at its limit and when the check is stopped.
"""
import json
import os
import signal
import subprocess
import tempfile
import time


class StageError(Exception):
    """A stage did not do what it is for; the text says why."""


class Deadline:
    """What is left of the whole check's time."""

    def __init__(self, seconds):
        self.end = time.monotonic() + seconds

    def left(self):
        return max(0.0, self.end - time.monotonic())


class Stages:
    def __init__(self, folder, seconds):
        self.path = os.path.join(folder, "gpu_check.json")
        self.log_path = os.path.join(folder, "gpu_check.log")
        self.deadline = Deadline(seconds)
        self.started = time.monotonic()
        self.result = {"status": "running", "seconds": 0, "stages": {}}
        self.running = []

    def open(self):
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        open(self.log_path, "w").close()
        self.write()

    def write(self):
        self.result["seconds"] = round(time.monotonic() - self.started, 1)
        with open(self.path + ".new", "w") as file:
            json.dump(self.result, file, indent=1)
            file.write("\n")
        os.replace(self.path + ".new", self.path)

    def log(self, text):
        with open(self.log_path, "a", errors="replace") as file:
            file.write(text if text.endswith("\n") else text + "\n")

    def start(self, command, **options):
        """A process whose output goes to `process.output`, a file."""
        output = tempfile.TemporaryFile(mode="w+", errors="replace")
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT,
                                   stdin=subprocess.DEVNULL, start_new_session=True, **options)
        process.output, process.command = output, command
        process.began = time.monotonic()
        self.running.append(process)
        return process

    def finish(self, process, limit):
        """Waits. (exit code, output); the code is None when it was killed at its limit."""
        limit = min(limit, self.deadline.left() - 2)
        try:
            code = process.wait(timeout=max(0.1, limit))
        except subprocess.TimeoutExpired:
            self.kill(process)
            code = None
        self.running.remove(process)
        process.output.seek(0)
        text = process.output.read()
        process.output.close()
        end = "stopped at its limit" if code is None else "exit %d" % code
        self.log("\n$ %s\n%s[%s after %.1f s]" % (" ".join(process.command), text, end,
                                                 time.monotonic() - process.began))
        return code, text

    def run(self, command, limit, **options):
        return self.finish(self.start(command, **options), limit)

    def must(self, command, limit, **options):
        """The output of a command that has to succeed."""
        code, text = self.run(command, limit, **options)
        if code != 0:
            raise StageError(why(code, text, limit))
        return text

    @staticmethod
    def kill(process):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()

    def stop(self):
        for process in list(self.running):
            self.kill(process)

    def stage(self, name, needs, work):
        """Runs work(entry); False when it did not pass. `needs`: seconds that must be left."""
        entry = {}
        self.result["stages"][name] = entry
        left = self.deadline.left()
        if left < needs:
            entry["status"] = "not run: %d s left, %d needed" % (left, needs)
            self.write()
            return False
        began = time.monotonic()
        entry["status"] = "running"
        self.write()
        print("%s ..." % name, flush=True)
        try:
            work(entry)
            if entry["status"] == "running":
                entry["status"] = "passed"
        except StageError as error:
            entry["status"] = "failed: %s" % error
        except Exception as error:  # a mistake of a stage is a result, too
            entry["status"] = "failed: %s: %s" % (type(error).__name__, error)
        entry["seconds"] = round(time.monotonic() - began, 1)
        self.write()
        print("%s: %s (%.1f s)" % (name, entry["status"].splitlines()[0], entry["seconds"]),
              flush=True)
        return entry["status"] == "passed"


def why(code, text, limit):
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() or "FAILED" in line]
    end = "stopped after %d s" % limit if code is None else "exit code %d" % code
    return "%s: %s" % (end, " | ".join((errors or lines)[-4:])[:800])
