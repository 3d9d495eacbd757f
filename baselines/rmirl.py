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
batch. Deviates from CleanIL, too: 50,000 gradient steps in place of 1M, a fifth of its imagined
transitions, rollouts from states of which half are the expert's, a baseline that makes terminations
bad (modelbased.RewardNetwork).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tqdm import tqdm

import custom_irl as irl
from baselines.dynamics import Ensemble, ensemble_nll
from baselines.modelbased import Learner, ModelBasedConfig
from baselines.modelbased import RewardNetwork as RewardNetwork  # what load_reward rebuilds
from baselines.offpolicy import Batch, adam, gradient_step, sac_step, sample, soft_value, td_target


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
    """Imagined states, actions of the actor, s' of the ensemble as it is; and their advantages."""
    sac = learner.sac
    obs = learner.imagined.sample(learner.config.sac.batch_size)["obs"]
    acts, _ = sac.actor.sample(obs)
    next_obs, _ = learner.ensemble.sample(obs, acts)
    batch = {"obs": obs, "acts": acts, "next_obs": next_obs}
    seen = next_obs.clamp(*learner.bound)
    terminated = learner.terminates(seen).float()
    values = soft_value(sac.actor, sac.q, seen, sac.alpha)
    target = td_target(learner.rewards(batch), terminated, values, sac.config.gamma)
    return batch, target - sac.q(obs, acts).amin(0)


def turn_model(learner: Learner, optimizer: torch.optim.Optimizer, config: Config) -> dict:
    """A round of gradient steps of the ensemble."""
    for _ in range(config.model_steps):
        data = sample(learner.data, config.dynamics.batch_size)
        batch, advantage = draw(learner)
        loss = model_loss(learner.ensemble, data, batch, advantage, config.advantage_weight)
        value = gradient_step(optimizer, loss)
    return {"model_loss": value, "advantage_std": advantage.std().item()}


def train(
    args: irl.Args,
    demos: irl.Demos,
    config: Config = Config(),  # noqa: B008
    after: Callable = lambda *a: None,
) -> irl.Training:
    training = irl.Training(policy=None)
    with training.timed("dynamics"):
        learner = Learner(args, demos, config)
    model_optimizer = adam(learner.ensemble.parameters(), config.model_lr)
    stats = dict(learner.report)
    with training.timed("training"):
        for step in tqdm(range(config.steps), desc="rmirl", unit="step", disable=None):
            if step % config.rollout_every == 0:
                stats |= learner.imagine()
            if step % config.model_every == 0:
                stats |= turn_model(learner, model_optimizer, config)
            if step % config.reward_every == 0:
                stats |= learner.reward_step()
            batch = learner.batch()
            stats |= sac_step(learner.sac, batch, learner.rewards(batch))
            if (step + 1) % 1000 == 0:
                training.rows.append(
                    {"steps": 0, "gradient_steps": step + 1, "true_return": "", **stats}
                )
                after(step + 1, training.rows[-1], learner.sac.actor)
    training.policy, training.reward_net = learner.sac.actor, learner.reward_net
    return training
