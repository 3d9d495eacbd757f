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
    """The logit of D(s, a, s'), the probability that a transition is the expert's."""

    def __init__(self, obs_dim, action_dim):
        super().__init__()
        self.norm = running_norm(2 * obs_dim + action_dim)
        self.logit = mlp(2 * obs_dim + action_dim)

    def update_normalizer(self, *transition):
        self.norm.update_stats(torch.cat(transition, -1))

    def forward(self, state, action, next_state):
        return self.logit(self.norm(torch.cat([state, action, next_state], -1)))


class GAIL(AdversarialIRL):
    """The reward is -log(1 - D) = softplus(logit), positive for every step of an episode."""

    def compute_reward(self, obs, acts, next_obs):
        with torch.no_grad():
            return F.softplus(self.reward_net(obs, acts, next_obs))


if __name__ == "__main__":
    main(GAILDiscriminator, GAIL, method="gail")
