"""IQ-Learn (Garg et al. 2021, arXiv 2106.12142): a soft Q whose implied reward fits the expert.

    python -m baselines.iqlearn --env Hopper-v4            # offline: demonstrations alone
    python -m baselines.iqlearn --env Hopper-v4 --online   # with environment steps
    bash run_all.sh --method iqlearn                       # or iqlearn-online

Q implies the reward r(s, a, s') = Q(s, a) - gamma V(s') with V(s) = E_pi [Q(s, a) - alpha log pi],
V = 0 after a terminal state (not after a time limit), online -2 beta / (1 - gamma): that of a
state that pays for ever what the loss makes the replay's r, -2 beta. (With 0, as r is negative on
the replay, a Hopper learned to fall at once.) With a chi^2 regulariser of r:

    offline  min_Q  w [E_E V(s) - E_E Q(s, a)] + (1 - w) E_E r^2 + c GP(Q, 1)
             pi: min  E_E min(exp((Q(s, a) - V(s)) / alpha), 100) |a - mode(s)|^2    (AWR)
    online   min_Q  -E_E r + E_{E,R} [V(s) - gamma V(s')] + 1 / (4 beta) E_{E,R} r^2
             pi: SAC's step on expert and replay (R) states

Offline follows CleanIL, online the paper (value loss over expert and replay, half a batch each).
Deviates: V(s') is of the target critics and has no gradient. Offline, pi is a Gaussian of fixed
width around its mode, whose entropy is a constant and left out of V: of the expert's actions up to
60 % are at the ends of their range, where CleanIL's tanh-Gaussian has no bounded density (Hopper
after 15,000 steps: squared action error 0.013 instead of 0.0003). No noise is added to the expert's
actions in AWR (there 0.1 on half of them). Sizes:

|                        | here          | CleanIL (offline) |
|------------------------|---------------|-------------------|
| gradient steps offline | 30,000 of 128 | 500,000 of 256    |
| networks               | 192-192 ReLU  | 256-256-256 SiLU  |

The reward that a run saves is r with V(s') = min Q(s', a) at the policy's mode, and no end known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn as nn

import custom_irl as irl
from baselines import offpolicy as op
from benchmark.runs import command_line

HIDDEN = (192, 192)


@dataclass(frozen=True)
class Config(op.OnlineConfig):
    hidden: tuple[int, ...] = HIDDEN
    batch_size: int = 128
    """transitions in a batch, online half of them the expert's"""
    alpha: float = 0.1
    """offline: temperature of the advantages"""
    policy_std: float = 0.1
    """offline: standard deviation of the policy, in units of the action"""
    online: bool = False
    """learn from environment steps too"""
    updates: int = 30_000
    """offline: gradient steps"""
    value_weight: float = 0.5
    """offline: weight w of V - Q against the squared reward"""
    gp_coef: float = 10.0
    """offline: weight of the gradient penalty"""
    gp_target: float = 1.0
    """offline: largest slope of Q that is not penalised"""
    max_weight: float = 100.0
    """offline: largest weight of an action in the policy's loss"""
    online_alpha: float = 0.01
    """online: temperature of the policy's entropy"""
    chi2_beta: float = 0.5
    """online: weight of the squared reward is 1 / (4 beta)"""


# ------------------------------------------------------------------------------------------ losses
def implied_reward(
    q_values: torch.Tensor, terminated: torch.Tensor, next_values: torch.Tensor, gamma: float
) -> torch.Tensor:
    """r = Q(s, a) - gamma (1 - terminated) V(s')."""
    return q_values - gamma * (1 - terminated) * next_values


def offline_loss(
    q_values: torch.Tensor, values: torch.Tensor, rewards: torch.Tensor, weight: float
) -> torch.Tensor:
    """w mean (V(s) - Q(s, a)) + (1 - w) mean r^2, of the expert's transitions.

    mean (Q - V) = mean log pi for the soft-optimal pi: without the square this is maximum
    likelihood of pi ~ exp Q.
    """
    return weight * (values - q_values).mean() + (1 - weight) * rewards.square().mean()


def online_loss(
    rewards: torch.Tensor,
    values: torch.Tensor,
    discounted_next: torch.Tensor,
    is_expert: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """-mean_E r + mean (V(s) - gamma V(s')) + mean r^2 / (4 beta).

    Rewards, values and discounted next values are (2, n), `is_expert` (n,) is 1 or 0.
    """
    expert_reward = (rewards * is_expert).sum(-1).mean() / is_expert.sum()
    return -expert_reward + (values - discounted_next).mean() + rewards.square().mean() / (4 * beta)


# ---------------------------------------------------------------------------------------- networks
class ImplicitReward(nn.Module):
    """r(s, a, s') = min_i Q_i(s, a) - gamma min_i Q_i(s', mode of pi(s')), of a finished run.

    Of the default sizes: a run with another --hidden cannot be loaded as a reward.
    """

    def __init__(self, obs_dim: int, action_dim: int):
        super().__init__()
        self.q = op.TwinQ(obs_dim, action_dim, HIDDEN)
        self.actor = op.TanhGaussianActor(obs_dim, action_dim, HIDDEN)
        self.register_buffer("gamma", torch.tensor(Config.gamma))

    def forward(self, state, action, next_state):
        next_q = self.q(next_state, self.actor.mode(next_state))
        return self.q(state, action).amin(0) - self.gamma * next_q.amin(0)


def saved_reward(sac: op.SAC, dims: tuple[int, int]) -> ImplicitReward:
    reward = ImplicitReward(*dims)
    reward.q, reward.actor = sac.q, sac.actor
    reward.gamma.fill_(sac.config.gamma)
    return reward


# -------------------------------------------------------------------------------------------- steps
def offline_step(sac: op.SAC, batch: op.Batch, config: Config) -> dict[str, float]:
    obs, acts = batch["obs"], batch["acts"]
    policy_acts = op.sample_near_mode(sac.actor, obs, config.policy_std)
    next_acts = op.sample_near_mode(sac.actor, batch["next_obs"], config.policy_std)
    with torch.no_grad():
        next_values = sac.q_target(batch["next_obs"], next_acts).amin(0)
    q_values, values = sac.q(obs.repeat(2, 1), torch.cat([acts, policy_acts])).chunk(2, dim=1)
    rewards = implied_reward(q_values, batch["terminated"], next_values, config.gamma)
    fit = offline_loss(q_values, values, rewards, config.value_weight)
    penalty = op.gradient_penalty(
        sac.q.head, sac.q.inputs(obs, acts), sac.q.inputs(obs, policy_acts), config.gp_target, 2
    )
    op.gradient_step(sac.q_optimizer, fit + config.gp_coef * penalty)
    advantages = (q_values.amin(0) - values.amin(0)).detach()
    modes = sac.actor.mode(obs)
    loss = op.awr_loss(modes, acts, advantages, config.alpha, config.max_weight)
    op.gradient_step(sac.actor_optimizer, loss)
    op.polyak_update(sac.q_target, sac.q, config.tau)
    return {
        "q_loss": fit.item(),
        "penalty": penalty.item(),
        "reward_mean": rewards.mean().item(),
        "advantage_mean": advantages.mean().item(),
        "action_error": (modes - acts).square().mean().item(),
    }


def online_step(sac: op.SAC, batch: op.Batch, config: Config) -> dict[str, float]:
    """`batch` has a column `is_expert`."""
    obs = batch["obs"]
    next_values = op.soft_value(sac.actor, sac.q_target, batch["next_obs"], sac.alpha)
    end_value = -2 * config.chi2_beta / (1 - config.gamma)
    discounted_next = config.gamma * torch.where(batch["terminated"] > 0, end_value, next_values)
    with torch.no_grad():
        policy_acts, policy_logprob = sac.actor.sample(obs)
    both = sac.q(obs.repeat(2, 1), torch.cat([batch["acts"], policy_acts]))
    q_values, policy_q = both.chunk(2, dim=1)
    values = policy_q - sac.alpha * policy_logprob
    rewards = q_values - discounted_next
    loss = online_loss(rewards, values, discounted_next, batch["is_expert"], config.chi2_beta)
    op.gradient_step(sac.q_optimizer, loss)
    report = op.actor_step(sac, obs)
    op.polyak_update(sac.q_target, sac.q, config.tau)
    expert = batch["is_expert"].bool()
    return {
        "q_loss": loss.item(),
        "expert_reward": rewards[:, expert].mean().item(),
        "replay_reward": rewards[:, ~expert].mean().item(),
        **report,
    }


# --------------------------------------------------------------------------------------- training
def train_offline(config: Config, task: op.Task) -> irl.Training:
    sac = op.SAC(*task.dims, *task.action_range, config)
    sac.fit_normalizers(task.expert["obs"])
    log = op.Log(online=False, total=config.updates)
    for step in op.progress(config.updates, f"iqlearn {task.args.env}", "update"):
        log.add(step, offline_step(sac, op.sample(task.expert, config.batch_size), config))
    sac.actor.actor_logstd.fill_(math.log(config.policy_std))
    return irl.Training(sac.actor, reward_net=saved_reward(sac, task.dims), rows=log.rows)


def train_online(config: Config, task: op.Task) -> irl.Training:
    sac = op.SAC(*task.dims, *task.action_range, config, alpha=config.online_alpha)
    sac.fit_normalizers(task.expert["obs"])
    buffer = op.ReplayBuffer(config.env_steps, *task.dims)
    explorer = op.Explorer(task, buffer)
    log = op.Log(online=True, total=config.env_steps)
    half = config.batch_size // 2
    is_expert = torch.cat([torch.ones(half), torch.zeros(half)])
    for step in op.progress(config.env_steps, f"iqlearn-online {task.args.env}", "step"):
        explorer.step(sac.actor if step > config.random_steps else None)
        report = {}
        if step > config.random_steps:
            batch = op.concatenate(op.sample(task.expert, half), buffer.sample(half))
            report = online_step(sac, {**batch, "is_expert": is_expert}, config)
        log.add(step, report, explorer.returns)
    sac.actor.fit_evaluation_noise(task.expert["obs"])
    return irl.Training(sac.actor, reward_net=saved_reward(sac, task.dims), rows=log.rows)


def main() -> None:
    config, args = op.parse(Config, __doc__)
    if config.online:
        op.run(train_online, config, args, "iqlearn-online")
    else:
        op.run(train_offline, config, args, "iqlearn")


if __name__ == "__main__":
    command_line(main)
