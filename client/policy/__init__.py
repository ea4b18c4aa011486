"""What a firm demands of every run before its contracts are used, whatever the coordinator asks."""

from client.policy.run_checks import check_run_policy
from client.policy.settings import PolicySettings

__all__ = ["PolicySettings", "check_run_policy"]
