"""What other projects wrote, as ours: their files, their names and their options."""

from rpiae.interop.importing import import_generator
from rpiae.interop.sampling import sampling_of_reference

__all__ = ["import_generator", "sampling_of_reference"]
