"""Chains: any runnable as a guarded one, repeated as the policy says. Internal."""
