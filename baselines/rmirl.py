"""Robust model-based offline IRL, from a Bayesian view (Wei et al. 2023, arXiv 2309.08571).

    python -m baselines.rmirl --env Hopper-v4

    max_r,p  E_expert log pi_{r,p}(a|s) + lambda E_data log p(s'|s,a),
    pi_{r,p} = argmax_pi E_p [sum gamma^t (r + H(pi))]

Reward and dynamics are inferred together: the expert is believed to have a model p that fits the
data well (lambda, the prior's precision). Raising the expert's likelihood in p lowers the value of
the policy's own, other actions, so p turns against the policy wherever data does not hold it: the
policy is robust, without any penalty. As in RAMBO (arXiv 2204.12581), the ensemble takes steps of

    -E_data log p + w E_{s' ~ p} [A(s, a, s') log p(s'|s, a)],   A = r + gamma V(s') - Q(s, a)

between those of SAC on r and of r on E_expert r - E_imagined r.

Deviates from the paper: the likelihood's gradient by transitions and not by discounted
trajectories; a gradient penalty on r; advantages normalised to mean 0 and standard deviation 1 in a
batch. From CleanIL, too: 15,000 gradient steps in place of 1M (sizes: modelbased.py);
the actor starts as a BC clone and its loss holds the expert's likelihood (modelbased.anchored_loss;
--bc-weight 0 --bc-steps 0 is without both); ends cost (modelbased.RewardNetwork); the reward sees
rollouts from the expert's states alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

import custom_irl as irl
from baselines.dynamics import Ensemble, ensemble_nll
from baselines.modelbased import Learner, ModelBasedConfig
from baselines.modelbased import RewardNetwork as RewardNetwork  # what load_reward rebuilds
from baselines.offpolicy import (
    Batch,
    Log,
    Task,
    adam,
    gradient_step,
    parse,
    progress,
    run,
    sample,
    soft_value,
    td_target,
)
from benchmark.runs import command_line


@dataclass(frozen=True)
class Config(ModelBasedConfig):
    model_every: int = 1000
    """gradient steps of SAC between two rounds of the ensemble"""
    model_steps: int = 100
    """gradient steps of the ensemble in a round"""
    model_lr: float = 1e-4
    advantage_weight: float = 0.05
    """w, of the adversarial term; that of the data's likelihood is 1"""


def adversarial_loss(ensemble: Ensemble, batch: Batch, advantage: torch.Tensor) -> torch.Tensor:
    """E[A log p(s'|s, a)] with s' drawn from p: its gradient is that of the model's value."""
    normalized = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
    return (normalized * ensemble.log_prob(batch["obs"], batch["acts"], batch["next_obs"])).mean()


def model_loss(
    ensemble: Ensemble, data: Batch, drawn: Batch, advantage: torch.Tensor, weight: float
) -> torch.Tensor:
    """-E_data log p (mean over members) + w E_{s' ~ p} [A log p]."""
    nll = ensemble_nll(ensemble, data["obs"], data["acts"], data["next_obs"]).mean()
    return nll + weight * adversarial_loss(ensemble, drawn, advantage)


@torch.no_grad()
def draw(learner: Learner) -> tuple[Batch, torch.Tensor]:
    """States of a batch, actions of the actor, s' of the ensemble; and their advantages."""
    sac = learner.sac
    obs = learner.batch()["obs"]
    acts, _ = sac.actor.sample(obs)
    next_obs, _ = learner.ensemble.sample(obs, acts)
    seen = next_obs.clamp(*learner.bound)
    terminated = learner.terminates(seen).float()
    batch = {"obs": obs, "acts": acts, "next_obs": next_obs, "terminated": terminated}
    values = soft_value(sac.actor, sac.q, seen, sac.alpha)
    target = td_target(learner.rewards(batch), terminated, values, learner.config.gamma)
    return batch, target - sac.q(obs, acts).amin(0)


def turn_model(learner: Learner, optimizer: torch.optim.Optimizer, config: Config) -> dict:
    """A round of gradient steps of the ensemble."""
    for _ in range(config.model_steps):
        data = sample(learner.data, config.dynamics.batch_size)
        batch, advantage = draw(learner)
        loss = model_loss(learner.ensemble, data, batch, advantage, config.advantage_weight)
        value = gradient_step(optimizer, loss)
    return {"model_loss": value, "advantage_std": advantage.std().item()}


def train(config: Config, task: Task) -> irl.Training:
    learner = Learner(config, task)
    model_optimizer = adam(learner.ensemble.parameters(), config.model_lr)
    log = Log(online=False, total=config.steps)
    for step in progress(config.steps, f"rmirl {task.args.env}", "step"):
        report = {}
        if (step - 1) % config.rollout_every == 0:
            report |= learner.imagine() | learner.fit_report
        if step % config.model_every == 0:
            report |= turn_model(learner, model_optimizer, config)
        if step % config.reward_every == 0:
            report |= learner.reward_step()
        batch = learner.batch()
        report |= learner.policy_step(step, batch, learner.rewards(batch))
        log.add(step, report)
    return learner.training(log.rows)


def main() -> None:
    config, args = parse(Config, __doc__)
    run(train, config, args, "rmirl", uses_mixed=True, parts=(Learner, Ensemble))


if __name__ == "__main__":
    command_line(main)
