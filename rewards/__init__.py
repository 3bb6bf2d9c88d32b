"""Rewards: `reward(images, prompts) -> scores`, higher is better."""
