"""As there."""

from dataclasses import dataclass


@dataclass
class LoRARequest:
    """An adapter's folder, by name and number."""

    lora_name: str
    lora_int_id: int
    lora_path: str
