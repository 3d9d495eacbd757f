"""What the reference methods share: an input normaliser, the network's shape, the discriminator's training step."""

import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim


class RunningNorm(nn.Module):
    """Normalises by the running mean and variance of what `update` was given (imitation's RunningNorm)."""

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("var", torch.ones(dim))

    @torch.no_grad()
    def update(self, x: torch.Tensor) -> None:
        """Takes a batch (n, dim) into the statistics (Chan et al. 1979)."""
        total = self.count + len(x)
        delta = x.mean(0) - self.mean
        spread = self.var * self.count + x.var(0, unbiased=False) * len(x) + delta**2 * self.count * len(x) / total
        self.mean += delta * len(x) / total
        self.var = spread / total
        self.count = total

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / (self.var + 1e-5).sqrt()


def mlp(in_dim: int) -> nn.Sequential:
    """256-256-1 with ReLU, as imitation's reward networks have it."""
    return nn.Sequential(
        nn.Linear(in_dim, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1), nn.Flatten(0)
    )


class AdversarialIRL:
    """Binary cross-entropy between expert transitions (label 1) and the newest rollout's (label 0).

    A subclass says what the logit of a batch is. One step of `args.irl_batch_size` pairs a call of `update`.
    """

    def __init__(self, reward_net, expert_demos, obs_dim, action_dim, device, args):
        self.reward_net, self.expert, self.args, self.device = reward_net, expert_demos, args, device
        self.optimizer = optim.Adam(reward_net.parameters(), lr=args.irl_lr)

    def logits(self, obs, acts, next_obs):
        return self.reward_net(obs, acts, next_obs)

    def compute_reward(self, obs, acts, next_obs):
        with torch.no_grad():
            return self.reward_net(obs, acts, next_obs)

    def update(self, policy_obs, policy_acts, policy_next_obs, policy_dones):
        size = self.args.irl_batch_size
        expert = self.sample((self.expert["obs"], self.expert["acts"], self.expert["next_obs"]), size)
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
