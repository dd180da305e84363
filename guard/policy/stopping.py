"""Who cannot stop an answer before its end."""

from __future__ import annotations

from guard.errors import PolicyError
from guard.policy.policy import Policy


def refuse_early(policy: Policy, *, caller: str, why: str) -> None:
    """Refuse a policy that stops answers early, for a caller that cannot; a shadow policy would record nothing of it.

    Args:
        policy: to be used by the caller.
        caller: in words, such as ``a chain``.
        why: it cannot stop.
    """
    if policy.needs_early:
        raise PolicyError(
            f"The policy '{policy.name}' stops answers early, which {caller} cannot",
            why=why,
            fix="Leave 'early' out, or give the policy to the model: ChatGuard(policy=...)",
        )
