"""The file of a run's prompts."""

import subprocess
import sys

from xgray.rows import Prompt
from xgray.runs.prompts import PROMPTS, ROW_GROUP, PromptFile, encode_prompts
from xgray.storage.folder import Folder

NUM_PROMPTS = 2 * ROW_GROUP + 10

TWO_READERS = """
import sys, threading
from xgray.runs.prompts import PromptFile
from xgray.storage.folder import Folder

def read(file, barrier, start):
    barrier.wait()
    found = [prompt.prompt_id for prompt in file.read(start, start + 8)]
    assert found == [str(position) for position in range(start, start + 8)], found

for start in range(0, 2000):
    file, barrier = PromptFile(Folder(sys.argv[1])), threading.Barrier(2)
    len(file)  # open
    threads = [threading.Thread(target=read, args=(file, barrier, place)) for place in (start, (start + 1100) % 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def write_prompts(folder):
    prompts = [Prompt(str(index), "en", f"text {index}") for index in range(NUM_PROMPTS)]
    Folder(str(folder)).write_bytes(PROMPTS, encode_prompts(prompts, "from here").to_pybytes())
    return prompts


def test_any_part_is_read(tmp_path):
    prompts = write_prompts(tmp_path)
    file = PromptFile(Folder(str(tmp_path)))
    assert (len(file), file.fingerprint) == (NUM_PROMPTS, "from here")
    for start, stop in ((0, 0), (0, 3), (ROW_GROUP - 2, ROW_GROUP + 2), (5, NUM_PROMPTS)):
        assert file.read(start, stop) == prompts[start:stop]


def test_two_threads_read_at_once(tmp_path):
    # In a process of its own: without turns the reader crashes.
    write_prompts(tmp_path)
    process = subprocess.run([sys.executable, "-c", TWO_READERS, tmp_path], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
