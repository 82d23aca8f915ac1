"""The old name of `queue_admin.py dead`, for one release: the same commands, output and exit statuses.

python dead_letters.py list --> python queue_admin.py dead list
"""

if __name__ == "__main__":  # before the imports of what may be missing
    from serving.local.packages import check

    check()

import sys

import queue_admin


def main() -> int:
    """Hand the command line on; return the exit status."""
    print("dead_letters.py is `queue_admin.py dead` now; this name goes with the next release.", file=sys.stderr)
    return queue_admin.main(["dead", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
