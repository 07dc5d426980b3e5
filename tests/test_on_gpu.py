"""on_gpu.py where there is no GPU, with stand-ins for the tools."""

import json
import os
import subprocess
import sys
from pathlib import Path

import on_gpu

MEMCHECK = """
========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at conv2d+0x1b0
=========     by thread (3,0,0) in block (0,0,0)
=========     Address 0x7f is out of bounds
=========
========= Invalid __global__ read of size 4 bytes
=========     at conv2d+0x1b0
=========     by thread (4,0,0) in block (0,0,0)
=========
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void cub::DeviceRadixSortKernel<int, (bool)0>(int *)+0x2a0
=========     by thread (0,0,0) in block (0,0,0)
=========
========= Error: Race reported between Write access at nms_reduce+0x90
=========     and Read access at nms_reduce+0x150 [4 hazards]
=========
========= ERROR SUMMARY: 4 errors
"""


def test_the_reports_of_the_tools_are_read():
    ours, others = on_gpu.read_reports(MEMCHECK)
    assert ours == {"Invalid __global__ read of size 4 bytes (conv2d)": 2,
                    "Error: Race reported between Write access at nms_reduce+0x90 (nms_reduce)": 1}
    assert list(others.values()) == [1] and "cub::DeviceRadixSortKernel" in next(iter(others))
    assert on_gpu.read_reports("========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n") == ({}, {})
    assert on_gpu.read_reports("========= Invalid __shared__ write of size 8 bytes\n=========     at somewhere\n")[0]     # whose? so ours


def test_what_pytest_says_is_read(tmp_path):
    (tmp_path / "test_it.py").write_text("import pytest\ndef test_good(): pass\ndef test_bad(): assert 1 == 2, 'so'\n"
                                         "def test_not(): pytest.skip('why')\n")
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={tmp_path / 't.xml'}", str(tmp_path)],
                   capture_output=True, cwd=tmp_path)
    found = on_gpu.read_junit(tmp_path / "t.xml")
    assert found["passed"] == 1 and "so" in found["failed"]["test_bad"] and found["skipped"] == {"why": 1}


def run_whole(tmp_path, cupy, *parts, path=""):
    """on_gpu.py with another module cupy: (exit code, JSON)."""
    (tmp_path / "cupy.py").write_text(cupy)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PATH": path + os.environ["PATH"]}
    code = subprocess.run([sys.executable, on_gpu.__file__, str(tmp_path / "r.json"), *parts], env=environment,
                          capture_output=True).returncode
    return code, json.loads((tmp_path / "r.json").read_text())


def test_without_a_gpu_every_part_says_so(tmp_path):
    code, found = run_whole(tmp_path, "raise ModuleNotFoundError('', name='cupy')")
    assert code == 2 and not found["good"] and set(found["parts"]) == set(on_gpu.PARTS)
    assert all("needs CuPy" in part["no_gpu"] for part in found["parts"].values())


DOUBLE = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
import device_double
sys.modules["cupy"] = device_double
"""


def test_a_tool_that_fails_stops_nothing(tmp_path):
    """The double of CuPy as the GPU, and a compute-sanitizer that finds something in one tool and dies in the next."""
    tool = tmp_path / "compute-sanitizer"
    tool.write_text("#!/bin/sh\necho '========= Invalid __global__ write of size 4 bytes'\necho '=========     at nms_mask+0x10'\n"
                    "test $2 = racecheck && kill -9 $$\necho '========= ERROR SUMMARY: 1 error'\nexit 0\n")
    tool.chmod(0o755)
    code, found = run_whole(tmp_path, DOUBLE, "sanitizers", path=f"{tmp_path}:")
    assert code == 1 and found["parts"]["device"]["good"] and found["parts"]["device"]["device"] == "a double"
    tools = found["parts"]["sanitizers"]["tools"]
    assert set(tools) == set(on_gpu.TOOLS) and not any(tool["good"] for tool in tools.values())
    assert tools["memcheck"]["reports"] == {"Invalid __global__ write of size 4 bytes (nms_mask)": 1}
    assert tools["racecheck"]["exit_code"] == -9


def test_a_missing_tool_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(on_gpu, "find_sanitizer", lambda: None)
    assert "compute-sanitizer is not installed" in on_gpu.check_sanitizers(tmp_path)["missing"]


def test_a_process_that_hangs_is_stopped():
    # it has started another one, as the tools do, which holds the pipe
    sleeper = ["-c", "import time; print('begun', flush=True); time.sleep(60)"]
    code, output, seconds = on_gpu.run_python(sleeper, 4, ["/bin/sh", "-c", '"$@"; :', "-"])
    assert code is None and "begun" in output and seconds < 30
    assert on_gpu.result_of(code, output, seconds, False)["stopped"] == "it ran out of time"
