# SPDX-License-Identifier: Apache-2.0
"""The GPU, the compiler and the libraries of the machine that a check runs on."""
import glob
import os
import re
import shutil
import subprocess
import sysconfig

# Compute capabilities whose own instructions the kernels may use.
WITH_OWN_INSTRUCTIONS = ("90", "100", "103", "120", "121")


def output(command, folder=None):
    """What a command prints, stripped; '' where it fails or does not exist."""
    try:
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30,
                             check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


def device():
    """The first GPU that nvidia-smi names, or None."""
    fields = ("name", "driver_version", "compute_cap", "memory.total", "clocks.max.sm",
              "power.limit")
    lines = output(["nvidia-smi", "--query-gpu=" + ",".join(fields),
                    "--format=csv,noheader"]).splitlines()
    values = [value.strip() for value in lines[0].split(",")] if lines else []
    if len(values) != len(fields):
        return None
    found = dict(zip(fields, values))
    number = found["compute_cap"].replace(".", "")
    found["architecture"] = number + ("a" if number in WITH_OWN_INSTRUCTIONS else "")
    return found


def nvcc():
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def nvcc_version(path):
    found = re.search(r"release ([0-9.]+)", output([path, "--version"]))
    return found.group(1) if found else None


def packages():
    """Folders of NVIDIA's Python packages: libraries and headers that a toolkit may lack."""
    site = sysconfig.get_paths()["purelib"]
    return sorted(glob.glob(os.path.join(site, "nvidia", "*")))


def link_libraries(folder, toolkit):
    """Links in `folder` to libraries that the toolkit lacks and a Python package has."""
    wanted = (("libcublasLt", 13), ("libnccl", 2))
    for name, version in wanted:
        beside = [os.path.join(toolkit, place, name + ".so") for place in ("lib64", "lib")]
        if any(os.path.exists(path) for path in beside):
            continue
        for package in packages():
            found = glob.glob(os.path.join(package, "lib", "%s.so.%d" % (name, version)))
            if not found:
                continue
            os.makedirs(folder, exist_ok=True)
            for link in (name + ".so", "%s.so.%d" % (name, version)):
                path = os.path.join(folder, link)
                if os.path.lexists(path):
                    os.remove(path)
                os.symlink(found[0], path)
            break


def environment(nvcc_path, libraries):
    """The environment of every command. `libraries`: where links to libraries may be put."""
    toolkit = os.path.dirname(os.path.dirname(os.path.realpath(nvcc_path)))
    link_libraries(libraries, toolkit)
    made = dict(os.environ)
    made["PATH"] = os.path.join(toolkit, "bin") + os.pathsep + made.get("PATH", "")
    made["CUDACXX"] = nvcc_path
    made.pop("CCACHE_DISABLE", None)
    made["GPU_CHECK_LIBRARIES"] = libraries if os.path.isdir(libraries) else ""
    for package in packages():
        if os.path.isfile(os.path.join(package, "include", "nccl.h")):
            made.setdefault("NCCL_ROOT", package)
    return made


def cmake_hints(made):
    """Arguments that lead CMake to what lies outside the toolkit."""
    hints = []
    if made["GPU_CHECK_LIBRARIES"]:
        hints.append("-DCMAKE_LIBRARY_PATH=" + made["GPU_CHECK_LIBRARIES"])
    toolkit = os.path.dirname(os.path.dirname(os.path.realpath(made["CUDACXX"])))
    if not os.path.isfile(os.path.join(toolkit, "include", "cublasLt.h")):
        for package in packages():
            include = os.path.join(package, "include")
            if os.path.isfile(os.path.join(include, "cublasLt.h")):
                hints += ["-DCMAKE_CXX_FLAGS=-isystem " + include,
                          "-DCMAKE_CUDA_FLAGS=-isystem " + include]
                break
    return hints
