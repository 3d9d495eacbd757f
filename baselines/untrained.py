"""Control: AIRL's reward network as initialised, never trained.

python -m baselines.untrained --env Hopper-v4
"""

from baselines.airl import AIRLReward
from baselines.frozen import Frozen
from custom_irl import main


class Untrained(Frozen):
    """The network's inputs are normalised by the demonstrations, as a trained one's are."""

    needs_demos = True

    def __init__(self, reward_net, expert_demos, obs_dim, action_dim, device, args):
        super().__init__(reward_net, expert_demos, obs_dim, action_dim, device, args)
        demos = (expert_demos["obs"], expert_demos["acts"], expert_demos["next_obs"])
        reward_net.update_normalizer(*demos)


if __name__ == "__main__":
    main(AIRLReward, Untrained, method="untrained")
