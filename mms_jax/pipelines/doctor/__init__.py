"""What is wrong with an installation, and what to do about it: ``mms-jax doctor``.

``python -m mms_jax.pipelines.doctor`` says the same where so much is broken that ``mms-jax`` does not start.
"""

from mms_jax.pipelines.doctor.findings import Finding, Status
from mms_jax.pipelines.doctor.report import Check, Report, examine, run_doctor

__all__ = ["Check", "Finding", "Report", "Status", "examine", "run_doctor"]
