#!/usr/bin/env bash
# custom_irl.py, demos/ and benchmark/load.py with the newest Gymnasium and MuJoCo that make the -v4
# environments (imitation 1.0.1 holds this project's own environment at Gymnasium 0.29):
#
#   bash tests/newest.sh
#
# Installs the two into a temporary folder that comes before .venv's packages, trains for 4,096 steps
# on each environment, checks the demonstrations and loads a reward. Needs .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --target "$folder/site" \
    gymnasium==1.4.0 mujoco==4.0.0 mujoco-core==4.0.0 mujoco-studio==4.0.0
export PYTHONPATH=$folder/site PYTHONWARNINGS=ignore OMP_NUM_THREADS=1

for env in HalfCheetah-v4 Hopper-v4 Walker2d-v4; do
    .venv/bin/python custom_irl.py --env $env --no-policy-access --total-timesteps 4096 \
        --out "$folder/$env" 2>"$folder/log" || { cat "$folder/log"; exit 1; }
done
.venv/bin/python -m demos.check demos/Hopper-v4.npz --env Hopper-v4 --picture "$folder/check.png" \
    >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
.venv/bin/python - "$folder/Hopper-v4" <<'PYTHON'
import json
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np

from benchmark.load import LearnedReward, load_reward

env = LearnedReward(gym.make("Hopper-v4"), load_reward(sys.argv[1]))
env.reset(seed=1)
assert np.isfinite(env.step(np.zeros(3))[1])
versions = json.loads((Path(sys.argv[1]) / "result.json").read_text())["versions"]
assert versions["gymnasium"] == "1.4.0" and versions["mujoco"] == "4.0.0", versions
print("trained, checked and loaded with", versions)
PYTHON
