"""A line of Ray's core stays off the terminal, and nothing else does."""

import os
import subprocess
import sys

from xgray.distributed.notices import without_notice

NOTICE = b"[2026-01-01 00:00:00,000 I 1 1] logging.cc:303: Set ray log level from environment variable X to 3\n"


def test_the_notice_alone_is_kept_back(capfd):
    with without_notice():
        os.write(2, b"before\n" + NOTICE + b"no end of line")
        subprocess.run([sys.executable, "-c", "import os; os.write(2, b', a process\\n')"], check=True)
    os.write(2, NOTICE)
    assert capfd.readouterr().err.encode() == b"before\nno end of line, a process\n" + NOTICE


def test_no_standard_error_is_no_error():
    code = (
        "import os; os.close(2)\nfrom xgray.distributed.notices import without_notice\nwith without_notice(): print(1)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"1\n"
