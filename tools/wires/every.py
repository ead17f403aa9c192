"""All faults. Of a name, the part before the dot is where in the way from clip to dub it lies."""

from wires import model, preprocessing, runs, sampling, training
from wires.fault import Fault

FAULTS: tuple[Fault, ...] = (
    *preprocessing.FAULTS,
    *model.FAULTS,
    *training.FAULTS,
    *runs.FAULTS,
    *sampling.FAULTS,
)
