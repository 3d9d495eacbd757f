"""Model-based inverse reinforcement learning: a cost learned through a differentiable planner."""
