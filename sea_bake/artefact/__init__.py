"""What sea_bake wrote, opened once: its record, edits, base, verification, evaluation, page and seal."""
