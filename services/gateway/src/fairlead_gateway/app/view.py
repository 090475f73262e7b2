"""What has been read of a cluster, put together to what is wanted.

Objects come one by one, or a whole list at once. What they mean together is worked out again for
the names they touch only, so that a change costs the same with a thousand models as with one.
"""

import threading
from collections.abc import Iterable, Mapping

from fairlead_gateway.app.ports import Snapshot
from fairlead_gateway.domain.endpoints import Endpoint, VersionKey, Workload, endpoints_by_version
from fairlead_gateway.domain.objects import ObjectKey, ServedModel, Slice, counting
from fairlead_gateway.domain.plan import TrafficPlan


class ClusterView:
    """The ServedModels and EndpointSlices of some namespaces.

    Any thread may tell it of changes, and any may read.

    Args:
        awaited: The lists that must be there before anything counts.
    """

    def __init__(self, awaited: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._awaited = set(awaited)
        self._models: dict[str, dict[ObjectKey, ServedModel]] = {}
        self._slices: dict[ObjectKey, Slice] = {}
        self._workloads: dict[ObjectKey, dict[ObjectKey, Workload]] = {}
        self._touched: set[str] = set()
        self._changed = True
        self._plans: dict[str, TrafficPlan] = {}
        self._problems: dict[str, str] = {}
        self._endpoints: dict[str, Mapping[VersionKey, tuple[Endpoint, ...]]] = {}
        self._troubles: dict[str, str] = {}
        self._last = Snapshot(plans={}, endpoints={}, complete=False)

    def read(self) -> Snapshot:
        """Return what is wanted now; the same object as before if nothing has changed."""
        with self._lock:
            if self._changed:
                self._last = self._collect()
            return self._last

    # Lists

    def listed(self, name: str) -> None:
        """Note that a list is there.

        Args:
            name: The list.
        """
        with self._lock:
            self._changed |= name in self._awaited
            self._awaited.discard(name)

    def trouble(self, name: str, reason: str) -> None:
        """Note why a list cannot be read, or that it can again.

        Args:
            name: The list.
            reason: Why; empty if it can.
        """
        with self._lock:
            self._note(name, reason)

    # ServedModels

    def put_model(self, model: ServedModel) -> None:
        """Take a ServedModel that is new or has changed."""
        with self._lock:
            self._put_model(model)

    def remove_model(self, key: ObjectKey) -> None:
        """Forget a ServedModel, and its plan with it."""
        with self._lock:
            self._remove_model(key)

    def replace_models(self, namespace: str, models: Iterable[ServedModel]) -> None:
        """Take all ServedModels of a namespace, and forget the others.

        Args:
            namespace: The namespace.
            models: All that are there.
        """
        found = {model.key: model for model in models}
        with self._lock:
            known = [key for keyed in self._models.values() for key in keyed]
            for key in known:
                if key[0] == namespace and key not in found:
                    self._remove_model(key)
            for model in found.values():
                self._put_model(model)

    def _put_model(self, model: ServedModel) -> None:
        name = model.key[1]
        before = self._models.get(name, {}).get(model.key)
        after = model.after(before)
        if after != before:
            self._models.setdefault(name, {})[model.key] = after
            self._touch(name)

    def _remove_model(self, key: ObjectKey) -> None:
        if self._models.get(key[1], {}).pop(key, None) is not None:
            self._touch(key[1])

    # EndpointSlices

    def put_slice(self, found: Slice) -> None:
        """Take an EndpointSlice that is new or has changed."""
        with self._lock:
            self._put_slice(found)

    def remove_slice(self, key: ObjectKey) -> None:
        """Forget an EndpointSlice, and its endpoints with it."""
        with self._lock:
            self._remove_slice(key)

    def replace_slices(self, namespace: str, slices: Iterable[Slice]) -> None:
        """Take all EndpointSlices of a namespace, and forget the others.

        Args:
            namespace: The namespace.
            slices: All that are there.
        """
        found = {one.key: one for one in slices}
        with self._lock:
            for key in [key for key in self._slices if key[0] == namespace and key not in found]:
                self._remove_slice(key)
            for one in found.values():
                self._put_slice(one)

    def _put_slice(self, found: Slice) -> None:
        before = self._slices.get(found.key)
        after = found.after(before)
        if after == before:
            return
        self._remove_slice(found.key)
        self._slices[found.key] = after
        self._note("/".join(found.key), after.problem)
        if after.owner is not None and after.workload is not None:
            self._workloads.setdefault(after.owner, {})[found.key] = after.workload
            self._touch(after.owner[1])

    def _remove_slice(self, key: ObjectKey) -> None:
        before = self._slices.pop(key, None)
        if before is None:
            return
        self._note("/".join(key), "")
        if before.owner is not None:
            workloads = self._workloads[before.owner]
            del workloads[key]
            if not workloads:
                del self._workloads[before.owner]
            self._touch(before.owner[1])

    # Together

    def _note(self, name: str, reason: str) -> None:
        if self._troubles.get(name, "") == reason:
            return
        self._changed = True
        self._troubles.pop(name, None)
        if reason:
            self._troubles[name] = reason

    def _touch(self, name: str) -> None:
        self._changed = True
        self._touched.add(name)

    def _collect(self) -> Snapshot:
        for name in self._touched:
            self._work_out(name)
        self._touched.clear()
        self._changed = False
        return Snapshot(
            plans=dict(self._plans),
            endpoints={
                key: endpoints for one in self._endpoints.values() for key, endpoints in one.items()
            },
            problems=dict(self._problems),
            workload_problems=dict(self._troubles),
            complete=not self._awaited,
        )

    def _work_out(self, name: str) -> None:
        """Find what one name means: a plan, and endpoints from the same namespace only.

        Otherwise whoever may make a Service in another namespace could take a model's requests.
        """
        for known in (self._plans, self._problems, self._endpoints):
            known.pop(name, None)
        model = counting(self._models.get(name, {}).values())
        if model is None:
            self._models.pop(name, None)
            return
        if model.plan is not None:
            self._plans[name] = model.plan
        if model.problem:
            self._problems[name] = model.problem
        workloads = self._workloads.get(model.key, {})
        self._endpoints[name] = endpoints_by_version(workloads.values())
