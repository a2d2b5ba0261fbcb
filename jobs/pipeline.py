"""The loop, or one verb of it, as a job on a cluster; `lr-ray submit` does the whole line for you.

ray job submit --working-dir . -- python jobs/pipeline.py CONFIG.yaml [--verb VERB] [SECTION.KEY=VALUE ...]
"""

import argparse
import sys

from lr_ray import cli
from lr_ray.submit import VERBS

SOME_FAILED = 1


def main(arguments: list[str]) -> int:
    """Run a verb as `arguments` say; its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG.yaml")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--verb", choices=VERBS, default="run")
    # For whoever starts a job anew when its code is not 0: to try such rows again takes `retry-failed`.
    parser.add_argument("--rows-may-fail", action="store_true", help="0 also where some rows failed for good")
    given = parser.parse_intermixed_args(arguments)
    command = [given.verb, given.config, *given.overrides]
    code = cli.guarded(lambda: cli.cli.main(command, standalone_mode=False))
    return 0 if code == SOME_FAILED and given.rows_may_fail else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
