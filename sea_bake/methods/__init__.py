"""How directions are found in activations: one file per method. So far there is SEA alone (``sea.py``)."""
