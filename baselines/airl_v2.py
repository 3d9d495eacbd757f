"""AIRL as the benchmark's later versions have it: a stronger discriminator, which knows ends.

    python -m baselines.airl_v2 --env Hopper-v4

In every `update` four gradient steps on four times the batch; observations normalised by running
statistics of the rollouts' states, actions as they are. The discriminator's f is
g(s, a) + gamma (1 - done) h(s') - h(s), with the expert's transitions taken as not ended; the
reward, which sees no done, is f without it, normalised by its running statistics.
"""

import torch
import torch.nn as nn

from baselines.airl import AIRL
from baselines.shared import LaterVersion, mlp, running_norm
from custom_irl import main


class AIRLRewardV2(nn.Module):
    """f(s, a, s') = g(s, a) + gamma h(s') - h(s)   (eq. 4)."""

    gamma = 0.99

    def __init__(self, obs_dim, action_dim):
        super().__init__()
        self.norm = running_norm(obs_dim)
        self.g = mlp(obs_dim + action_dim)
        self.h = mlp(obs_dim)

    def update_normalizer(self, state, action, next_state):
        self.norm.update_stats(state)

    def forward(self, state, action, next_state, dones=0.0):
        s = self.norm(state)
        g = self.g(torch.cat([s, action], -1))
        return g + self.gamma * (1 - dones) * self.h(self.norm(next_state)) - self.h(s)


class AIRLV2(LaterVersion, AIRL):
    """D = exp f / (exp f + pi), so the logit is f - log pi(a|s), with f aware of ends."""

    def __init__(self, reward_net, expert_demos, obs_dim, action_dim, device, args):
        super().__init__(reward_net, expert_demos, obs_dim, action_dim, device, args)
        self.reward_norm = running_norm(1).to(device)

    def logits(self, obs, acts, next_obs, dones):
        return self.minus_logprob(self.reward_net(obs, acts, next_obs, dones), obs, acts)

    def compute_reward(self, obs, acts, next_obs):
        rewards = super().compute_reward(obs, acts, next_obs)[:, None]
        self.reward_norm.update_stats(rewards)
        return self.reward_norm(rewards).squeeze(1)


if __name__ == "__main__":
    main(AIRLRewardV2, AIRLV2, method="airl-v2")
