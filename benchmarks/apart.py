"""Runs a command from a process that is small, and says what it took.

What a process started counts as having been as big as its starter: a big script makes all that it starts seem big.

    python -S apart.py FILE COMMAND...    # ends as the command does
"""

import json
import resource
import subprocess
import sys

if __name__ == "__main__":
    status = subprocess.call(sys.argv[2:])
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump({"cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss}, file)
    sys.exit(status if status >= 0 else 128 - status)
