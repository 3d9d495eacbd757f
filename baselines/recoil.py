"""ReCOIL (Sikchi et al. 2023, arXiv 2302.08560): imitation as a dual of RL, without a reward.

    python -m baselines.recoil --env Hopper-v4            # offline: expert and mixed transitions
    python -m baselines.recoil --env Hopper-v4 --online   # expert transitions and own replay
    bash run_all.sh --method recoil                       # or recoil-online

Q is high on the expert's state-actions, low on others, and consistent between with reward 0:

    offline  min_Q  (1 - w) [E_O Q(s, pi) - E_E Q(s, a)] + w E_{E,O} (Q - gamma V(s'))^2
                    + E_E (Q - q_max)^2 - E_O min(Q(s, pi), -q_max) + c GP(Q, q_max / 2)
             pi: min  E_{E,O} min(exp((Q(s, a) - V(s)) / alpha), 100) |a - mode(s)|^2  (AWR)
    online   min_Q  (1 - w) [.1 E_E Q(s, pi) + .9 E_R Q(s, pi) - E_E Q(s, a)]
                    + w E_{E,R} (Q - gamma V(s'))^2 + 10 GP(Q, q_max)
             pi: SAC's step on expert and replay states

E: expert, O: mixed data (demos/mixed.py), R: replay. Offline pi is a Gaussian of fixed width around
its mode and V(s) = E_pi Q(s, a) (as in iqlearn.py, and why), and a terminal state is worth 0.
Online V(s) = E_pi Q(s, a) - alpha log pi, and a terminal state leads to an absorbing state: an
input of Q of its own, whose next state it is itself. In the replay's terms it counts as
1 / (1 - gamma) steps for each end in the replay.

Deviates from CleanIL: Q's output is in units of q_max; the absorbing state follows a terminal one
and does not take its place; no noise is added to actions of mixed data in AWR (there 0.1), and the
penalty takes those actions, not the policy's; sizes:

|                           | here         | CleanIL          |
|---------------------------|--------------|------------------|
| gradient steps offline    | 60,000       | 500,000          |
| environment steps online  | 150,000      | 1,000,000        |
| networks                  | 192-192 ReLU | 256-256-256 SiLU |
| batch                     | 64 + 64      | 128 + 128        |

It recovers no reward: Q is fitted with reward 0, so no reward network is saved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import custom_irl as irl
from baselines import offpolicy as op
from benchmark.runs import command_line


@dataclass(frozen=True)
class Config(op.OnlineConfig):
    hidden: tuple[int, ...] = (192, 192)
    batch_size: int = 128
    """transitions in a batch, half of them the expert's"""
    alpha: float = 0.1
    """temperature: offline of the advantages, online of the policy's entropy"""
    policy_std: float = 0.1
    """offline: standard deviation of the policy, in units of the action"""
    online: bool = False
    """learn from environment steps in place of the mixed data"""
    updates: int = 60_000
    """offline: gradient steps"""
    q_max: float = 200.0
    """value of the expert's state-actions, and minus the lower bound elsewhere"""
    td_weight: float = 0.8
    """offline: weight w of the squared Bellman error"""
    max_weight: float = 100.0
    """offline: largest weight of an action in the policy's loss"""
    gp_coef: float | None = None
    """offline: weight c of the gradient penalty; None: 10 for HalfCheetah, else 0"""
    online_td_weight: float | None = None
    """online: weight w of the squared Bellman error; None: .5 for Hopper, else .2"""
    online_gp_coef: float = 10.0
    """online: weight of the gradient penalty"""
    expert_state_share: float = 0.1
    """online: share of the expert's states among those where Q(s, pi) is lowered"""


# ------------------------------------------------------------------------------------------ losses
def contrast(policy_q: torch.Tensor, expert_q: torch.Tensor) -> torch.Tensor:
    """E Q(s, pi) - E_E Q(s, a)."""
    return policy_q.mean() - expert_q.mean()


def bellman_error(
    q_values: torch.Tensor, terminated: torch.Tensor, next_values: torch.Tensor, gamma: float
) -> torch.Tensor:
    """mean (Q(s, a) - gamma (1 - terminated) V(s'))^2: the reward is 0."""
    target = op.td_target(torch.zeros_like(next_values), terminated, next_values, gamma)
    return (q_values - target).square().mean()


def bound_loss(expert_q: torch.Tensor, policy_q: torch.Tensor, q_max: float) -> torch.Tensor:
    """E_E (Q - q_max)^2 - E min(Q(s, pi), -q_max): the expert's at q_max, none below -q_max."""
    return (expert_q - q_max).square().mean() - policy_q.clamp(max=-q_max).mean()


def absorbing_share(terminated: torch.Tensor, gamma: float) -> float:
    """Share of absorbing steps among a replay's: 1 / (1 - gamma) for each end in it."""
    absorbing = terminated.sum().item() / (1 - gamma)
    return absorbing / (len(terminated) + absorbing)


def replay_term(ordinary: torch.Tensor, absorbing: torch.Tensor, share: float) -> torch.Tensor:
    """Mean over a replay whose steps are, in this share, absorbing."""
    return (1 - share) * ordinary.mean() + share * absorbing.mean()


# ---------------------------------------------------------------------------------------- networks
class AbsorbingTwinQ(op.TwinQ):
    """TwinQ with one more input: 1 in the absorbing state, whose other inputs are 0."""

    def __init__(self, obs_dim: int, action_dim: int, hidden: tuple[int, ...], unit: float):
        super().__init__(obs_dim, action_dim + 1, hidden, unit)
        self.register_buffer("absorbing", torch.zeros(1, obs_dim + action_dim + 1))
        self.absorbing[0, -1] = 1.0

    def inputs(self, obs: torch.Tensor, acts: torch.Tensor) -> torch.Tensor:
        return super().inputs(obs, F.pad(acts, (0, 1)))


# -------------------------------------------------------------------------------------------- steps
def offline_step(
    sac: op.SAC, expert: op.Batch, mixed: op.Batch, config: Config, gp_coef: float
) -> dict[str, float]:
    n = len(expert["obs"])
    both = op.concatenate(expert, mixed)
    policy_acts = op.sample_near_mode(sac.actor, both["obs"], config.policy_std)
    next_acts = op.sample_near_mode(sac.actor, both["next_obs"], config.policy_std)
    with torch.no_grad():
        next_values = sac.q_target(both["next_obs"], next_acts).amin(0)
    values = sac.q(both["obs"].repeat(2, 1), torch.cat([both["acts"], policy_acts]))
    q_values, policy_q = values.chunk(2, dim=1)
    expert_q, mixed_policy_q = q_values[:, :n], policy_q[:, n:]
    td = bellman_error(q_values, both["terminated"], next_values, config.gamma)
    loss = (1 - config.td_weight) * contrast(mixed_policy_q, expert_q) + config.td_weight * td
    loss = loss + bound_loss(expert_q, mixed_policy_q, config.q_max)
    if gp_coef:
        inputs = sac.q.inputs(both["obs"], both["acts"])
        loss = loss + gp_coef * op.gradient_penalty(
            sac.q.head, inputs[:n], inputs[n:], config.q_max / 2, critics=2
        )
    op.gradient_step(sac.q_optimizer, loss / config.q_max**2)
    advantages = (q_values.amin(0) - policy_q.amin(0)).detach()
    modes = sac.actor.mode(both["obs"])
    policy_loss = op.awr_loss(modes, both["acts"], advantages, config.alpha, config.max_weight)
    op.gradient_step(sac.actor_optimizer, policy_loss)
    op.polyak_update(sac.q_target, sac.q, config.tau)
    return {
        "q_loss": loss.item(),
        "td": td.item(),
        "expert_q": expert_q.mean().item(),
        "mixed_q": q_values[:, n:].mean().item(),
        "mixed_policy_q": mixed_policy_q.mean().item(),
        "mixed_chosen": (advantages[n:] > 0).float().mean().item(),
        "action_error": (modes - both["acts"])[:n].square().mean().item(),
    }


def online_step(
    sac: op.SAC, expert: op.Batch, replay: op.Batch, share: float, config: Config, td_weight: float
) -> dict[str, float]:
    """`share`: of absorbing steps in the whole replay."""
    n = len(expert["obs"])
    both = op.concatenate(expert, replay)
    with torch.no_grad():
        policy_acts, _ = sac.actor.sample(both["obs"])
        absorbing_next = sac.q_target.head(sac.q.absorbing).amin()
        next_values = op.soft_value(sac.actor, sac.q_target, both["next_obs"], sac.alpha)
        next_values = torch.where(both["terminated"] > 0, absorbing_next, next_values)
    inputs = sac.q.inputs(both["obs"], both["acts"])
    policy_inputs = sac.q.inputs(both["obs"], policy_acts)
    values = sac.q.head(torch.cat([inputs, policy_inputs, sac.q.absorbing]))
    q_values, policy_q, absorbing_q = values.split([2 * n, 2 * n, 1], dim=1)
    expert_q = q_values[:, :n]
    replay_q = replay_term(policy_q[:, n:], absorbing_q, share)
    mix = config.expert_state_share
    lowered = mix * policy_q[:, :n].mean() + (1 - mix) * replay_q
    errors = (q_values - config.gamma * next_values).square()
    absorbing_error = (absorbing_q - config.gamma * absorbing_next).square()
    td = (errors[:, :n].mean() + replay_term(errors[:, n:], absorbing_error, share)) / 2
    penalty = op.gradient_penalty(
        sac.q.head, inputs[:n], policy_inputs[n:], config.q_max, critics=2
    )
    loss = (1 - td_weight) * (lowered - expert_q.mean()) + config.online_gp_coef * penalty
    loss = loss + td_weight * td
    op.gradient_step(sac.q_optimizer, loss)
    report = op.actor_step(sac, both["obs"])
    op.polyak_update(sac.q_target, sac.q, config.tau)
    return {
        "q_loss": loss.item(),
        "td": td.item(),
        "expert_q": expert_q.mean().item(),
        "replay_q": q_values[:, n:].mean().item(),
        "absorbing_q": absorbing_q.mean().item(),
        **report,
    }


# --------------------------------------------------------------------------------------- training
def of_env(value: float | None, env_id: str, special: str, there: float, elsewhere: float) -> float:
    """A coefficient that is chosen by the environment where it is not given."""
    if value is not None:
        return value
    return there if env_id.startswith(special) else elsewhere


def make_sac(config: Config, task: op.Task, q: op.TwinQ) -> op.SAC:
    sac = op.SAC(*task.dims, *task.action_range, config, q=q)
    sac.fit_normalizers(task.expert["obs"])
    return sac


def train_offline(config: Config, task: op.Task) -> irl.Training:
    sac = make_sac(config, task, op.TwinQ(*task.dims, config.hidden, config.q_max))
    gp_coef = of_env(config.gp_coef, task.args.env, "HalfCheetah", 10.0, 0.0)
    log = op.Log(online=False, total=config.updates)
    half = config.batch_size // 2
    for step in op.progress(config.updates, f"recoil {task.args.env}", "update"):
        expert = op.sample(task.expert, half)
        mixed = op.sample(task.mixed, half)
        log.add(step, offline_step(sac, expert, mixed, config, gp_coef))
    sac.actor.actor_logstd.fill_(math.log(config.policy_std))
    return irl.Training(sac.actor, rows=log.rows)


def train_online(config: Config, task: op.Task) -> irl.Training:
    sac = make_sac(config, task, AbsorbingTwinQ(*task.dims, config.hidden, config.q_max))
    td_weight = of_env(config.online_td_weight, task.args.env, "Hopper", 0.5, 0.2)
    buffer = op.ReplayBuffer(config.env_steps, *task.dims)
    explorer = op.Explorer(task, buffer)
    log = op.Log(online=True, total=config.env_steps)
    half = config.batch_size // 2
    for step in op.progress(config.env_steps, f"recoil-online {task.args.env}", "step"):
        explorer.step(sac.actor if step > config.random_steps else None)
        report = {}
        if step > config.random_steps:
            expert, replay = op.sample(task.expert, half), buffer.sample(half)
            share = absorbing_share(buffer.columns_so_far()["terminated"], config.gamma)
            report = online_step(sac, expert, replay, share, config, td_weight)
        log.add(step, report, explorer.returns)
    sac.actor.fit_evaluation_noise(task.expert["obs"])
    return irl.Training(sac.actor, rows=log.rows)


def main() -> None:
    config, args = op.parse(Config, __doc__)
    if config.online:
        op.run(train_online, config, args, "recoil-online")
    else:
        op.run(train_offline, config, args, "recoil", uses_mixed=True)


if __name__ == "__main__":
    command_line(main)
