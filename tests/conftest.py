"""What every test runs under. It must be in place before jax, transformers or mms_jax is imported."""

import os
from pathlib import Path

from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # parity is defined on the CPU; JAX_PLATFORMS=cuda tries another backend
os.environ |= {
    "HF_HUB_OFFLINE": "1",  # no test touches the network
    "MMS_JAX_CACHE_DIR": "",  # nor the user's compilation cache, in whose place there is none
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}

# The same examples in every run, and no judgement of speed: machines differ and are shared.
settings.register_profile(
    "mms_jax", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("explore", settings.get_profile("mms_jax"), derandomize=False)  # --hypothesis-profile=explore
settings.load_profile("mms_jax")

ROOT = Path(__file__).parents[1]


def _modules_with_shapes() -> list[str]:
    """The modules of mms_jax that annotate shapes."""
    paths = sorted((ROOT / "mms_jax").rglob("*.py"))
    annotated = [path for path in paths if "from jaxtyping import" in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in annotated]


# Only these: elsewhere a wrong type must reach the code, which answers with the errors of mms_jax.errors.
install_import_hook(_modules_with_shapes(), "beartype.beartype")
