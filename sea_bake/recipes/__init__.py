"""Recipes: one YAML file for the whole line, run step by step; and the recipe of a published model, reproduced."""
