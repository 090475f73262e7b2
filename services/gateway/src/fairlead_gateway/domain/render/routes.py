"""The routes: which arm a request goes to, by model."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fairlead_gateway.domain.plan import (
    LANES,
    Arm,
    ArmName,
    Shadow,
    TrafficPlan,
    Unit,
    UnitKind,
)
from fairlead_gateway.domain.render.access import (
    JWT_FILTER,
    KEY_FILTER,
    OVERRIDE_FILTER,
    render_jwt,
    render_keys,
)
from fairlead_gateway.domain.render.clusters import cluster_name
from fairlead_gateway.domain.render.eligibility import render_inside, render_outside, render_text
from fairlead_gateway.domain.render.rates import RATE_FILTER, render_rate_limit
from fairlead_gateway.domain.render.shared import (
    CLAIM_HEADER,
    CLIENT_HEADER,
    COMPARE_HEADER,
    INFERENCE_ID,
    JSON,
    OVERRIDE_ARM,
    OVERRIDE_KEY,
    PATH_HEADER,
    PLAIN_PATH_HEADER,
    ROLLOUTS,
    TYPE,
    expression,
    safe_regex,
    set_header,
)
from fairlead_gateway.domain.render.units import (
    TEXT,
    UNIT_HEADER,
    cookie_pattern,
    internal_header,
    source_of,
)

_POST = {"name": ":method", "string_match": {"exact": "POST"}}

_SILENCE = 10  # Seconds beyond its timeout in which nothing of a request comes: its client is gone.


NO_MODEL = "-"
"""The scope that keeps Envoy reading the rollouts' routes; no model can have its name."""


def render_scope(units: Collection[Unit], plan: TrafficPlan) -> JSON:
    """Render the scope of a model with routes of its own, which Envoy keeps until they change.

    Args:
        units: The units the listener copies into internal headers.
        plan: The plan of the model.
    """
    host = {"name": plan.model, "domains": ["*"], "routes": _routes_of(plan)}
    return {**_scope(plan.model), "route_configuration": _configuration(plan.model, units, host)}


def render_shared_scope(name: str) -> JSON:
    """Render the scope of a model whose routes are among the rollouts'."""
    return {**_scope(name), "route_configuration_name": ROLLOUTS}


def _scope(name: str) -> JSON:
    return {"name": name, "key": {"fragments": [{"string_key": name}]}}


def render_rollouts(units: Collection[Unit], models: object) -> JSON:
    """Render the routes of the models in a rollout.

    Envoy reads a file whole, and makes a route configuration anew as a whole. These are the routes
    that change often, so they are in a file and a configuration of their own: a weight costs the
    same beside a thousand other models as beside none. A request's model is found by the longest
    prefix of its path, as trying the routes of all one after the other would cost milliseconds.

    Args:
        units: The units the listener copies into internal headers.
        models: The routes of the models by the prefix of their paths; empty if there are none.
    """
    host: JSON = {"name": ROLLOUTS, "domains": ["*"]}
    if models:
        host["matcher"] = {
            "matcher_tree": {
                "input": {
                    "name": "path",
                    "typed_config": {
                        "@type": f"{TYPE}type.matcher.v3.HttpRequestHeaderMatchInput",
                        "header_name": PATH_HEADER,
                    },
                },
                "prefix_match_map": {"map": models},
            },
            "on_no_match": _unknown(),
        }
    else:
        host["routes"] = [_unknown_route()]
    return _configuration(ROLLOUTS, units, host)


def _configuration(name: str, units: Collection[Unit], host: JSON) -> JSON:
    return {
        "name": name,
        "ignore_port_in_host_matching": True,
        "request_headers_to_remove": [
            *sorted(internal_header(unit) for unit in units),
            *(PATH_HEADER, PLAIN_PATH_HEADER),
            *(CLAIM_HEADER, CLIENT_HEADER, OVERRIDE_ARM, OVERRIDE_KEY),
        ],
        "virtual_hosts": [host],
    }


def render_model_routes(plan: TrafficPlan) -> JSON:
    """Render one model's routes among the rollouts', by the prefix of `PATH_HEADER`."""
    return {f"/v2/models/{plan.model}/": _eligible_first(plan)}


def _eligible_first(plan: TrafficPlan) -> JSON:
    """Render the routes of units outside each range, of those in each lane, and of all others.

    While no rollout is running there is nothing to be kept out of.
    """
    others = _routes(_routes_of(plan.trials[0]))
    header = source_of(plan).header
    outside = [_match(render_outside(each, header), plan, each.reason) for each in plan.eligible]
    matchers = [*outside, *_in_lanes(plan, header)]
    if not plan.is_on_trial or not matchers:
        return others
    return {"matcher": {"matcher_list": {"matchers": matchers}, "on_no_match": others}}


def _in_lanes(plan: TrafficPlan, header: str) -> list[JSON]:
    """Render the routes of each lane, and those of units in a lane that has no trial any more.

    A request without a unit is left: it counts as one without a unit in the first lane's rollout.
    """
    if not plan.lanes:
        return []
    inside = [_match(render_inside(lane.range, header), plan.in_lane(lane)) for lane in plan.lanes]
    return [*inside, _match(render_text(header), plan, LANES)]


def _match(predicate: JSON, plan: TrafficPlan, outside: str | None = None) -> JSON:
    return {"predicate": predicate, "on_match": _routes(_routes_of(plan, outside=outside))}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Paths:
    """Where a model is asked, by either protocol.

    Attributes:
        predictions: What matches a prediction, once the method does.
        all: What matches everything that is known.
        rewrite: How the path becomes the serving process's own.
    """

    predictions: JSON
    all: JSON
    rewrite: JSON


def _paths_of(name: str) -> _Paths:
    invocations, inference = f"/models/{name}", f"/v2/models/{name}"
    known = f"{invocations}/(invocations|openapi\\.json|docs)|{inference}(/.*)?"
    # A path of the other protocol does not match, and stays as it is.
    rewrite = {"pattern": expression(f"^{invocations}/"), "substitution": "/"}
    return _Paths(
        predictions=safe_regex(f"{invocations}/invocations|{inference}/.+"),
        all=safe_regex(known),
        rewrite={"regex_rewrite": rewrite},
    )


def _routes(routes: Sequence[JSON]) -> JSON:
    typed = {"@type": f"{TYPE}config.route.v3.RouteList", "routes": routes}
    return {"action": {"name": "routes", "typed_config": typed}}


def _routes_of(plan: TrafficPlan, *, outside: str | None = None) -> list[JSON]:
    """Render bad ids, what a person chooses, predictions with a unit and without one, all else.

    Without a rollout there is nothing to split and nothing to report: all goes to stable. Each
    kind of predictions has a route for those that are copied before the one for the rest.
    """
    paths = _paths_of(plan.model)
    predictions = [
        kind
        for route in _prediction_routes(plan, paths, outside)
        for kind in (*_copied(plan, route), route)
    ]
    return [
        _bad_id_route(plan, paths),
        *_override_routes(plan, paths),
        *predictions,
        _arm_route(plan, plan.stable, paths.all, paths),
    ]


def _prediction_routes(plan: TrafficPlan, paths: _Paths, outside: str | None) -> list[JSON]:
    """Render what tells predictions apart; without a rollout there is no need, but for copies."""
    if plan.rollout is not None and outside is None:
        return [_split_route(plan, paths), _unitless(plan, paths)]
    route = _arm_route(plan, plan.stable, {**paths.predictions, "headers": [_POST]}, paths)
    if outside is not None:
        route["metadata"]["filter_metadata"]["fairlead"]["outside"] = outside
    return [route] if outside is not None or plan.shadow else []


def _copied(plan: TrafficPlan, route: JSON) -> list[JSON]:
    """Render the route of the share of a route's requests that shadows get copies of.

    Both the request and its copy are marked, so that what was predicted for them is compared.
    Where shadows have shares of their own, a smaller one lies within a larger one: Envoy draws
    once for a request, for its route and for its copies.
    """
    if not plan.shadow:
        return []
    largest = max(copy.share for copy in plan.shadow)
    marked = [*route["request_headers_to_add"], set_header(COMPARE_HEADER, "answer")]
    copies = [_mirror(plan.model, copy) for copy in plan.shadow]
    return [
        {
            **route,
            "match": {**route["match"], "runtime_fraction": _fraction(largest)},
            "request_headers_to_add": marked,
            "route": {**route["route"], "request_mirror_policies": copies},
        }
    ]


def _mirror(model: str, copy: Shadow) -> JSON:
    return {
        "cluster": cluster_name(model, copy.version),
        "runtime_fraction": _fraction(copy.share),
        "request_headers_mutations": [{"append": set_header(COMPARE_HEADER, "shadow")}],
    }


def _fraction(share: int) -> JSON:
    return {"default_value": {"numerator": share, "denominator": "TEN_THOUSAND"}}


def _split_route(plan: TrafficPlan, paths: _Paths) -> JSON:
    source = source_of(plan)
    has_unit = [
        {"name": source.header, "string_match": safe_regex(pattern)}
        for pattern in dict.fromkeys([source.present, TEXT])
    ]
    return {
        "match": {**paths.predictions, "headers": [_POST, *has_unit]},
        **_common(plan, counted=True),
        "route": {**_action(plan), **paths.rewrite, **_split(plan)},
    }


def _unitless(plan: TrafficPlan, paths: _Paths) -> JSON:
    match = {**paths.predictions, "headers": [_POST]}
    return _arm_route(plan, plan.stable, match, paths, counted=True)


def _arm_route(
    plan: TrafficPlan, arm: Arm, match: JSON, paths: _Paths, *, counted: bool = False
) -> JSON:
    cluster = cluster_name(plan.model, arm.version)
    return {
        "match": match,
        **_common(plan, counted=counted, arm=arm),
        "route": {**_action(plan), **paths.rewrite, "cluster": cluster},
    }


def _override_routes(plan: TrafficPlan, paths: _Paths) -> list[JSON]:
    """Render the arms a person with a key may choose; outside a rollout there is but stable."""
    if not plan.access.override_keys:
        return []
    arms = {ArmName.CANDIDATE: plan.arms[0], ArmName.STABLE: plan.stable}
    chosen = [_override_route(plan, name, arm, paths) for name, arm in arms.items()]
    return [*chosen, _bad_override_route(plan, paths)]


def _override_route(plan: TrafficPlan, name: ArmName, arm: Arm, paths: _Paths) -> JSON:
    """Render one arm a person may choose: it names no rollout, so that it is no exposure."""
    asked = {"name": OVERRIDE_ARM, "string_match": {"exact": str(name)}}
    route = _arm_route(plan, arm, {**paths.all, "headers": [asked]}, paths)
    route["metadata"]["filter_metadata"]["fairlead"]["override"] = True
    route["typed_per_filter_config"][OVERRIDE_FILTER] = render_keys(plan.access.override_keys)
    return route


def _bad_override_route(plan: TrafficPlan, paths: _Paths) -> JSON:
    return _refusal(plan, {**paths.all, "headers": [{"name": OVERRIDE_ARM, "present_match": True}]})


def _bad_id_route(plan: TrafficPlan, paths: _Paths) -> JSON:
    bad = {"name": "x-inference-id", "string_match": safe_regex(INFERENCE_ID), "invert_match": True}
    return _refusal(plan, {**paths.all, "headers": [bad]})


def _refusal(plan: TrafficPlan, match: JSON) -> JSON:
    return {
        "match": match,
        "metadata": {"filter_metadata": {"fairlead": {"model": plan.model}}},
        "response_headers_to_add": [
            set_header("x-inference-id", "%UNIQUE_ID%"),
            *_rollout_id(plan),
        ],
        "direct_response": {"status": 400},
    }


def _unknown() -> JSON:
    typed = {"@type": f"{TYPE}config.route.v3.Route", **_unknown_route()}
    return {"action": {"name": "unknown", "typed_config": typed}}


def _unknown_route() -> JSON:
    return {"match": {"prefix": "/"}, "direct_response": {"status": 404}}


def _common(plan: TrafficPlan, *, counted: bool, arm: Arm | None = None) -> JSON:
    """Render what does not depend on the cluster.

    Args:
        plan: The plan.
        counted: Whether the request is a prediction, and so an exposure during a rollout.
        arm: The arm, where the route itself decides it.
    """
    facts: JSON = {"model": plan.model}
    if counted and plan.rollout is not None:
        facts |= {"rollout": plan.rollout, "step": plan.step}
    unit = [set_header(UNIT_HEADER, source_of(plan).unit)] if counted and arm is None else []
    sided = [] if arm is None else [set_header("x-rollout-arm", str(arm.arm))]
    return {
        "metadata": {"filter_metadata": {"fairlead": facts}},
        "request_headers_to_remove": [COMPARE_HEADER],
        "request_headers_to_add": [*unit, *_rollout_id(plan), *sided],
        "response_headers_to_add": [
            set_header("x-inference-id", "%REQ(x-inference-id)%"),
            set_header("x-model-version", "%UPSTREAM_METADATA(fairlead:version)%"),
            *_rollout_id(plan),
            *sided,
        ],
        **_kept_from_the_model(plan),
        # A retry and a copy need the whole body again.
        "request_body_buffer_limit": plan.max_body_bytes,
        "typed_per_filter_config": _filters_of(plan),
    }


def _kept_from_the_model(plan: TrafficPlan) -> JSON:
    return {"request_headers_to_remove": ["authorization"]} if plan.access.api_keys else {}


def _filters_of(plan: TrafficPlan) -> JSON:
    filters = f"{TYPE}extensions.filters.http"
    limit = {
        "envoy.filters.http.buffer": {
            "@type": f"{filters}.buffer.v3.BufferPerRoute",
            "buffer": {"max_request_bytes": plan.max_body_bytes},
        }
    }
    if plan.access.jwt is not None:
        claim = plan.unit.name if plan.unit.kind is UnitKind.JWT_CLAIM else None
        limit[JWT_FILTER] = render_jwt(plan.access.jwt, claim)
    if plan.access.api_keys:
        limit[KEY_FILTER] = render_keys(plan.access.api_keys)
    if plan.access.rate_limit is not None:
        header = source_of(plan).header
        rate = render_rate_limit(plan.access.rate_limit, plan.unit.kind, header)
        limit[RATE_FILTER] = rate
    if plan.unit.kind is not UnitKind.COOKIE:
        return limit
    rewrite = {"pattern": expression(cookie_pattern(plan.unit.name)), "substitution": "\\1"}
    rule = {
        "header": "cookie",
        "on_header_present": {
            "metadata_namespace": "fairlead",
            "key": "unit",
            "regex_value_rewrite": rewrite,
        },
    }
    unit = {"@type": f"{filters}.header_to_metadata.v3.Config", "request_rules": [rule]}
    return limit | {"envoy.filters.http.header_to_metadata": unit}


def _rollout_id(plan: TrafficPlan) -> list[JSON]:
    return [] if plan.rollout is None else [set_header("x-rollout-id", plan.rollout)]


def _action(plan: TrafficPlan) -> JSON:
    timeout = max(plan.timeout, 0.001)
    return {
        "timeout": f"{timeout:.3f}s",
        # The timeout counts from the request's end. Until then, and longer, it is silence that ends it.
        "idle_timeout": f"{timeout + _SILENCE:.3f}s",
        "retry_policy": _retry_policy(plan),
        **_hedging(plan),
    }


def _hedging(plan: TrafficPlan) -> JSON:
    """Render that another endpoint is asked, too, at half the time: the first answer counts.

    A process that is stuck acknowledges what is sent to it and never answers. One that is only slow
    is not given up: giving it up would fail every request that takes longer than half the time.
    """
    return {"hedge_policy": {"hedge_on_per_try_timeout": True}} if _may_run_twice(plan) else {}


def _may_run_twice(plan: TrafficPlan) -> bool:
    return plan.retries.on_reset and plan.retries.attempts > 0


def _split(plan: TrafficPlan) -> JSON:
    source = source_of(plan)
    return {
        "weighted_clusters": {
            "use_hash_policy": True,
            "clusters": [_weighted(plan, arm) for arm in plan.arms],
        },
        "hash_policy": [
            {"header": {"header_name": source.header, "regex_rewrite": source.rewrite}}
        ],
    }


def _weighted(plan: TrafficPlan, arm: Arm) -> JSON:
    sided = [set_header("x-rollout-arm", str(arm.arm))]
    return {
        "name": cluster_name(plan.model, arm.version),
        "weight": arm.weight,
        "request_headers_to_add": sided,
        "response_headers_to_add": sided,
    }


def _retry_policy(plan: TrafficPlan) -> JSON:
    """Render how a request is sent again: to another endpoint, and to the fallback's first."""
    conditions = ["connect-failure", "refused-stream", "retriable-status-codes"]
    conditions.append("reset" if plan.retries.on_reset else "reset-before-request")
    extension = f"{TYPE}extensions.retry"
    half = {"per_try_timeout": f"{plan.timeout / 2:.3f}s"} if _may_run_twice(plan) else {}
    return {
        **half,
        "retry_on": ",".join(conditions),
        "retriable_status_codes": [503],
        "num_retries": plan.retries.attempts,
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.1s"},
        "host_selection_retry_max_attempts": 5,
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {
                    "@type": f"{extension}.host.previous_hosts.v3.PreviousHostsPredicate"
                },
            }
        ],
        "retry_priority": {
            "name": "envoy.retry_priorities.previous_priorities",
            "typed_config": {
                "@type": f"{extension}.priority.previous_priorities.v3.PreviousPrioritiesConfig",
                "update_frequency": 1,
            },
        },
    }
