"""What omlirl.py and rmirl.py share: data, explicit reward, and the learner that imagines.

`Learner` holds the ensemble, the reward network, SAC and the imagined transitions; each method's
own file has its loop, and what it does about errors of the ensemble. Sized for a core and half an
hour; beside it the sizes that CleanIL's published returns were reached with:

                              here                                  CleanIL
    gradient steps            15,000                                1,000,000
    actor, critics            256-256 ReLU                          256-256-256 SiLU
    every 250 steps           1,000 rollouts of 40 steps            5,000 of 40
    a step of the reward      for every 2 of SAC                    for every 10
    ensemble                  7 members, 5 kept, 3 x 200            the same
    mixed data                100,000 transitions, below half of    medium-replay of D4RL
                              the expert (demos/mixed.py)
    the actor                 starts as a BC clone, the expert's    starts as initialised, SAC's
                              likelihood in its loss                loss

Read returns with that last line in mind: on 50 episodes the clone alone is nearly as good as the
expert, so that a return near 1 says that r and the ensemble keep it, not that they found it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn as nn

import custom_irl as irl
from baselines.dynamics import DynamicsConfig, fit_ensemble, imagine, termination
from baselines.offpolicy import (
    SAC,
    Batch,
    Normalizer,
    ReplayBuffer,
    SACConfig,
    Task,
    actor_loss,
    adam,
    concatenate,
    critic_step,
    gradient_penalty,
    gradient_step,
    mlp,
    sample,
)


@dataclass(frozen=True)
class ModelBasedConfig(SACConfig):
    """Hyperparameters of both methods, after those of SAC."""

    alpha: float = 0.01
    """temperature of the entropy, fixed: one learned for an entropy of -action_dim keeps noise of
    0.2 in the actions, with which even the expert falls"""
    steps: int = 15_000
    """gradient steps of actor and critics"""
    bc_steps: int = 40_000
    """gradient steps of behaviour cloning that the actor starts from, learning rate annealed"""
    bc_weight: float = 1.0
    """of the expert's likelihood in the actor's loss (`anchored_loss`); 0: SAC alone"""
    q_weight: float = 0.02
    """of SAC's loss beside it, in units of the mean |Q| of a batch; TD3+BC's is 2.5"""
    first_std: float = 0.1
    """standard deviation of the actor's actions, before tanh, after that"""
    actor_lr: float = 1e-4
    """learning rate of the actor, annealed linearly to 0: slower than reward and critics, which
    have to follow it"""
    critic_steps: int = 5_000
    """first of `steps` in which the actor rests, so that the critics are of use when it moves"""
    rollout_every: int = 250
    """gradient steps between two calls of `Learner.imagine`"""
    n_starts: int = 1000
    """rollouts of a call, half from states of the expert, half from states of the mixed data"""
    rollout_steps: int = 40
    """longest rollout"""
    kept_rollouts: int = 10
    """calls whose transitions are kept, more of them where rollouts end early"""
    real_share: float = 0.5
    """of a batch of SAC: half of it the expert's, half mixed; the rest is imagined, likewise"""
    reward_every: int = 2
    """gradient steps of SAC for each of the reward"""
    reward_lr: float = 3e-4
    reward_batch: int = 256
    """expert transitions, and imagined ones, in a gradient step of the reward"""
    gradient_penalty: float = 10.0
    l2: float = 1e-5
    """weight of the squared parameters of the reward"""
    baseline_quantile: float = 0.05
    """quantile of the imagined transitions' reward that counts as 0; see RewardNetwork"""
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)


# ------------------------------------------------------------------------------------------ reward
class RewardNetwork(nn.Module):
    """r(s, a) = clip(f(s, a), -10, 10) - b.

    The likelihood determines r up to a constant. A terminated episode is paid 0 from then on, so
    the constant decides whether it is better to stay alive: b is a low quantile of clip(f) over
    what is imagined, which makes an end worth as much as staying where the reward is lowest.
    """

    bound = 10.0

    def __init__(self, obs_dim: int, action_dim: int):
        super().__init__()
        self.norm = Normalizer(obs_dim + action_dim)
        self.f = mlp(obs_dim + action_dim, (256, 256), 1)
        self.register_buffer("baseline", torch.zeros(()))

    def inputs(self, obs: torch.Tensor, acts: torch.Tensor) -> torch.Tensor:
        return self.norm(torch.cat([obs, acts], -1))

    def clipped(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.f(inputs).squeeze(-1).clamp(-self.bound, self.bound)

    def forward(self, state, action, next_state):
        return self.clipped(self.inputs(state, action)) - self.baseline

    @torch.no_grad()
    def rebase(self, batch: Batch, quantile: float, rate: float) -> None:
        """Moves b by `rate` of the way to that quantile over `batch`."""
        values = self.clipped(self.inputs(batch["obs"], batch["acts"]))
        self.baseline.lerp_(values.quantile(quantile), rate)


def reward_gap(net: RewardNetwork, expert: torch.Tensor, policy: torch.Tensor) -> torch.Tensor:
    """E_expert r - E_policy r, of the network's inputs.

    Its gradient is that of the log-likelihood of the expert's actions under the soft-optimal policy
    of r in the model, if that policy generated `policy`.
    """
    return net.clipped(expert).mean() - net.clipped(policy).mean()


def reward_loss(
    net: RewardNetwork, expert: torch.Tensor, policy: torch.Tensor, config: ModelBasedConfig
) -> torch.Tensor:
    """-(E_expert r - E_policy r) + c GP(r, 1) + w |parameters|^2."""
    penalty = gradient_penalty(net.clipped, expert, policy, 1.0)
    squares = sum(parameter.square().sum() for parameter in net.f.parameters())
    gap = reward_gap(net, expert, policy)
    return -gap + config.gradient_penalty * penalty + config.l2 * squares


# -------------------------------------------------------------------------------------------- data
def bc_loss(sac: SAC, expert: Batch) -> torch.Tensor:
    """mean |mode(s) - a|^2. The log-likelihood of a deterministic expert, whose noise the actor
    would learn to be 0 as well, does worse: its gradients grow as the noise shrinks."""
    return (sac.actor.mode(expert["obs"]) - expert["acts"]).square().sum(-1).mean()


def anchored_loss(sac: SAC, batch: Batch, expert: Batch, config: ModelBasedConfig) -> torch.Tensor:
    """q_weight / mean |Q| * SAC's loss + bc_weight * mean |mode(s) - a|^2, the latter the expert's.

    The second term is the objective of the outer problem, the expert's likelihood, taken by the
    actor directly. SAC alone leaves the BC clone as soon as the actor moves, and 15,000 steps are
    too few to come back. The scale is that of TD3+BC (arXiv 2106.06860).
    """
    acts, logprob = sac.actor.sample(batch["obs"])
    q_values = sac.q(batch["obs"], acts)
    loss = actor_loss(q_values, logprob, sac.alpha)
    if not config.bc_weight:
        return loss
    unit = q_values.detach().abs().mean()
    return config.q_weight / unit * loss + config.bc_weight * bc_loss(sac, expert)


def certain(batch: Batch) -> Batch:
    """Real transitions, with the column that imagined ones have: their uncertainty, 0."""
    return {**batch, "uncertainty": torch.zeros(len(batch["obs"]))}


# ----------------------------------------------------------------------------------------- learner
class Learner:
    """Ensemble, reward network, SAC and imagined transitions, and one step of each."""

    def __init__(self, config: ModelBasedConfig, task: Task):
        self.config = config
        self.terminates = termination(task.args.env)
        self.expert, self.mixed = certain(task.expert), certain(task.mixed)
        self.data = concatenate(self.expert, self.mixed)
        observations = torch.cat([self.data["obs"], self.data["next_obs"]])
        self.bound = (observations.amin(0), observations.amax(0))

        arrays = (self.data[key] for key in ("obs", "acts", "next_obs"))
        self.ensemble, self.fit_report = fit_ensemble(*arrays, config.dynamics, task.args.seed)
        self.reward_net = RewardNetwork(*task.dims)
        self.reward_net.norm.fit(torch.cat([self.data["obs"], self.data["acts"]], -1))
        self.reward_optimizer = adam(self.reward_net.f.parameters(), config.reward_lr)
        self.sac = SAC(*task.dims, *task.action_range, config)
        self.sac.fit_normalizers(self.data["obs"])
        for step in range(config.bc_steps):
            irl.anneal(self.sac.actor_optimizer, config.lr, step, config.bc_steps)
            expert = sample(self.expert, config.batch_size)
            gradient_step(self.sac.actor_optimizer, bc_loss(self.sac, expert))
        self.sac.actor.set_std(config.first_std)
        self.sac.actor_optimizer = adam(self.sac.actor.parameters(), config.actor_lr)
        capacity = config.kept_rollouts * (config.n_starts // 2) * config.rollout_steps
        self.matched = ReplayBuffer(capacity, *task.dims, uncertainty=0)
        self.other = ReplayBuffer(capacity, *task.dims, uncertainty=0)

    def imagine(self) -> dict[str, float]:
        """Rollouts of the present actor in the ensemble, and the reward's baseline on them.

        SAC learns from both kinds: the mixed data's states are where a policy gets that has left
        the expert's. The reward compares the expert with `matched` alone, rollouts from the
        expert's states: a policy that acts as it does is not told from it there, but would be in
        rollouts from other states.
        """
        first = not len(self.matched)
        report = {}
        for name, data, buffer in (
            ("matched", self.expert, self.matched),
            ("other", self.mixed, self.other),
        ):
            starts = sample(data, self.config.n_starts // 2)["obs"]
            rows, uncertainty = imagine(
                self.ensemble,
                lambda obs: self.sac.actor.sample(obs)[0],
                starts,
                self.config.rollout_steps,
                self.terminates,
                self.bound,
            )
            buffer.add(**rows, uncertainty=uncertainty)
            report[f"{name}_length"] = len(uncertainty) / len(starts)
            report[f"{name}_uncertainty"] = uncertainty.mean().item()
        batch = concatenate(self.matched.sample(2048), self.other.sample(2048))
        self.reward_net.rebase(batch, self.config.baseline_quantile, 1.0 if first else 0.1)
        return report | {"reward_baseline": self.reward_net.baseline.item()}

    def reward_step(self) -> dict[str, float]:
        """A gradient step of the reward: the expert against what is imagined."""
        n = self.config.reward_batch
        batches = (sample(self.expert, n), self.matched.sample(n))
        expert, policy = (self.reward_net.inputs(b["obs"], b["acts"]) for b in batches)
        loss = reward_loss(self.reward_net, expert, policy, self.config)
        gradient_step(self.reward_optimizer, loss)
        with torch.no_grad():
            gap = reward_gap(self.reward_net, expert, policy)
        return {"reward_loss": loss.item(), "reward_gap": gap.item()}

    def batch(self) -> Batch:
        """A batch for SAC: imagined and real transitions, from the expert's and from mixed data."""
        n = self.config.batch_size // 2
        n_real = round(n * self.config.real_share)
        return concatenate(
            self.matched.sample(n - n_real),
            self.other.sample(n - n_real),
            sample(self.expert, n_real),
            sample(self.mixed, n_real),
        )

    @torch.no_grad()
    def rewards(self, batch: Batch) -> torch.Tensor:
        """What SAC is paid, (n,): r without its baseline b, and for an end gamma b / (1 - gamma).

        Paying r - b and 0 for an end has the same optimal policies, but its values are larger by
        -b / (1 - gamma), which the critics would have to learn first, and anew as b moves.
        """
        net, gamma = self.reward_net, self.config.gamma
        rewards = net.clipped(net.inputs(batch["obs"], batch["acts"]))
        return rewards + batch["terminated"] * gamma / (1 - gamma) * net.baseline

    def policy_step(self, step: int, batch: Batch, rewards: torch.Tensor) -> dict[str, float]:
        """SAC's step number `step`, from 1 on; without the actor's in the first `critic_steps`."""
        report = critic_step(self.sac, batch, rewards)
        if step <= self.config.critic_steps:
            return report
        irl.anneal(self.sac.actor_optimizer, self.config.actor_lr, step - 1, self.config.steps)
        expert = sample(self.expert, self.config.batch_size)
        loss = anchored_loss(self.sac, batch, expert, self.config)
        return report | {"actor_loss": gradient_step(self.sac.actor_optimizer, loss)}

    def training(self, rows: list[dict]) -> irl.Training:
        """What a run saves."""
        self.sac.actor.fit_evaluation_noise(self.expert["obs"])
        return irl.Training(self.sac.actor, reward_net=self.reward_net, rows=rows)
