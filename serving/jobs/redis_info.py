"""What INFO tells of a Redis at the start of a program: whether it can keep what the service promises.

INFO alone is asked, since CONFIG is not among the rights that docs/deployment.md names. What a server does not tell,
some that speak Redis's protocol leave much out, is taken to be in order.
"""

from collections.abc import Mapping
from typing import Any

OLDEST_VERSION = (6, 2)  # BLMOVE
IS_IN_CLUSTER_MODE = (
    "this Redis runs in cluster mode, in which a script cannot set an answer beside its queue; the service needs one "
    "with cluster-enabled no"
)
HAS_NO_SUCH_DATABASE = (
    "this Redis has no database of that number; a Valkey in cluster mode has number 0 alone, and the service needs one "
    "with cluster-enabled no"
)
IS_SENTINEL = "this is a Sentinel, not a Redis; write redis+sentinel://host:port/service_name for the primary it names"


def refusal(info: Mapping[str, Any]) -> str | None:
    """Why the service cannot work with the Redis that told `info`; None if it can."""
    version = str(info["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_VERSION:
        return f"this is Redis {version}"
    mode = info.get("redis_mode") or info.get("server_mode")  # Redis's name for it, and Valkey's
    if mode == "sentinel":
        return IS_SENTINEL
    if mode == "cluster" or info.get("cluster_enabled") == 1:
        return IS_IN_CLUSTER_MODE
    if info.get("role") == "slave":
        # One that takes writes (replica-read-only no) loses them with the next copy of its primary.
        primary = f"{info.get('master_host')}:{info.get('master_port')}"
        return f"this Redis is a replica of {primary}, and keeps no job that it is given; name the primary"
    return None


def told_version(info: Mapping[str, Any]) -> str | None:
    """The version of what told `info`, with Valkey's own behind it: "7.2.4 (Valkey 9.1.2)". None: it does not tell."""
    redis, valkey = info.get("redis_version"), info.get("valkey_version")
    return f"{redis} (Valkey {valkey})" if redis and valkey else redis


def doubts(info: Mapping[str, Any]) -> list[str]:
    """What may cost accepted jobs or answers in the Redis that told `info`: a sentence each, with what to set."""
    found = []
    policy = info.get("maxmemory_policy", "noeviction")
    if info.get("maxmemory", 0) > 0 and policy != "noeviction":
        # Jobs that wait have no lifetime. Answers have one, and the counts of jobs that came back.
        what = "answers away that nobody has read" if policy.startswith("volatile") else "accepted jobs away"
        found.append(
            f"Redis throws {what} when its memory is full: set its maxmemory-policy to noeviction, not {policy}"
        )
    if info.get("aof_enabled") == 0:
        found.append(
            "Redis writes no log of its changes, so that a restart of it loses accepted jobs: set its appendonly to yes"
        )
    return found
