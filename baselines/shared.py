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

    `update` takes `steps` gradient steps on `batch_factor * args.irl_batch_size` transitions of
    each. A subclass defines the logit of a batch, and `reward_net` an `update_normalizer`, which
    sees these batches or, with `rollout_statistics`, the rollouts alone.
    """

    steps = 1
    batch_factor = 1
    rollout_statistics = False

    def __init__(self, reward_net, expert_demos, obs_dim, action_dim, device, args):
        self.reward_net = reward_net
        self.expert = expert_demos
        self.args = args
        self.device = device
        self.optimizer = optim.Adam(reward_net.parameters(), lr=args.irl_lr)

    def logits(self, obs, acts, next_obs, dones):
        """(batch,); `dones` (batch,) is 1 where the episode ended, 0 for all of the expert's."""
        return self.reward_net(obs, acts, next_obs)

    def compute_reward(self, obs, acts, next_obs):
        with torch.no_grad():
            return self.reward_net(obs, acts, next_obs)

    def update(self, policy_obs, policy_acts, policy_next_obs, policy_dones):
        rollout = (policy_obs, policy_acts, policy_next_obs, policy_dones.flatten())
        if self.rollout_statistics:
            self.reward_net.update_normalizer(*rollout[:3])
        for _ in range(self.steps):
            stats = self.discriminator_step(rollout)
        return stats

    def discriminator_step(self, rollout):
        size = self.batch_factor * self.args.irl_batch_size
        expert = self.sample([self.expert[key] for key in ("obs", "acts", "next_obs")], size)
        *policy, dones = self.sample(rollout, size)
        batch = [torch.cat(pair) for pair in zip(expert, policy)]
        if not self.rollout_statistics:
            self.reward_net.update_normalizer(*batch)
        logits = self.logits(*batch, torch.cat([torch.zeros_like(dones), dones]))
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


class LaterVersion:
    """What the benchmark's later GAIL and AIRL have in common, to be mixed into either."""

    steps = 4
    batch_factor = 4
    rollout_statistics = True
