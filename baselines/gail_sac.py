"""GAIL (Ho and Ermon 2016, arXiv 1606.03476) with SAC, a Wasserstein critic and ends in the reward.

    python -m baselines.gail_sac --env Hopper-v4
    bash run_all.sh --method gail-sac

A reward r(s, a, d), d = 1 where the step ended the episode in a terminal state, is high on expert
transitions and low on the policy's; SAC maximises it from replay, the reward of every sampled
transition being computed anew:

    r:   min  E_R r - E_E r + 10 GP(r, 1) + 1e-5 E r^2                            (E: expert)
    pi:  SAC with  Q(s, a) <- r + gamma V(s'),  and at an end  r + gamma r / (1 - gamma)

A terminal state pays the reward of the step that led there forever (an absorbing state, Kostrikov
et al. 2019, arXiv 1809.02925), so that adding a constant to r changes no policy: without it, a
reward that is negative everywhere makes an early end worth while. d counts 20 in the network's
input, so that r can be its least at an end however much s and a look like the expert's: with 1, an
end beside the expert's states paid the most of all. GP is of the Euclidean norm of the gradient,
and r differs by a few units between expert and policy: with the largest component it differed by
58 on Walker2d, and nearly all of it was clipped. R is the replay's newest `recent` transitions.
Half of a batch of SAC is the expert's, paid r like the rest, as in CleanIL. Deviates from CleanIL:
the absorbing value and d's unit; GP's norm; r is clipped for SAC, not in its own loss; the l2 term
is on r, not on the parameters; R is not the whole replay; sizes:

|                       | here                          | CleanIL                       |
|-----------------------|-------------------------------|-------------------------------|
| environment steps     | 150,000                       | 1,000,000                     |
| SAC and reward steps  | 1 and 1/2 an environment step | 1 and 1 an environment step   |
| networks, batch       | 128-128 ReLU, 128             | 256-256-256 SiLU, 256         |

The reward that a run saves is a function of (s, a, s'), with the absorbing value: d is what a
classifier of terminal states, fitted to the replay after training, says of s'.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import custom_irl as irl
from baselines import offpolicy as op
from benchmark.runs import command_line

REWARD_HIDDEN = (128, 128)
TERMINATION_HIDDEN = (64,)


@dataclass(frozen=True)
class Config(op.OnlineConfig):
    hidden: tuple[int, ...] = (128, 128)
    batch_size: int = 128
    q_unit: float = 100.0
    """scale of the critics' output: of a reward of a few units a step, for ever"""
    reward_lr: float = 3e-4
    """Adam's learning rate of the reward"""
    reward_every: int = 2
    """environment steps for each gradient step of the reward"""
    expert_share: float = 0.5
    """of a batch of SAC: expert transitions, paid the present reward like the replay's"""
    recent: int = 20_000
    """newest transitions that the policy's batch of the reward is drawn from"""
    gp_coef: float = 10.0
    """weight of the gradient penalty"""
    gp_target: float = 1.0
    """largest slope of the reward that is not penalised"""
    l2_coef: float = 1e-5
    """weight of the squared reward"""
    termination_steps: int = 2_000
    """gradient steps of the classifier of terminal states, after training"""


class GAILReward(nn.Module):
    """r(s, a, d), clipped to +-10. `forward(s, a, s')` is what SAC maximised, `absorbing_rewards`
    of r, with d from a classifier of s'.
    """

    CLIP = 10.0
    END_UNIT = 2 * CLIP  # of d in the input: with a slope of 1 an end can lower r from 10 to -10

    def __init__(self, obs_dim: int, action_dim: int):
        super().__init__()
        self.norm = op.Normalizer(obs_dim)
        self.layers = op.mlp(obs_dim + action_dim + 1, REWARD_HIDDEN, 1)
        self.termination = op.mlp(obs_dim, TERMINATION_HIDDEN, 1)
        self.register_buffer("knows_ends", torch.tensor(0.0))
        self.register_buffer("gamma", torch.tensor(Config.gamma))

    def inputs(
        self, obs: torch.Tensor, acts: torch.Tensor, terminated: torch.Tensor
    ) -> torch.Tensor:
        return torch.cat([self.norm(obs), acts, self.END_UNIT * terminated[:, None]], -1)

    def head(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).squeeze(-1)

    def reward(
        self, obs: torch.Tensor, acts: torch.Tensor, terminated: torch.Tensor
    ) -> torch.Tensor:
        return self.head(self.inputs(obs, acts, terminated)).clamp(-self.CLIP, self.CLIP)

    def termination_logit(self, obs: torch.Tensor) -> torch.Tensor:
        return self.termination(self.norm(obs)).squeeze(-1)

    def forward(self, state, action, next_state):
        ended = (self.termination_logit(next_state) > 0).float() * self.knows_ends
        return absorbing_rewards(self.reward(state, action, ended), ended, self.gamma)


# ------------------------------------------------------------------------------------------ losses
def reward_loss(expert: torch.Tensor, policy: torch.Tensor, l2_coef: float) -> torch.Tensor:
    """E_R r - E_E r + l2_coef E r^2: the Wasserstein critic's loss."""
    return policy.mean() - expert.mean() + l2_coef * torch.cat([expert, policy]).square().mean()


def absorbing_rewards(
    rewards: torch.Tensor, terminated: torch.Tensor, gamma: float | torch.Tensor
) -> torch.Tensor:
    """r, and at an end r / (1 - gamma): what it pays if it is paid forever."""
    return torch.where(terminated > 0, rewards / (1 - gamma), rewards)


# -------------------------------------------------------------------------------------------- steps
def reward_step(
    net: GAILReward,
    optimizer: torch.optim.Optimizer,
    expert: op.Batch,
    policy: op.Batch,
    config: Config,
) -> dict[str, float]:
    columns = ("obs", "acts", "terminated")
    expert_inputs = net.inputs(*(expert[name] for name in columns))
    policy_inputs = net.inputs(*(policy[name] for name in columns))
    rewards = net.head(torch.cat([expert_inputs, policy_inputs]))
    expert_r, policy_r = rewards.split([len(expert_inputs), len(policy_inputs)])
    penalty = op.gradient_penalty(
        net.head, expert_inputs, policy_inputs, config.gp_target, euclidean=True
    )
    loss = reward_loss(expert_r, policy_r, config.l2_coef) + config.gp_coef * penalty
    op.gradient_step(optimizer, loss)
    return {
        "reward_loss": loss.item(),
        "penalty": penalty.item(),
        "expert_reward": expert_r.mean().item(),
        "policy_reward": policy_r.mean().item(),
        "clipped": (policy_r.abs() > net.CLIP).float().mean().item(),
    }


def fit_termination(net: GAILReward, replay: op.Batch, steps: int) -> None:
    """Logistic regression of `terminated` on s', half of each batch ends; none without ends."""
    ended = replay["terminated"] > 0
    if not ended.any():
        return
    ends = replay["next_obs"][ended]
    others = replay["next_obs"][~ended]
    optimizer = op.adam(net.termination.parameters(), lr=1e-3)
    labels = torch.cat([torch.ones(128), torch.zeros(128)])
    for _ in range(steps):
        rows = torch.randint(len(ends), (128,)), torch.randint(len(others), (128,))
        logits = net.termination_logit(torch.cat([ends[rows[0]], others[rows[1]]]))
        op.gradient_step(optimizer, F.binary_cross_entropy_with_logits(logits, labels))
    net.knows_ends.fill_(1.0)


# --------------------------------------------------------------------------------------- training
def train(config: Config, task: op.Task) -> irl.Training:
    q = op.TwinQ(*task.dims, config.hidden, config.q_unit)
    sac = op.SAC(*task.dims, *task.action_range, config, q=q)
    sac.fit_normalizers(task.expert["obs"])
    net = GAILReward(*task.dims)
    net.gamma.fill_(config.gamma)
    net.norm.fit(task.expert["obs"])
    learned = (*net.layers.parameters(),)
    optimizer = op.adam(learned, config.reward_lr)
    buffer = op.ReplayBuffer(config.env_steps, *task.dims)
    explorer = op.Explorer(task, buffer)
    log = op.Log(online=True, total=config.env_steps)
    for step in op.progress(config.env_steps, f"gail-sac {task.args.env}", "step"):
        explorer.step(sac.actor if step > config.random_steps else None)
        report = {}
        if step > config.random_steps and step % config.reward_every == 0:
            expert = op.sample(task.expert, config.batch_size)
            policy = buffer.sample(config.batch_size, config.recent)
            report |= reward_step(net, optimizer, expert, policy, config)
        if step > config.random_steps:
            n_expert = round(config.expert_share * config.batch_size)
            replayed = buffer.sample(config.batch_size - n_expert)
            batch = op.concatenate(op.sample(task.expert, n_expert), replayed)
            with torch.no_grad():
                rewards = net.reward(batch["obs"], batch["acts"], batch["terminated"])
            rewards = absorbing_rewards(rewards, batch["terminated"], config.gamma)
            report |= op.sac_step(sac, batch, rewards)
        log.add(step, report, explorer.returns)
    sac.actor.fit_evaluation_noise(task.expert["obs"])
    fit_termination(net, buffer.columns_so_far(), config.termination_steps)
    return irl.Training(sac.actor, reward_net=net, rows=log.rows)


def main() -> None:
    config, args = op.parse(Config, __doc__)
    op.run(train, config, args, "gail-sac")


if __name__ == "__main__":
    command_line(main)
