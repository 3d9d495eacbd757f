"""GAIL (Ho and Ermon 2016, arXiv 1606.03476).

    python -m baselines.gail --env Hopper-v4

Deviates from the paper: PPO in place of TRPO, and the discriminator sees s' too (the contract);
inputs are normalised by running statistics, as in imitation's tuned settings.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from baselines.shared import AdversarialIRL, mlp, running_norm
from custom_irl import main


class GAILDiscriminator(nn.Module):
    """-log(1 - D) = softplus(logit), positive for every step of an episode.

    D(s, a, s') is the probability that a transition is the expert's.
    """

    def __init__(self, obs_dim, action_dim):
        super().__init__()
        self.norm = running_norm(2 * obs_dim + action_dim)
        self.logit = mlp(2 * obs_dim + action_dim)

    def update_normalizer(self, *transition):
        self.norm.update_stats(torch.cat(transition, -1))

    def logits(self, state, action, next_state):
        return self.logit(self.norm(torch.cat([state, action, next_state], -1)))

    def forward(self, state, action, next_state):
        return F.softplus(self.logits(state, action, next_state))


class GAIL(AdversarialIRL):
    def logits(self, obs, acts, next_obs, dones):
        return self.reward_net.logits(obs, acts, next_obs)


if __name__ == "__main__":
    main(GAILDiscriminator, GAIL, method="gail")
