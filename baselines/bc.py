"""Behavioural cloning inside the loop:  python -m baselines.bc --env Hopper-v4

The contract's form: in each `update`, 20 steps of negative log-likelihood on the live policy,
entropy weight 0.001; the reward is 0. PPO still runs, on advantages that are its critic's noise:
that is part of this baseline as published.
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
    steps, entropy_weight = 20, 0.001

    def __init__(self, reward_net, expert_demos, obs_dim, action_dim, device, args):
        self.reward_net, self.expert, self.args = reward_net, expert_demos, args
        self.policy = self.optimizer = None

    def set_policy(self, policy, optimizer):
        self.policy, self.optimizer = policy, optimizer

    def compute_reward(self, obs, acts, next_obs):
        return self.reward_net(obs, acts, next_obs)

    def update(self, policy_obs, policy_acts, policy_next_obs, policy_dones):
        if self.policy is None:
            raise UserError(
                "BC: has no reward to learn from; expected policy access (no --no-policy-access)"
            )
        for _ in range(self.steps):
            rows = torch.randint(len(self.expert["obs"]), (self.args.irl_batch_size,))
            _, logprob, entropy, _ = self.policy.get_action_and_value(
                self.expert["obs"][rows], self.expert["acts"][rows]
            )
            loss = -logprob.mean() - self.entropy_weight * entropy.mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return {"bc_loss": loss.item()}


if __name__ == "__main__":
    main(NoReward, BC, method="bc")
