"""Edited models in the formats of runtimes without hooks: one package per format, each with one verb."""
