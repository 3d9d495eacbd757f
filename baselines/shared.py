"""What the reference methods share: input normaliser, network shape, the discriminator's step."""

import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
from imitation.util.networks import RunningNorm


def running_norm(dim: int) -> nn.Module:
    """imitation's input normaliser, in evaluation mode: only `update_stats` changes statistics."""
    return RunningNorm(dim).eval()


def mlp(in_dim: int) -> nn.Sequential:
    """256-256-1 with ReLU, as imitation's reward networks have it."""
    return nn.Sequential(
        nn.Linear(in_dim, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, 1),
        nn.Flatten(0),
    )


class AdversarialIRL:
    """Binary cross-entropy between expert transitions (label 1) and the newest rollout's (label 0).

    `update` takes one gradient step on `args.irl_batch_size` transitions of each. A subclass
    defines the logit of a batch, and `reward_net` an `update_normalizer`.
    """

    def __init__(self, reward_net, expert_demos, obs_dim, action_dim, device, args):
        self.reward_net = reward_net
        self.expert = expert_demos
        self.args = args
        self.device = device
        self.optimizer = optim.Adam(reward_net.parameters(), lr=args.irl_lr)

    def logits(self, obs, acts, next_obs):
        return self.reward_net(obs, acts, next_obs)

    def compute_reward(self, obs, acts, next_obs):
        with torch.no_grad():
            return self.reward_net(obs, acts, next_obs)

    def update(self, policy_obs, policy_acts, policy_next_obs, policy_dones):
        size = self.args.irl_batch_size
        demos = (self.expert["obs"], self.expert["acts"], self.expert["next_obs"])
        expert = self.sample(demos, size)
        policy = self.sample((policy_obs, policy_acts, policy_next_obs), size)
        batch = [torch.cat(pair) for pair in zip(expert, policy)]
        self.reward_net.update_normalizer(*batch)
        logits = self.logits(*batch)
        labels = torch.cat([torch.ones(size), torch.zeros(size)]).to(self.device)
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        accuracy = ((logits > 0) == (labels > 0)).float().mean()
        return {"disc_loss": loss.item(), "disc_accuracy": accuracy.item()}

    def sample(self, arrays, size):
        rows = torch.randint(len(arrays[0]), (size,), device=self.device)
        return [x[rows] for x in arrays]
