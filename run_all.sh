#!/usr/bin/env bash
# Sets up .venv on the first call, then runs the benchmark or the tests.
#
#   bash run_all.sh             both variants of the method, 3 environments x 3 seeds, 1M steps
#                               each, as many at once as there are cores; then the report
#   bash run_all.sh --quick     a look of minutes: one short run an environment, not a result
#   bash run_all.sh --study benchmark/studies/ten-seeds.toml --dry-run
#                               the runs of a study, which of them exist, and their core hours
#   bash run_all.sh --cluster slurm --partition NAME
#                               the same as jobs of a cluster; call it again to look after them
#   bash run_all.sh --help      all options; others go to custom_irl.py (--true-reward, ...)
#   bash run_all.sh test        the tests; further words go to pytest
#
# Call it again after an interruption: finished runs are skipped, those of the loop continue from
# their checkpoints, those of a trainer with a loop of its own begin anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

die() { echo "run_all.sh: $*" >&2; exit 1; }

python=${PYTHON:-python3}
pins=$(cat requirements.txt .constraints.txt)
if [ "$pins" != "$(cat .venv/installed-requirements.txt 2>/dev/null)" ]; then
    command -v "$python" >/dev/null ||
        die "$python not found; install Python 3.11, 3.12 or 3.13, or set PYTHON"
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' ||
        die "$("$python" --version) is not supported; set PYTHON to a Python 3.11, 3.12 or 3.13"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$python has no venv module; install it first (Debian and Ubuntu: apt install python3-venv)"
    echo "run_all.sh: installing requirements.txt into .venv (once, a few minutes)" >&2
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
    echo "$pins" >.venv/installed-requirements.txt
fi

export OMP_NUM_THREADS=1  # the matrices are small: one run a core is fastest
if [ "${1-}" = test ]; then
    shift
    exec .venv/bin/python -m pytest "$@"
fi
exec .venv/bin/python -m benchmark.launch "$@"
