"""A base model, living or on disk: what users may call it, its family's layout, its hooks, its checkpoint."""
