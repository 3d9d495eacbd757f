"""AIRL (Fu et al. 2018, arXiv 1710.11248).

    python -m baselines.airl --env Hopper-v4

Deviates from the paper: PPO in place of TRPO; g sees the action too, and the policy gets f itself
(the contract); inputs are normalised by running statistics, as in imitation's tuned settings.
Without policy access (--no-policy-access) log pi is not known, and the logit is f alone.
"""

import torch
import torch.nn as nn

from baselines.shared import AdversarialIRL, mlp, running_norm
from custom_irl import main


class AIRLReward(nn.Module):
    """f(s, a, s') = g(s, a) + gamma h(s') - h(s)   (eq. 4)."""

    gamma = 0.99

    def __init__(self, obs_dim, action_dim):
        super().__init__()
        self.obs_norm = running_norm(obs_dim)
        self.act_norm = running_norm(action_dim)
        self.g = mlp(obs_dim + action_dim)
        self.h = mlp(obs_dim)

    def update_normalizer(self, state, action, next_state):
        self.obs_norm.update_stats(state)
        self.act_norm.update_stats(action)

    def forward(self, state, action, next_state):
        s = self.obs_norm(state)
        next_s = self.obs_norm(next_state)
        g = self.g(torch.cat([s, self.act_norm(action)], -1))
        return g + self.gamma * self.h(next_s) - self.h(s)


class AIRL(AdversarialIRL):
    """D = exp f / (exp f + pi), so the logit is f - log pi(a|s)."""

    policy = None

    def set_policy(self, policy, optimizer):
        self.policy = policy

    def logits(self, obs, acts, next_obs, dones):
        return self.minus_logprob(self.reward_net(obs, acts, next_obs), obs, acts)

    def minus_logprob(self, f, obs, acts):
        if self.policy is None:
            return f
        with torch.no_grad():
            logprob = self.policy.get_action_and_value(obs, acts)[1]
        return f - logprob


if __name__ == "__main__":
    main(AIRLReward, AIRL, method="airl")
