"""GAIL as the benchmark's later versions have it: a stronger discriminator than that of gail.py.

    python -m baselines.gail_v2 --env Hopper-v4

In every `update` four gradient steps on four times the batch; observations normalised by running
statistics of the rollouts' states, actions as they are.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from baselines.gail import GAIL
from baselines.shared import LaterVersion, mlp, running_norm
from custom_irl import main


class GAILDiscriminatorV2(nn.Module):
    """-log(1 - D) = softplus(logit), as in gail.py."""

    def __init__(self, obs_dim, action_dim):
        super().__init__()
        self.norm = running_norm(obs_dim)
        self.logit = mlp(2 * obs_dim + action_dim)

    def update_normalizer(self, state, action, next_state):
        self.norm.update_stats(state)

    def logits(self, state, action, next_state):
        return self.logit(torch.cat([self.norm(state), action, self.norm(next_state)], -1))

    def forward(self, state, action, next_state):
        return F.softplus(self.logits(state, action, next_state))


class GAILV2(LaterVersion, GAIL):
    pass


if __name__ == "__main__":
    main(GAILDiscriminatorV2, GAILV2, method="gail-v2")
