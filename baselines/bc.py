"""Behavioural cloning inside the loop.

    python -m baselines.bc --env Hopper-v4

As the task has it: 20 steps of negative log-likelihood on the policy in each `update`, entropy
weight 0.001, reward 0. PPO runs on that reward: its advantages are the critic's errors.
"""

import torch
import torch.nn as nn

from custom_irl import UserError, main


class NoReward(nn.Module):
    def __init__(self, obs_dim, action_dim):
        super().__init__()

    def forward(self, state, action, next_state):
        return torch.zeros(len(state), device=state.device)


class BC:
    steps = 20  # a call of `update`
    entropy_weight = 0.001

    def __init__(self, reward_net, expert_demos, obs_dim, action_dim, device, args):
        self.reward_net = reward_net
        self.expert = expert_demos
        self.args = args
        self.policy = None
        self.optimizer = None

    def set_policy(self, policy, optimizer):
        self.policy = policy
        self.optimizer = optimizer

    def compute_reward(self, obs, acts, next_obs):
        return self.reward_net(obs, acts, next_obs)

    def update(self, policy_obs, policy_acts, policy_next_obs, policy_dones):
        if self.policy is None:
            raise UserError(
                "BC: has no reward to learn from; expected policy access (no --no-policy-access)"
            )
        for _ in range(self.steps):
            rows = torch.randint(len(self.expert["obs"]), (self.args.irl_batch_size,))
            obs, acts = self.expert["obs"][rows], self.expert["acts"][rows]
            _, logprob, entropy, _ = self.policy.get_action_and_value(obs, acts)
            loss = -logprob.mean() - self.entropy_weight * entropy.mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return {"bc_loss": loss.item()}


if __name__ == "__main__":
    main(NoReward, BC, method="bc")
