import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import resource, numpy as np
from nprcnn import allocator
print(allocator.keep_freed_memory())
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(40 << 17).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(min(faults() for _ in range(3)))
"""


def run(**environment):
    found = subprocess.run([sys.executable, "-c", CODE], cwd=Path(__file__).parent.parent, capture_output=True, text=True,
                           env={**os.environ, **environment})
    assert found.returncode == 0, found.stderr
    taken, faults = found.stdout.split()
    return taken == "True", int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_a_second_array_touches_no_new_page():
    """40 MB: 10240 pages of 4 KiB or 20 of 2 MiB come anew from the system each time, or none."""
    taken, faults = run()
    if not taken:
        pytest.skip("another C library")
    assert faults <= 4
    left_alone, without = run(MALLOC_TOP_PAD_="131072")
    assert not left_alone and without >= 19
