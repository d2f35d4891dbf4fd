"""Everything stays on its device: `cases`, in a process of their own, as a pretended device does not go away again."""

import json
import subprocess
import sys


def test_on_a_pretended_device_everything_is_as_on_the_cpu():
    done = subprocess.run([sys.executable, "-m", "tests.device.cases"], capture_output=True, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0 and len(rows) > 40, done.stderr[-2000:]
    assert {row["case"]: row["problem"] for row in rows if row["problem"]} == {}
