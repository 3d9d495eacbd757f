"""The EDITABLE region inside another loop: one environment, autograd, no annealing, reversed rows.

The environment is a point that has to keep |y| below 1 and to move at speed 1. Random actions
terminate an episode within some 40 steps.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.optim as optim
from test_method import region_namespace

STEPS = 1024
TIME_LIMIT = 200


class Balance:
    """obs (v, y), actions (push, lean). Terminates where |y| > 1."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def reset(self):
        self.v, self.y, self.t = 0.0, self.rng.uniform(-0.1, 0.1), 0
        return np.array([self.v, self.y], dtype=np.float32)

    def step(self, action):
        push, lean = np.clip(action, -1, 1)
        self.v = 0.8 * self.v + 0.2 * push
        self.y = 1.05 * self.y + 0.2 * lean + self.rng.normal(0, 0.02)
        self.t += 1
        obs = np.array([self.v, self.y], dtype=np.float32)
        return obs, abs(self.y) > 1, self.t == TIME_LIMIT


def expert(obs):
    return np.array([1.0, -2.0 * obs[1]], dtype=np.float32)


def play(act, seed, steps):
    """Tensors obs, acts, next_obs, terminated, truncated of consecutive episodes."""
    env, rows = Balance(seed), []
    obs = env.reset()
    for _ in range(steps):
        action = act(obs)
        next_obs, terminated, truncated = env.step(action)
        rows.append((obs, action, next_obs, terminated, truncated))
        obs = env.reset() if terminated or truncated else next_obs
    return [torch.as_tensor(np.array(column)) for column in zip(*rows)]


class Agent(nn.Module):
    """The contract's policy, written again."""

    def __init__(self):
        super().__init__()
        for name, outputs, gain in (("actor_mean", 2, 0.01), ("critic", 1, 1.0)):
            layers = [nn.Linear(2, 256), nn.Linear(256, 256), nn.Linear(256, outputs)]
            for layer, scale in zip(layers, (2**0.5, 2**0.5, gain)):
                nn.init.orthogonal_(layer.weight, scale)
                nn.init.zeros_(layer.bias)
            setattr(
                self, name, nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
            )
        self.actor_logstd = nn.Parameter(torch.zeros(1, 2))

    def get_value(self, obs):
        return self.critic(obs)

    def get_action_and_value(self, obs, action=None):
        normal = torch.distributions.Normal(
            self.actor_mean(obs), self.actor_logstd.exp().expand(len(obs), -1)
        )
        action = normal.sample() if action is None else action
        return action, normal.log_prob(action).sum(1), normal.entropy().sum(1), self.critic(obs)

    def act(self, obs, noise=1.0):
        with torch.no_grad():
            mean = self.actor_mean(torch.as_tensor(obs)[None])[0]
            return (mean + noise * self.actor_logstd[0].exp() * torch.randn(2)).numpy()


def ppo(agent, optimizer, obs, acts, logprobs, rewards, next_obs, terminated, ended):
    with torch.no_grad():
        values, next_values = agent.get_value(obs)[:, 0], agent.get_value(next_obs)[:, 0]
        deltas = rewards + 0.99 * next_values * ~terminated - values
        advantages, running = torch.zeros_like(rewards), 0.0
        for t in reversed(range(len(rewards))):
            advantages[t] = running = deltas[t] + 0.99 * 0.95 * ~ended[t] * running
    returns = advantages + values
    for _ in range(10):
        for rows in torch.randperm(len(obs)).split(64):
            _, logprob, _, value = agent.get_action_and_value(obs[rows], acts[rows])
            ratio = (logprob - logprobs[rows]).exp()
            a = (advantages[rows] - advantages[rows].mean()) / (advantages[rows].std() + 1e-8)
            loss = -torch.min(a * ratio, a * ratio.clamp(0.8, 1.2)).mean()
            loss = loss + 0.25 * ((value[:, 0] - returns[rows]) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()


def performance(agent) -> tuple[float, float]:
    """Mean speed, and falls per thousand steps, without noise."""
    _, _, next_obs, terminated, _ = play(lambda obs: agent.act(obs, noise=0.0), seed=99, steps=1000)
    return next_obs[:, 0].mean().item(), terminated.sum().item()


@pytest.mark.parametrize(
    ("access", "rounds", "time_limits_are_dones"), [(False, 14, False), (True, 13, True)]
)
def test_the_region_trains_in_another_loop(access, rounds, time_limits_are_dones):
    torch.manual_seed(0)
    np.random.seed(0)
    namespace = region_namespace()
    algorithm_cls = namespace["IRLAlgorithm"]
    short = replace(algorithm_cls.hyperparameters, bc_rounds=4, bc_steps=100, target_refreshes=20)
    algorithm_cls.hyperparameters = short
    obs, acts, next_obs, _, _ = play(expert, seed=1, steps=2000)
    demos = {"obs": obs, "acts": acts, "next_obs": next_obs}
    args = SimpleNamespace(irl_lr=3e-4, irl_batch_size=256, n_irl_updates_per_round=5)
    net = namespace["RewardNetwork"](2, 2)
    algorithm = algorithm_cls(net, demos, 2, 2, torch.device("cpu"), args)
    agent = Agent()
    optimizer = optim.Adam(agent.parameters(), lr=3e-4, eps=1e-5)
    if access:
        algorithm.set_policy(agent, optimizer)
    speed, falls = performance(agent)
    assert speed < 0.3 and falls > 10
    seen = []
    for round_ in range(rounds):
        obs, acts, next_obs, terminated, truncated = play(agent.act, seed=round_, steps=STEPS)
        dones = (terminated | truncated if time_limits_are_dones else terminated).float()
        flat = [x.flip(0) for x in (obs, acts, next_obs)]
        with torch.no_grad():
            logprobs = agent.get_action_and_value(obs, acts)[1]
            rewards = algorithm.compute_reward(*flat).flip(0)
        for _ in range(args.n_irl_updates_per_round):
            algorithm.update(*flat, dones.flip(0))
        seen.append(rewards)
        rewards = (rewards - torch.cat(seen).mean()) / (torch.cat(seen).std() + 1e-8)
        ppo(
            agent,
            optimizer,
            obs,
            acts,
            logprobs,
            rewards,
            next_obs,
            terminated,
            terminated | truncated,
        )
    speed, falls = performance(agent)
    assert speed > 0.6 and falls <= 2
