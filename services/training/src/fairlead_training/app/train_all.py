"""Train and register every version, in order; what is there already is left alone."""

from dataclasses import dataclass

from fairlead_training.app.ports import Manifest, Registered
from fairlead_training.app.train import RECIPE_TAG, Workshop, run_tags, train
from fairlead_training.domain.recipes import Recipe, recipe_named, recipes


@dataclass(frozen=True, kw_only=True)
class Result:
    """One version, trained and registered.

    Attributes:
        recipe: What it was trained by.
        run_id: The run it came from.
        registered: Its version number and digest.
        brier: The Brier score its trainer saw.
        auc: The area under the ROC curve its trainer saw.
        cached: Whether the run was there already.
    """

    recipe: Recipe
    run_id: str
    registered: Registered
    brier: float
    auc: float
    cached: bool


def train_all(model: str, manifest: Manifest, shop: Workshop) -> list[Result]:
    """Train and register every recipe."""
    found = {r.name: shop.tracking.finished(run_tags(r, manifest)) for r in recipes()}
    flights = None if all(found.values()) else shop.store.flights()
    results = []
    for recipe in recipes():
        run_id = found[recipe.name]
        if run_id is None:
            run_id = train(recipe, manifest, flights, shop)
        shop.say(f"{recipe.name}: registering")
        results.append(_result(recipe, run_id, model, shop, cached=found[recipe.name] is not None))
    return results


def register(run_id: str, model: str, shop: Workshop) -> Registered:
    """Register a run's model under a name, with what its trainer wrote about it."""
    recipe = recipe_named(shop.tracking.tags(run_id)[RECIPE_TAG])
    return shop.tracking.register(run_id, model, recipe.summary)


def _result(recipe: Recipe, run_id: str, model: str, shop: Workshop, *, cached: bool) -> Result:
    metrics = shop.tracking.metrics(run_id)
    return Result(
        recipe=recipe,
        run_id=run_id,
        registered=register(run_id, model, shop),
        brier=metrics["heldout_brier"],
        auc=metrics["heldout_auc"],
        cached=cached,
    )
