"""The device setting -> devices, one worker or several on each; and the sizes that batches are padded to."""

from service.errors import SettingsError


def resolve_devices(setting: str) -> tuple[str, ...]:
    """cpu, mps, cuda (every one that is visible), cuda:N, or several by comma. Raises SettingsError."""
    found: list[str] = []
    for name in setting.split(","):
        found += _resolve(name.strip())
    if len(set(found)) < len(found):
        raise SettingsError(f"device: {setting} names a device twice")
    return tuple(found)


def _resolve(name: str) -> list[str]:
    if name == "cpu":
        return [name]
    import torch  # takes a second and hundreds of megabytes, which a service on CPUs does without

    if name.startswith("cuda"):
        count = torch.cuda.device_count()
        index = name.removeprefix("cuda").removeprefix(":")
        if int(index or 0) >= count:
            raise SettingsError(f"device: {name} is not available here ({count} CUDA devices)")
        return [name] if index else [f"cuda:{number}" for number in range(count)]
    if name == "mps" and not torch.backends.mps.is_available():
        raise SettingsError("device: mps is not available here")
    return [name]


def powers_of_two(max_batch_size: int) -> tuple[int, ...]:
    """1, 2, 4 ... and max_batch_size itself."""
    return tuple(sorted({max_batch_size} | {2**power for power in range(max_batch_size.bit_length())}))
