"""The TrafficPlan as the controller writes it; `docs/reference/contracts.md` describes it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fairlead_rollout.domain.access import render_access
from fairlead_rollout.domain.eligibility import render_eligible
from fairlead_rollout.domain.lanes import Lane, lane_salt
from fairlead_rollout.domain.shares import TOTAL_WEIGHT
from fairlead_rollout.domain.spec import ServedModelSpec

Plan = dict[str, Any]
RETRY_ATTEMPTS = 3  # by turns the version and its fallback, so that one of each may be lost


def build_plan(  # noqa: PLR0913 -- one argument for each thing the plan names
    spec: ServedModelSpec,
    *,
    name: str,
    stable: str,
    candidate: str | None = None,
    weight: int = 0,
    rollout: str | None = None,
    step: int | None = None,
    shadows: Mapping[str, int] = MappingProxyType({}),
    lanes: Sequence[Mapping[str, Any]] = (),
) -> Plan:
    """Build the plan of one served model.

    Args:
        spec: What the person asked for.
        name: The ServedModel's name, the one in the path.
        stable: The version of the stable arm.
        candidate: The version on trial, or None outside a rollout.
        weight: The candidate's share, of 10,000.
        rollout: The rollout's id; it is the salt too.
        step: The step's index.
        shadows: Versions that get copies, each with its share of the requests, of 10,000.
        lanes: What `build_lane` made of each of several rollouts beside each other.
    """
    arms = _build_arms(stable, candidate, weight)
    eligible = render_eligible(spec.eligibility, name)
    return {
        "model": name,
        "rollout": rollout,
        "step": step,
        "salt": rollout or "",
        "unit": dict(spec.unit),
        "arms": arms,
        "shadow": [{"version": v, "share": share} for v, share in shadows.items()],
        "fallback": stable if candidate is not None else None,
        "timeout": spec.timeout.total_seconds(),
        "retries": {"attempts": RETRY_ATTEMPTS, "onReset": spec.retry_on_reset},
        "limits": {"maxBodyBytes": spec.max_body_bytes},
        **render_access(spec.access),
        **({"eligible": eligible} if eligible else {}),
        **({"lanes": {"salt": lane_salt(name), "trials": list(lanes)}} if lanes else {}),
    }


def build_lane(  # noqa: PLR0913 -- one argument for each thing the lane names
    lane: Lane, *, stable: str, candidate: str, weight: int, rollout: str, step: int
) -> Mapping[str, Any]:
    """Build the part of a plan that one of several rollouts is.

    Args:
        lane: Its units.
        stable: The version of the stable arm.
        candidate: The version on trial.
        weight: The candidate's share of the lane, of 10,000.
        rollout: The rollout's id; it is the salt of the lane's split too.
        step: The step's index.
    """
    arms = _build_arms(stable, candidate, weight)
    return {"from": lane.start, "to": lane.end, "rollout": rollout, "step": step, "arms": arms}


def lanes_in(plan: Plan | None) -> Sequence[Mapping[str, Any]]:
    """Return the parts of a plan that several rollouts beside each other are; none for one."""
    trials: Sequence[Mapping[str, Any]] = (plan or {}).get("lanes", {"trials": ()})["trials"]
    return trials


def _build_arms(stable: str, candidate: str | None, weight: int) -> list[dict[str, Any]]:
    arms = [{"arm": "stable", "version": stable, "weight": TOTAL_WEIGHT - weight}]
    if candidate is not None:
        arms.insert(0, {"arm": "candidate", "version": candidate, "weight": weight})
    return arms


def plan_digest(plan: Plan) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the plan's canonical JSON."""
    canonical = json.dumps(plan, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def versions_in(plan: Plan | None) -> frozenset[str]:
    """Return the versions that get requests or copies under a plan, the fallback included."""
    if plan is None:
        return frozenset()
    arms = [*plan["arms"], *(arm for lane in lanes_in(plan) for arm in lane["arms"])]
    versions = {entry["version"] for entry in (*arms, *plan["shadow"])}
    return frozenset(versions | ({plan["fallback"]} if plan["fallback"] else set()))
