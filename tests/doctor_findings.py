"""What single checks of the doctor find."""

from mms_jax.pipelines.doctor.findings import Status
from mms_jax.pipelines.doctor.report import Check, examine


def found(check, *, section="Section", name="check"):
    """What a check finds, as the doctor tells it."""
    return examine([Check(section, name, check, "the remedy")]).findings


def only(check):
    (finding,) = found(check)
    return finding


def bad(check):
    """What a check finds that is not as it should be, and of that the only one."""
    (finding,) = [finding for finding in found(check) if finding.status != Status.OK]
    return finding
