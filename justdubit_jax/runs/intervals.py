"""At which steps of a run something happens."""


def is_due(step: int, interval: int) -> bool:
    """Whether something happens at a step that happens every `interval` steps; 0 is never."""
    return bool(interval) and step % interval == 0


def is_saved(step: int, last: int, interval: int) -> bool:
    """Whether a step is saved that was not interrupted: every `interval` steps, and the last."""
    return step == last or is_due(step, interval)
