"""The recipes that the core itself offers; ``suffuse.recipes`` says what a recipe is."""

from suffuse import digits, radd
from suffuse.recipes import Recipe

RECIPES: tuple[Recipe, ...] = (digits.train, radd.train)
