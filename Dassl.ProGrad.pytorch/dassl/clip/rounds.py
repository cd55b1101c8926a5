"""Files of a feature bank (features.py): one a round, with the bank's key, the round's number and a checksum."""

from safetensors.torch import save

from dassl.utils import atomic_write, tensor_checksum
from dassl.utils.tensorfile import open_tensors

FORMAT = 1


def write_round(file, tensors, key, number):
    """Whole or not at all: tensors with the bank's key, the round's number and a checksum of the bytes."""
    facts = {"format": str(FORMAT), "bank": key, "round": str(number), "crc32": tensor_checksum(tensors)}
    with atomic_write(file) as target:
        target.write(save(tensors, metadata=facts))


def read_round(file, key, number):
    """{name: tensor} mapped from the file. Raises SafetensorError or ValueError if it is not that round, or
    damaged."""
    with open_tensors(file) as stored:
        facts = stored.metadata() or {}
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
    expected = {"format": str(FORMAT), "bank": key, "round": str(number)}
    if {name: facts.get(name) for name in expected} != expected:
        raise ValueError("it belongs to another bank")
    if facts.get("crc32") != tensor_checksum(tensors):
        raise ValueError("its checksum is wrong")
    return tensors
