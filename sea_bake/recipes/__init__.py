"""Recipes: one YAML file for the whole line, run step by step; and the recipe of a published model, reproduced."""

from sea_bake.recipes.reproducing import Reproduction, reproduce
from sea_bake.recipes.running import Progress, RunReport, run
from sea_bake.recipes.schema import RECIPE, Recipe, read
from sea_bake.recipes.starter import starter, write_starter

__all__ = [
    "RECIPE",
    "Progress",
    "Recipe",
    "Reproduction",
    "RunReport",
    "read",
    "reproduce",
    "run",
    "starter",
    "write_starter",
]
