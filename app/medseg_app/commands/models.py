"""`medseg models`: what ships, and what each model is for; no weights are opened."""

from pathlib import Path
from typing import Any

from medseg_app.output import print_json, print_line, print_table, size_text
from medseg_pipelines.recipe import (
    PictureRecipe,
    PromptRecipe,
    Recipe,
    Scope,
    SegmentationRecipe,
    SupportRecipe,
    brought_names,
    imported_names,
    load_recipe,
    recipe_folder,
    recipe_names,
    template_names,
)
from medseg_pipelines.sections import PictureScope
from medseg_pipelines.words import RESEARCH_USE, UNTRAINED


def run(name: str | None, *, json: bool) -> int:
    """List the models, or print the card of one; returns the exit code."""
    if name is not None:
        recipe, folder = load_recipe(name), recipe_folder(name)
        print_json(_plain(recipe, folder)) if json else _print_card(recipe, folder)
        return 0
    recipes = [load_recipe(known) for known in (*recipe_names(), *imported_names())]
    templates = [load_recipe(known) for known in template_names()]
    brought = [load_recipe(known) for known in brought_names()]
    if json:
        listed = {"models": recipes, "brought": brought, "templates": templates}
        print_json(
            {"notice": RESEARCH_USE, **{k: [_plain(r, recipe_folder(r.name)) for r in v] for k, v in listed.items()}}
        )
        return 0
    rows = [(r.name, r.task, "/".join(r.scope.modalities), r.scope.anatomy, r.licence, r.summary) for r in recipes]
    print_table(("name", "task", "images", "anatomy", "licence", "what it does"), rows)
    if brought:
        print_line("\nModels whose weights you bring (`medseg weights`):")
        print_table(
            ("name", "task", "licence", "what it does"), [(r.name, r.task, r.licence, r.summary) for r in brought]
        )
    if templates:
        print_line("\nRecipes without weights, to be trained on data of your own (`medseg train NAME --data FOLDER`):")
        print_table(("name", "task", "what it does"), [(r.name, r.task, r.summary) for r in templates])
    print_line(RESEARCH_USE)
    return 0


def _plain(recipe: Recipe, folder: Path) -> dict[str, Any]:
    weights = folder / recipe.weights.file
    content = recipe.model_dump(mode="json", exclude={"training"})
    content["weights"]["bytes"] = weights.stat().st_size if weights.is_file() else None
    content["card"] = _card(folder)
    return content


def _images(scope: Scope | PictureScope) -> str:
    """What the model was made for, in words."""
    kind = f"{'/'.join(scope.modalities)} of the {scope.anatomy}"
    if isinstance(scope, PictureScope):
        return f"{kind}, {scope.diameter[0]:g} to {scope.diameter[1]:g} pixels across"
    view = " x ".join(f"{length:g}" for length in scope.field_of_view)
    return f"{kind}, voxels of {scope.spacing[0]:g} to {scope.spacing[1]:g} mm, at least {view} mm"


def _card(folder: Path) -> str | None:
    card = folder / "CARD.md"
    return card.read_text(encoding="utf-8") if card.is_file() else None


def _print_card(recipe: Recipe, folder: Path) -> None:
    weights = folder / recipe.weights.file
    size = size_text(weights.stat().st_size) if weights.is_file() else "none: this recipe is to be trained first"
    if isinstance(recipe, PromptRecipe | SupportRecipe) and recipe.checkpoint is not None:
        size = f"brought by you as {recipe.checkpoint} (`medseg weights add {recipe.checkpoint}`)"
    rows = {
        "task": recipe.task,
        "does": recipe.summary,
        "for": recipe.intended_use,
        "images": _images(recipe.scope),
        "licence": recipe.licence,
        "weights": f"{size}, {recipe.weights.parameters:,} parameters, {recipe.weights.dtype}",
        "sha256": recipe.weights.sha256,
    }
    print_line(f"{recipe.name}: {recipe.title}")
    for key, value in rows.items():
        print_line(f"  {key:<9} {value}")
    if isinstance(recipe, SegmentationRecipe | PictureRecipe):
        print_line("  labels    " + "\n            ".join(f"{label.id:>3} {label.name}" for label in recipe.labels))
    if not recipe.weights.trained:
        print_line(UNTRAINED)
    card = _card(folder)
    if card:
        print_line(f"\n{card.strip()}\n")
    print_line(RESEARCH_USE)
